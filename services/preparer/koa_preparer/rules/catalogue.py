"""What the archive's catalogue knows of a frame: core columns with real types."""

import tomllib
from collections.abc import Callable
from datetime import datetime
from typing import Any

from koa_shared.contracts import Program
from koa_shared.fits import clean
from koa_shared.instruments import DATA

from .frame import Frame
from .registry import Outcome

# Kind to column to the keywords it is read from, and how a kind is read.
COLUMNS = tomllib.loads((DATA / "catalogue.toml").read_text())
READ: dict[str, Callable[..., Any]] = {
    "text": lambda frame, *keys: clean(frame.text(*keys) or None),
    "number": Frame.number,
    "whole": lambda frame, *keys: None if (n := frame.number(*keys)) is None else int(n),
}


def core_metadata(frame: Frame, outcome: Outcome, size: int) -> dict[str, Any]:
    """Return the catalogue's columns; `size` is that of KOAID.fits in bytes.

    Angles are degrees, wavelengths in `wave_unit`, as instruments differ (facts 7.3 P11).
    """
    identity, instrument = frame.identity, frame.instrument
    return {
        "koaid": identity.koaid, "instrument": instrument.name,
        "utdatetime": f"{identity.ut:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z",
        "ra": _angle(frame, "ra", 0, 360), "dec": _angle(frame, "dec", -90, 90),
        "semid": outcome.extra.get("SEMID"), "propint": outcome.extra.get("PROPINT"),
        "wave_unit": instrument.wave_unit, "filesize_mb": round(size / 1e6, 4),
    } | {
        column: READ[kind](frame, *instrument.catalogue.get(column, keywords))
        for kind, columns in COLUMNS.items()
        for column, keywords in columns.items()
    }  # fmt: skip


def _angle(frame: Frame, keyword: str, low: float, high: float) -> float | None:
    """Return an angle in degrees; a wild one (OSIRIS has RA -20) is none."""
    value = frame.number(keyword)
    return value if value is not None and low <= value <= high else None


def program_of(frame: Frame, outcome: Outcome) -> Program:
    """Return whose data this is, and until when (facts 3.5)."""
    extra, months = outcome.extra, outcome.extra.get("PROPINT")
    return Program(
        semid=extra.get("SEMID"), progid=frame.text("PROGID") or None,
        pi=frame.text("PROGPI") or None, institution=frame.text("PROGINST") or None,
        title=extra.get("PROGTITL") or None, propint=months,
        release_date=None if months is None else _later(frame.identity.ut, months),
    )  # fmt: skip


def _later(start: datetime, months: int) -> datetime | None:
    """Return the same day `months` later, the 28th at the latest."""
    years, month = divmod(start.month - 1 + months, 12)
    if not 0 < start.year + years < 10000:
        return None
    return start.replace(year=start.year + years, month=month + 1, day=min(start.day, 28))
