"""Program, schedule and weather: facts about a frame that its file does not tell.

Here is what a provider gives; `gather` opens one and gathers the facts of a frame.
"""

from datetime import date, datetime, time, timedelta
from typing import Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict

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


class Fact(BaseModel):
    """A frozen value; it is stored with the job, so an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Slot(Fact):
    """One program's part of a night; `start` and `end` are UT, None is open."""

    project: str
    start: time | None = None
    end: time | None = None
    kind: str = "Classical"
    account: str = ""


class Shift(Fact):
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


class Proposal(Fact):
    """What the proposals API knows of a program; `propint` is months (facts 3.5)."""

    pi: str | None = None
    institution: str | None = None
    title: str | None = None
    propint: int | None = None


class Weather(Fact):
    """Samples nearest to the exposure; absent is None.

    `values` are keyed by WEATHER_KEYS, `time` is WXTIME, `guidtime` is GUIDTIME.
    """

    values: dict[str, float | None]
    time: AwareDatetime | None = None
    guidtime: AwareDatetime | None = None


class Override(Fact):
    """A program for a time range, of one instrument or (None) of all (design 8)."""

    instrument: str | None = None
    start: AwareDatetime
    end: AwareDatetime
    project: str


class Facts(Fact):
    """What was known when the frame was prepared; read once per generation."""

    prepared_at: AwareDatetime
    night: Night | None = None
    proposal: Proposal | None = None
    weather: Weather | None = None
    override: str | None = None
    missing: tuple[str, ...] = ()


class Provider(Protocol):
    """Where facts come from; None is the answer that there is no such thing.

    One that can't answer raises; `gather_facts` turns that into `missing`.
    """

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night | None:
        """Return who observes with this instrument in this night."""

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal of a program, `YYYYS_PROG`."""

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the weather samples nearest to `at`."""

    def override(self, instrument: str, at: datetime) -> str | None:
        """Return the program an operator has set for this time, if any."""


def late(before: Facts, now: Facts) -> bool:
    """Tell whether anything that was missing is there now."""
    return bool(set(before.missing) - set(now.missing))


def night_of(ut: datetime) -> date:
    """Return a frame's HST date: always UT date - 1 day, as KOA does (facts 3.1 #7).

    After HST noon (22:00 UT) that is last night, not the coming one.
    """
    return ut.date() - timedelta(days=1)


def semester(day: date) -> str:
    """Return the semester of an HST date: A is February to July (facts 3.3)."""
    return f"{day.year - (day.month == 1)}{'A' if 1 < day.month < 8 else 'B'}"
