"""`make help` lists every target, and they stay few (style 4.20)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_TARGETS = 15


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE))


def test_help_lists_every_target() -> None:
    out = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    listed = dict(re.findall(r"^  make (\S+) +(\S.*)$", out, re.MULTILINE))
    assert set(listed) == targets()


def test_targets_are_few_and_phony() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(" ".join(phony).split()) == targets()
    assert 0 < len(targets()) <= MAX_TARGETS


@pytest.mark.parametrize(
    ("answer", "is_audited"),
    [
        ("Found 1 known vulnerability in 1 package", True),
        ("No known vulnerabilities found", True),
        ("ConnectionError: Name or service not known", False),
    ],
)
def test_the_audit_gates_nothing_and_says_when_it_was_none(
    tmp_path: Path, answer: str, *, is_audited: bool
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{answer}' >&2\nexit 1\n")
    fake.chmod(0o755)
    out = subprocess.run(
        ["make", "--no-print-directory", "--assume-old", ".venv/.stamp", "audit", f"PY={fake}"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert answer in out
    assert ("NOT AUDITED" not in out) is is_audited
