"""What a process says when it can't start: a sentence, and never a secret."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUSH = "hush-hush-4711"
LAUNCH = "import sys; from koa_{0}.app import main; sys.exit(main())"
SETTINGS = {
    "KOA_S3_SECRET_KEY": HUSH, "KOA_DATABASE_URL": f"postgresql://koa:{HUSH}@127.0.0.1:9/koa",
}  # fmt: skip


def start(service: str, *command: str, **env: str) -> tuple[int, str]:
    """Return how a process ended and all it said."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KOA_")}
    run = subprocess.run(
        [sys.executable, "-c", LAUNCH.format(service), *command], env=clean | SETTINGS | env,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Write tokens files: a good one, and one that holds a token in place of its digest."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(f'[[token]]\nname = "x"\nrole = "operator"\nsha256 = "{"a" * 64}"\n')
    bad.write_text(f'[[token]]\nname = "x"\nrole = "operator"\nsha256 = "{HUSH}"\n')
    return {"good": str(good), "bad": str(bad), "none": str(tmp_path / "none")}


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"KOA_DEV": "1", "KOA_HOST": "0.0.0.0"}, "loopback addresses only"),
        ({"KOA_PORT": HUSH}, "port"),
        ({}, "KOA_TOKENS_FILE is needed"),
        ({"KOA_TOKENS_FILE": "none"}, "none"),
        ({"KOA_TOKENS_FILE": "bad"}, "token.0.sha256"),
        ({"KOA_DEV": "1", "KOA_S3_SECRET_KEY": "", "KOA_S3_SECRET_KEY_FILE": "none"}, "none"),
        ({"KOA_DEV": "1", "KOA_S3_ENDPOINT": f"https://koa:{HUSH}@s3.example"}, "no secret"),
        ({"KOA_DEV": "1", "KOA_S3_ENDPOINT": f"http://s3.example/{HUSH}"}, "https only"),
        ({"KOA_DEV": "1", "KOA_S3_ENDPOINT": HUSH}, "not an http"),
    ],
)
def test_wrong_settings(files: dict[str, str], env: dict[str, str], sentence: str) -> None:
    given = {name: files.get(value, value) for name, value in env.items()}
    code, told = start("ingestor", **given)
    assert (code, told.count("\n")) > (0, 0)
    assert sentence in told
    assert "Traceback" not in told
    assert HUSH not in told


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ([], f"postgresql://koa:{HUSH}@127.0.0.1:9/koa"),
        ([], f"postgresql://koa:{HUSH}@127.0.0.1:x/koa"),
        (["migrate"], f"postgresql://koa:{HUSH}@127.0.0.1:9/koa?x=1"),
        (["migrate"], f"postgres://koa:{HUSH}@127.0.0.1/koa"),
    ],
)
def test_a_database_that_is_not_there(
    files: dict[str, str], tmp_path: Path, url: str, command: list[str]
) -> None:
    more = {"KOA_TOKENS_FILE": files["good"], "KOA_VAR": str(tmp_path), "KOA_PORT": "0"}
    code, told = start("ingestor", *command, KOA_DATABASE_URL=url, **more)
    assert code != 0
    assert told
    assert HUSH not in told
