"""Fault points: silent when off, and each action does what it says."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from koa_shared import faults

PROGRAM = """
from koa_shared.faults import around
for number in range(3):
    with around("commit", "hear"):
        pass
    with around("commit", "claim"):
        print(number, flush=True)
"""


def visit(file: Path, plan: str, dev: str = "1") -> subprocess.Popen[str]:
    env = os.environ | {"KOA_DEV": dev, "KOA_FAULT": f"{file}{plan and ','}{plan}"}
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def test_visits_are_noted(tmp_path: Path) -> None:
    assert visit(tmp_path / "visits", "").wait() == 0
    lines = (tmp_path / "visits").read_text().splitlines()
    assert lines == [
        f"-c commit:{when} {detail}"
        for _ in range(3)
        for detail in ("hear", "claim")
        for when in ("before", "after")
    ]


def test_a_call_with_its_arguments_is_noted_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial's own text holds its arguments, an instrument's whole file among them."""
    monkeypatch.setattr(faults, "PLAN", str(tmp_path / "visits"))
    with faults.around("disk", partial(visit, tmp_path, "x" * 200_000)):
        pass
    assert (tmp_path / "visits").read_text().split()[2::3] == ["visit", "visit"]


def test_without_dev_nothing_happens(tmp_path: Path) -> None:
    assert visit(tmp_path / "visits", "commit:before:1=kill", dev="0").wait() == 0
    assert not (tmp_path / "visits").exists()


@pytest.mark.parametrize(
    ("where", "before"),
    [
        ("commit:before:1", ""),
        ("commit:before/claim:2", "0\n"),
        ("commit:after/claim:2", "0\n1\n"),
        ("commit:after:5", "0\n1\n"),
        ("commit:before/nowhere:1", None),
    ],
)
def test_kill_at_the_visit_that_is_named(tmp_path: Path, where: str, before: str | None) -> None:
    process = visit(tmp_path / "visits", f"{where}=kill")
    out, _ = process.communicate(timeout=20)
    assert out == ("0\n1\n2\n" if before is None else before)
    assert process.returncode == (0 if before is None else -signal.SIGKILL)


def test_raise_and_sleep(tmp_path: Path) -> None:
    process = visit(tmp_path / "visits", "commit:before/claim:1=raise")
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "a planted fault" in error
    begun = time.monotonic()
    assert visit(tmp_path / "visits", "commit:after/hear:1=1.5").wait() == 0
    assert time.monotonic() - begun > 1.5


def test_stop(tmp_path: Path) -> None:
    process = visit(tmp_path / "visits", "commit:after/claim:1=stop")
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 0


def test_off_is_off() -> None:
    assert faults.PLAN == ""
    with faults.around("no such point", ""):
        pass
