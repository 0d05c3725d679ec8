"""Where the telescope points: enough astronomy for a header that hangs together."""

from dataclasses import dataclass
from datetime import UTC, datetime
from math import asin, atan2, cos, degrees, radians, sin

import numpy as np

from .cards import Value

__all__ = ["mjd", "pointing"]

LATITUDE, LONGITUDE = 19.8266, -155.4747  # degrees, Keck
J2000 = datetime(2000, 1, 1, 12, tzinfo=UTC)
# Where a telescope stands by day, and looks at the dome-flat screen (facts 3.10).
STOW = (45.0, 58.0)
DOME_EL, DOME_OFFSET = {1: 67.0, 2: 45.0}, 88.0


@dataclass(frozen=True, slots=True)
class Direction:
    """Degrees, all of them."""

    az: float
    el: float
    ra: float
    dec: float
    lst: float


def mjd(at: datetime) -> float:
    """Return the modified Julian day."""
    return 51544.5 + (at - J2000).total_seconds() / 86400


def pointing(
    position: str, at: datetime, rng: np.random.Generator, telescope: int = 2
) -> dict[str, Value]:
    """Return the telescope's keywords at `position`: sky, dome or stow."""
    lst = (280.46061837 + 360.98564736629 * (mjd(at) - 51544.5) + LONGITUDE) % 360
    if position == "sky":
        where = _from_sky(lst, float(rng.uniform(-35, 35)), float(rng.uniform(-10, 50)))
    else:
        el, az = (DOME_EL[telescope], 90.0) if position == "dome" else STOW
        where = Direction(az, el, (lst + 20) % 360, 45.0, lst)
    tracking = position == "sky"
    dome = where.az + (DOME_OFFSET if position == "dome" else 0.2)
    hour = (where.lst - where.ra + 180) % 360 - 180
    return {
        "ra": _sexagesimal(where.ra / 15, 2),
        "dec": _sexagesimal(where.dec, 1, sign=True),
        "ra_deg": round(where.ra, 6),
        "dec_deg": round(where.dec, 6),
        "ha": _sexagesimal(hour / 15, 2, sign=True),
        "ha_deg": round(hour / 15, 6),
        "lst": _sexagesimal(where.lst / 15, 2),
        "lst_deg": round(where.lst, 6),
        "az": round(where.az, 2),
        "el": round(where.el, 2),
        "airmass": round(1 / sin(radians(where.el)), 4),
        "domeposn": round(dome % 360, 2),
        "axestat": "tracking" if tracking else "not controlling",
        "domestat": "tracking" if tracking else "halted",
        "tracking": "yes" if tracking else "no",
        "guiding": "true" if tracking else "false",
        "rotmode": "position angle" if tracking else "stationary",
        "target": f"J{_short(where.ra / 15)}{'+' if where.dec >= 0 else '-'}"
        f"{_short(abs(where.dec))}",
    }


def _from_sky(lst: float, hour: float, dec: float) -> Direction:
    h, d, lat = radians(hour), radians(dec), radians(LATITUDE)
    el = asin(sin(lat) * sin(d) + cos(lat) * cos(d) * cos(h))
    az = atan2(-sin(h) * cos(d), sin(d) * cos(lat) - cos(d) * cos(h) * sin(lat))
    return Direction(degrees(az) % 360, degrees(el), (lst - hour) % 360, dec, lst)


def _sexagesimal(value: float, digits: int, *, sign: bool = False) -> str:
    scale = 10**digits
    whole, part = divmod(round(abs(value) * 3600 * scale), scale)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    lead = ("-" if value < 0 else "+") if sign else ""
    return f"{lead}{hours:02}:{minutes:02}:{seconds:02}.{part:0{digits}}"


def _short(value: float) -> str:
    return f"{int(value):02}{int(value * 60 % 60):02}"
