"""What the archive's catalogue knows of a frame: core columns with real types."""

from datetime import datetime
from typing import Any

from koa_shared.contracts import Program
from koa_shared.fits import Value, clean

from .frame import Frame, View
from .registry import Outcome

# Column: the keywords it is read from, first one there; an instrument may say others.
TEXTS = {
    "koaimtyp": ("KOAIMTYP",),
    "ofname": ("OFNAME",),
    "object": ("OBJECT",),
    "targname": ("TARGNAME",),
    "observer": ("OBSERVER",),
    "camera": ("CAMERA",),
    "mode": ("OBSMODE",),
    "filter": ("FILTER",),
    "ut": ("UTC",),
}
NUMBERS = {
    "exposure": ("ELAPTIME",),
    "frameno": ("FRAMENO",),
    "airmass": ("AIRMASS",),
    "az": ("AZ",),
    "el": ("EL",),
    "wave_blue": ("WAVEBLUE",),
    "wave_center": ("WAVECNTR",),
    "wave_red": ("WAVERED",),
    "spec_res": ("SPECRES",),
    "image_mean": ("IMAGEMN",),
    "image_sd": ("IMAGESD",),
    "image_median": ("IMAGEMD",),
    "npixsat": ("NPIXSAT",),
}


def core_metadata(frame: Frame, outcome: Outcome, size: int) -> dict[str, Any]:
    """Return the catalogue's columns; `size` is that of KOAID.fits in bytes.

    Angles are degrees, times UTC, `exposure` seconds; wavelengths are in `wave_unit`,
    for units differ between instruments (facts 7.3 P11).
    """
    ours, ut = frame.instrument.catalogue, frame.identity.ut
    data: dict[str, Any] = {
        "koaid": frame.identity.koaid,
        "instrument": frame.instrument.name,
        "utdatetime": f"{ut:%Y-%m-%dT%H:%M:%S}.{ut.microsecond // 1000:03}Z",
        "date_obs": frame.identity.date_obs,
        "ra": _angle(frame, "RA", 360),
        "dec": _angle(frame, "DEC", 90),
        "semid": outcome.extra.get("SEMID"),
        "progid": frame.text("PROGID") or None,
        "propint": outcome.extra.get("PROPINT"),
        "wave_unit": frame.instrument.wave_unit,
        "filesize_mb": round(size / 1e6, 4),
    }
    for column, keywords in TEXTS.items():
        found = (frame.text(k) for k in ours.get(column, keywords))
        data[column] = clean(next((text for text in found if text), None))
    for column, keywords in NUMBERS.items():
        numbers = (frame.number(k) for k in ours.get(column, keywords))
        data[column] = next((n for n in numbers if n is not None), None)
    for column in ("frameno", "npixsat"):
        value = data[column]
        data[column] = None if value is None else int(value)
    return data


def _angle(view: View, keyword: str, limit: float) -> float | None:
    """Return an angle in degrees; a wild one (OSIRIS has RA -20) is none."""
    value = view.degrees(keyword, hours=keyword == "RA")
    low = 0 if keyword == "RA" else -limit
    return value if value is not None and low <= value <= limit else None


def program_of(frame: Frame, outcome: Outcome) -> Program:
    """Return whose data this is, and until when (facts 3.5)."""
    told = outcome.extra.get("PROPINT")
    months = told if isinstance(told, int) else None
    return Program(
        semid=_text(outcome.extra.get("SEMID")),
        progid=frame.text("PROGID") or None,
        pi=frame.text("PROGPI") or None,
        institution=frame.text("PROGINST") or None,
        title=_text(outcome.extra.get("PROGTITL")),
        propint=months,
        release_date=None if months is None else _later(frame.identity.ut, months),
    )


def _text(value: Value) -> str | None:
    return str(value) if value else None


def _later(start: datetime, months: int) -> datetime | None:
    """Return the same day `months` later, the 28th at the latest."""
    years, month = divmod(start.month - 1 + months, 12)
    if not 0 < start.year + years < 10000:
        return None
    return start.replace(year=start.year + years, month=month + 1, day=min(start.day, 28))
