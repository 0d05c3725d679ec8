"""Sunrise and sunset at Maunakea, for when nobody tells them."""

from datetime import UTC, date, datetime, time
from math import acos, asin, atan2, cos, degrees, radians, sin

LATITUDE, LONGITUDE = radians(19.8263), -155.4747
# Refraction and the Sun's radius; the dip of the summit's horizon is not counted.
HORIZON = radians(-0.833)


def _crossing(day: date, guess: float, sign: int) -> time:
    # Low-precision Sun of the Astronomical Almanac, good to 0.01 degrees.
    n = (day - date(2000, 1, 1)).days + guess / 24 - 0.5
    anomaly, mean = radians(357.529 + 0.98560028 * n), 280.459 + 0.98564736 * n
    longitude = radians(mean + 1.915 * sin(anomaly) + 0.020 * sin(2 * anomaly))
    tilt = radians(23.439 - 3.6e-7 * n)
    south = asin(sin(tilt) * sin(longitude))
    ascension = degrees(atan2(cos(tilt) * sin(longitude), cos(longitude)))
    rise = sin(HORIZON) - sin(LATITUDE) * sin(south)
    angle = degrees(acos(rise / (cos(LATITUDE) * cos(south))))
    turn = 180 - LONGITUDE - (mean - ascension) + sign * angle
    return datetime.fromtimestamp(round(turn % 360 * 240), UTC).time()


def sun_times(ut_date: date) -> dict[str, time]:
    """Return `sunrise` and `sunset` (UT) of this UT date, to within ten seconds."""
    return {"sunrise": _crossing(ut_date, 16.4, -1), "sunset": _crossing(ut_date, 4.4, 1)}
