"""A night's report for people: as text, as a page to print; and a directory held against it."""

import hashlib
from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from ..reports import Kept, NightReport

SETS = {"lev1", "lev2"}


class Night(TypedDict):
    """What is known of a night; `koa night --json` prints it."""

    report: NightReport
    manifest: list[Kept]


def read(file: Path, date: str) -> Night:
    """Return what `--json` printed of a night; raises ValueError for anything else."""
    told = TypeAdapter(Night).validate_json(file.read_bytes())
    if told["report"].night != date:
        raise ValueError(f"{file} is the report of {told['report'].night}")
    return told


def answer(night: Night, html: Path | None, directory: Path | None) -> dict[str, Any]:
    """Return a report and its words; write the page, hold the directory against the manifest."""
    seen = verify(night["manifest"], directory) if directory else {}
    told = dict[str, Any](night) | {"verify": seen}
    if html:
        html.write_text(render("night.html", told), encoding="utf-8")
    amiss = sum(len(seen[how]) for how in ("missing", "differing", "extra") if seen)
    return told | {"summary": render("night.txt", told)} | ({"failed": amiss} if amiss else {})


def render(page: str, told: Mapping[str, Any]) -> str:
    """Return a page of `data/`, filled in."""
    pages = Environment(
        loader=PackageLoader("koa_shared", "data"), autoescape=select_autoescape(),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return pages.get_template(page).render(told, log10=log10)


def verify(kept: Sequence[Kept], directory: Path) -> dict[str, Any]:
    """Hold the FITS files under a directory against a manifest, by name; tell what is amiss."""
    found = (path for path in directory.rglob("*.fits") if path.is_file())
    # Reduced sets lie in directories of their own (`Koa.download`); the manifest is of raw frames.
    files = sorted(p for p in found if not SETS & {*p.relative_to(directory).parts[:-1]})
    wanted, there = {entry.name: entry for entry in kept}, {path.name for path in files}
    differing = [p for p in files if p.name in wanted and not _is_same(p, wanted[p.name])]
    return {
        "files": len(kept),
        "missing": sorted(wanted.keys() - there),
        "differing": [str(path.relative_to(directory)) for path in differing],
        "extra": [str(p.relative_to(directory)) for p in files if p.name not in wanted],
        "by_size_only": sum(entry.sha256 is None and entry.name in there for entry in kept),
    }


def _is_same(path: Path, entry: Kept) -> bool:
    if path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return entry.sha256 in (None, hashlib.file_digest(file, "sha256").hexdigest())
