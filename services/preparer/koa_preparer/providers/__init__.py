"""What a frame's file does not tell about it: program, schedule and weather."""

from datetime import date, datetime, time, timedelta
from typing import Literal

from pydantic import AwareDatetime

from koa_shared.contracts import Message

# The weather: header keyword (facts 3.3) to EPICS channel (facts 3.6).
CHANNELS = {
    "WXDOMHUM": "k{tel}:met:humidityRaw",
    "WXDOMTMP": "k{tel}:met:tempRaw",
    "WXDWPT": "k0:met:dewpointRaw",
    "WXOUTHUM": "k0:met:humidityRaw",
    "WXOUTTMP": "k0:met:tempRaw",
    "WXPRESS": "k0:met:pressureRaw",
    "WXWNDIR": "k{tel}:met:windAzRaw",
    "WXWNDSP": "k{tel}:met:windSpeedRaw",
    "GUIDFWHM": "k{tel}:dcs:pnt:cam0:fwhm",
}
WEATHER_KEYS = tuple(CHANNELS)


class Slot(Message):
    """One program's part of a night; `start` and `end` are UT, None is open."""

    project: str
    start: time | None = None
    end: time | None = None
    kind: str = "Classical"
    account: str = ""


class Shift(Message):
    """Who observes; times are UT, `oa` is the observing assistant's alias."""

    slots: tuple[Slot, ...] = ()
    sunrise: time | None = None
    sunset: time | None = None
    oa: str | None = None


class Night(Shift):
    """One instrument's night."""

    hst_date: date
    telescope: int
    instrument: str


class Proposal(Message):
    """What the proposals API knows of a program; `propint` is months (facts 3.5)."""

    pi: str | None = None
    institution: str | None = None
    title: str | None = None
    propint: int | None = None


class Weather(Message):
    """Samples nearest to the exposure, absent is None; the times are WXTIME and GUIDTIME."""

    values: dict[Literal[WEATHER_KEYS], float | None]  # type: ignore[valid-type]
    time: AwareDatetime | None = None
    guidtime: AwareDatetime | None = None


class Facts(Message):
    """What was known when the frame was prepared; read once per generation."""

    prepared_at: AwareDatetime
    night: Night | None = None
    proposal: Proposal | None = None
    weather: Weather | None = None
    override: str | None = None
    missing: tuple[str, ...] = ()


def late(before: Facts, now: Facts) -> bool:
    """Tell whether anything that was missing is there now."""
    return bool(set(before.missing) - set(now.missing))


def night_of(ut: datetime) -> date:
    """Return a frame's HST date: UT date - 1 day, after HST noon too (facts 3.1 #7)."""
    return ut.date() - timedelta(days=1)


def semester(day: date) -> str:
    """Return the semester of an HST date: A is February to July (facts 3.3)."""
    return f"{day.year - (day.month == 1)}{'A' if 1 < day.month < 8 else 'B'}"
