"""Instruments as the preparer takes them, and what they decide about a frame."""

import ast
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from koa_shared import fits
from koa_shared.contracts import Recipe
from koa_shared.errors import FrameFault
from koa_shared.ids import Fraction
from koa_shared.instruments import Instrument, InstrumentError, load_instruments

from ..providers import Facts
from ..rules import Frame, View, check_rules, core_metadata, identify, program_of, run_rules
from ..rules.catalogue import COLUMNS
from .frame import small_products, storable
from .metadata import Column, columns_of

Columns = tuple[Column, ...]
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def open_instruments(
    extra: Path | None, tables: Path | None
) -> tuple[dict[str, Instrument], dict[str, Columns]]:
    """Return all instruments and their metadata columns.

    Raises InstrumentError when anything in a file can't be used.
    """
    instruments, columns = load_instruments(extra), dict[str, Columns]()
    check_rules(instruments)
    known = {column for kind in COLUMNS.values() for column in kind}
    for name, instrument in instruments.items():
        if unknown := instrument.catalogue.keys() - known:
            raise InstrumentError(f"{name}.toml: the catalogue has no {sorted(unknown)}")
        columns[name] = columns_of(name, tables, instrument.columns)
    return instruments, columns


def recipes(
    instruments: Mapping[str, Instrument], columns: Mapping[str, Columns]
) -> dict[str, Recipe]:
    """Return what makes the products of each instrument: its file, its columns, the code."""
    home, found = Path(__file__).parents[1], dict[str, Recipe]()
    files = [p for room in ("rules", "pipeline") for p in sorted((home / room).glob("*.py"))]
    code = "".join(meaning(p.read_text()) for p in (*files, home / "preview.py")).encode()
    for name, instrument in instruments.items():
        told = f"{instrument.model_dump_json()}{columns[name]!r}".encode()
        rules = hashlib.sha256(told + code).hexdigest()[:16]
        found[name] = Recipe(software=f"koa-rti {version('koa-rti')}", rules=rules)
    return found


def meaning(code: str) -> str:
    """Return a module's syntax tree, which no comment, docstring or layout changes."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def structure_of(instrument: Instrument, data: fits.Buffer) -> fits.Structure:
    """Find a file's HDUs; raises FitsError unless it is complete as this instrument writes it."""

    def least(primary: fits.Hdu) -> int:
        view = View([primary], "", datetime.now(UTC), instrument)
        return int(view.resolve(instrument.min_hdus) or 1)

    return fits.read_structure(data, least)


def decide(
    instrument: Instrument, columns: Columns, path: Path, fraction: Fraction
) -> dict[str, Any]:
    """Return what is decided about a raw file, of which nothing else is known.

    The header's keywords by name, then `catalogue.*`, `program.*` and `finding.*`.
    """
    data, mtime = path.read_bytes(), datetime.fromtimestamp(path.stat().st_mtime, UTC)
    try:
        hdus = structure_of(instrument, data).hdus
        view = View(hdus, str(path.absolute()), mtime, instrument)
        identity = identify(view, fraction)
        storable(identity.koaid)
    except FrameFault as fault:
        return {f"finding.{fault.code}": f"invalid: {fault}"}
    frame = Frame(**vars(view), identity=identity, facts=Facts(prepared_at=mtime), data=data)
    outcome = run_rules(frame, instrument.rules)
    _, remarks = small_products(frame, outcome, columns, len(data))
    told = {
        "catalogue": core_metadata(frame, outcome, len(data)),
        "program": program_of(frame, outcome).model_dump(mode="json"),
        "finding": {f.code: f"{f.severity}: {f.message}" for f in [*outcome.findings, *remarks]},
    }
    keywords = {keyword: value for keyword, (value, _) in outcome.keywords.items()}
    return keywords | {f"{part}.{k}": v for part, found in told.items() for k, v in found.items()}
