"""`koa instruments`: files are checked as at start, and tried on past frames."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from koa_preparer.cli import main
from koa_shared.cli.__main__ import main as koa
from koa_shared.instruments import DATA

HEAD = 'name = "NEW"\nroots = []\n'
HEADER = {
    "INSTRUME": "ESI", "OUTFILE": "e230215_", "FRAMENO": 7, "DATE-OBS": "2023-02-15",
    "UT": "16:07:27.03", "PROGNAME": "U177",
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command; a text in front is what NEW.toml says."""
    monkeypatch.delenv("KOA_INSTRUMENTS_DIR", raising=False)
    monkeypatch.delenv("KOA_KEYWORD_TABLES_DIR", raising=False)

    def call(*arguments: Any) -> Any:
        return CliRunner().invoke(main, list(map(str, arguments)))

    return call


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("roots = []", "NEW.toml:\n  name: Field required"),
        (HEAD + "rules = [{ rule = 'what' }]", "NEW.toml: rule 1, 'what', is unknown"),
        (
            HEAD + "rules = [{ rule = 'stamp', params = { x = 1 } }]",
            "NEW.toml: rule 1, 'stamp':\n  x: Extra inputs are not permitted",
        ),
        (HEAD + "[[preview]]\nstretch = 'log'", "NEW.toml:\n  preview.0.stretch: Input should"),
        (HEAD + "[[column]]\nkeyword = 'A'\ntype = 'text'\nwidth = 1", "NEW: column:"),
        (HEAD + "[catalogue]\nmoon = ['A']", "NEW.toml: the catalogue has no ['moon']"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, run: Any, text: str, says: str) -> None:
    (tmp_path / "NEW.toml").write_text(text)
    done = run("check", tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert says in done.stderr
    assert run("dry-run", tmp_path, "x.fits").exit_code == 1


def test_check_of_what_is_right(tmp_path: Path, run: Any) -> None:
    assert "holds no *.toml" in run("check", tmp_path).stderr
    assert "no directory" in run("check", tmp_path / "gone").stderr
    done = run("check", DATA / "instruments")
    assert done.exit_code == 0
    assert "ESI is right: prefix ES, 1 sources, 13 rules" in done.stdout.splitlines()
    assert len(done.stdout.splitlines()) == 13  # with the canary


def test_check_reads_the_keyword_tables(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "NEW.toml").write_text(HEAD)
    (tmp_path / "KOA_NEW_Keyword_Table.txt").write_text("no table")
    assert run("check", tmp_path).exit_code == 0
    monkeypatch.setenv("KOA_KEYWORD_TABLES_DIR", str(tmp_path))
    assert "KOA_NEW_Keyword_Table.txt" in run("check", tmp_path).stderr


@pytest.fixture
def frame(tmp_path: Path, make_file: Any) -> Path:
    path = tmp_path / "e230215_0007.fits"
    path.write_bytes(make_file(HEADER))
    return path


def changed(folder: Path, old: str, new: str) -> Path:
    """Write a changed file of ESI."""
    text = (DATA / "instruments" / "ESI.toml").read_text()
    assert old in text
    (folder / "ESI.toml").write_text(text.replace(old, new))
    return folder


def changes(done: Any) -> dict[str, list[Any]]:
    assert (done.exit_code, done.stderr) == (0, "")
    [row] = json.loads(done.stdout)
    assert row["instrument"] == "ESI"
    found: dict[str, list[Any]] = row["changes"]
    return found


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        (
            'prefix = "ES"', 'prefix = "EI"',
            {
                "KOAID": ["ES.20230215.58047.30.fits", "EI.20230215.58047.30.fits"],
                "catalogue.koaid": ["ES.20230215.58047.30", "EI.20230215.58047.30"],
            },
        ),
        (
            'value = "object"', 'value = "flatlamp"',
            {k: ["object", "flatlamp"] for k in ("KOAIMTYP", "catalogue.koaimtyp")},
        ),
        (
            "[programs]", '[programs]\nprogname = ["OTHER"]',
            {
                "PROGID": ["U177", "NONE"], "catalogue.progid": ["U177", "NONE"],
                "program.progid": ["U177", "NONE"],
                "catalogue.semid": ["2023A_U177", "2023A_NONE"],
                "program.semid": ["2023A_U177", "2023A_NONE"],
                "finding.INVALID_PROGID_WARN":
                    [None, "warning: 'NONE' (schedule) is no program."],
                "finding.PROPINT_ERROR": ["warning: 18 months are taken for U177.", None],
            },
        ),
        (
            'prefix = "ES"', 'prefix = "ES", when = { LAMP = "on" }',
            {"KOAID": ["ES.20230215.58047.30.fits", None], "OFNAME": ["e230215_0007.fits", None],
             "finding.KOAID_CREATE_FAIL": [None, "invalid: No KOAID prefix fits this header."]},
        ),
        ("# Angstroms.", "# Of light.", {}),
    ],
    ids=["koaid", "image-type", "program", "fault", "nothing"],
)  # fmt: skip
def test_dry_run_shows_what_differs(
    tmp_path: Path, run: Any, frame: Path, old: str, new: str, differs: Any
) -> None:
    done = run("dry-run", changed(tmp_path, old, new), frame, "--json")
    if not differs:  # then nobody is asked at all
        assert json.loads(done.stdout) == []
        assert run("dry-run", tmp_path, frame).stdout.startswith("These files say the same")
        return
    found = changes(done)
    assert found.items() >= differs.items()
    if "KOAID" not in found or found["KOAID"][1]:
        assert found == differs


def test_dry_run_compares_with_what_runs(
    tmp_path: Path, run: Any, frame: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("running", "next")]
    for folder, kind in zip(folders, ("dark", "trace"), strict=True):
        folder.mkdir()
        changed(folder, 'value = "object"', f'value = "{kind}"')
    monkeypatch.setenv("KOA_INSTRUMENTS_DIR", str(folders[0]))
    done = run("dry-run", folders[1], frame)
    assert done.stdout.splitlines() == [
        f"{frame} as ESI",
        "  KOAIMTYP                 dark -> trace",
        "  catalogue.koaimtyp       dark -> trace",
    ]


def test_dry_run_of_the_same_and_of_no_file(tmp_path: Path, run: Any, frame: Path) -> None:
    folder = changed(tmp_path, 'value = "dark"', 'value = "bias"')
    assert run("dry-run", folder, frame).stdout == f"{frame} as ESI: the same\n"
    done = run("dry-run", folder, tmp_path / "gone.fits")
    assert done.exit_code == 1
    assert "gone.fits" in done.stderr


def test_koa_asks_the_preparer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(koa, ["instruments", "check", "x"])
    assert done.exit_code == 1
    assert "koa-rti[preparer]" in done.stderr
