"""Nothing that goes into the repository tells a secret or whose machine it was on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each pattern is written so that it does not match itself.
LEAKS = {
    "a path of somebody's machine": r"(?<![\w./-])/(?:work|root|home/\w+|Users/\w+)/\w",
    "a package index": r"(?i)index[-_]url[\"']?\s*[=: ]\s*[\"']?https?://",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_\w{36}|github_pat_\w{22})",
    "a GitLab token": r"\bglpat-[\w-]{20}",
    "a Slack token": r"\bxox[abprs]-[\w-]{10}",
    "an API key": r"\bsk-[\w-]{20}",
    "a PyPI token": r"\bpypi-[\w-]{50}",
    "a Google key": r"\bAIza[\w-]{35}",
    "a token in a header": r"(?i)\bauthorization: *(?:bearer|basic) +(?=\S*\d)[\w+/=.-]{20}",
    "a JSON web token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.",
    "a password in a URL": (
        r"://[^\s/:@{}$<>\"']+:[^\s/:@{}$<>\"'*]+@"
        r"(?!localhost|127\.|\[?::1|[\w.-]*example|[\w.-]+\.invalid)"
    ),
    "a secret in the text": (
        r"(?i)(?:password|passwd|secret(?:_key)?|token)[\"']?\s*[=:]\s*[\"']?"
        r"(?=[\w+/=-]*\d)(?=[\w+/=-]*[a-z])[\w+/=-]{32,}(?![\w(.])"
    ),
}

EXAMPLES = {
    "a path of somebody's machine": ["/" + "home/jo/koa", '"/' + 'root/x"'],
    "a package index": ["PIP_INDEX_" + "URL=https://h/", "--index-" + "url http://h"],
    "a private key": ["-----BEGIN RSA " + "PRIVATE KEY-----"],
    "an AWS key": ["AKIA" + "Z" * 16],
    "a GitHub token": ["ghp_" + "a1" * 18],
    "a GitLab token": ["glpat-" + "a1" * 10],
    "a Slack token": ["xoxb-" + "1" * 12],
    "an API key": ["sk-" + "a1" * 12],
    "a PyPI token": ["pypi-" + "Ag" * 25],
    "a Google key": ["AIza" + "Sy7" * 12],
    "a token in a header": ["Authorization: Bearer " + "a1" * 12],
    "a JSON web token": ["eyJ" + "a" * 9 + ".eyJ" + "b" * 9 + ".c"],
    "a password in a URL": ["postgresql://koa:" + "hunter2@db.keck/koa"],
    "a secret in the text": [
        "s3_secret_key = '" + "a1b2" * 10 + "'",
        "KOA_S3_SECRET_KEY=" + "a1b2" * 10,
    ],
}
HARMLESS = [
    "https://host/roots/x", "postgresql://koa:koa@127.0.0.1/koa", "/s/sdata1001/x",
    "postgresql://koa:$PASSWORD@db/koa", 'token = "a-producer-of-the-tests"',
]  # fmt: skip


def leaks(text: str) -> set[str]:
    return {name for name, pattern in LEAKS.items() if re.search(pattern, text)}


def files() -> list[Path]:
    """Return what is tracked, and what would be with the next `git add`."""
    out = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z",
         "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in out.split("\0") if name]


@pytest.mark.parametrize("name", LEAKS)
def test_each_pattern_finds_its_example(name: str) -> None:
    for example in EXAMPLES[name]:
        assert name in leaks(example)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless(text: str) -> None:
    assert leaks(text) == set()


def test_repository() -> None:
    paths = [path for path in files() if path.is_file()]
    assert ROOT / "pyproject.toml" in paths
    found = {
        str(path.relative_to(ROOT)): told
        for path in paths
        if (told := leaks(path.read_bytes().decode("utf-8", "replace")))
    }
    assert not found
