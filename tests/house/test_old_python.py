"""What the oldest Python that is promised (Debian 12 has 3.11.2) does not do right."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(f for top in ("services", "shared") for f in (ROOT / top).rglob("*.py"))
# Before 3.11.5 a group that may not give back (`(...)*+`, `(?>...)`) matches nothing where
# its inside has choices of its own; of single characters (`[0-9]++`) it is right.
WRONG = re.compile(r"\)[*+?]\+|\)\{[0-9,]+\}\+|\(\?>")


def test_the_measure_measures() -> None:
    assert WRONG.search(r"(?:(?!END).{80})*+")
    assert WRONG.search(r"(?>a|b)")
    assert not WRONG.search(r"[0-9]++(?:\.[0-9]*+)?")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_group_keeps_what_it_took(path: Path) -> None:
    assert WRONG.findall(path.read_text()) == []
