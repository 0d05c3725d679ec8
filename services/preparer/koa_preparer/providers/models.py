"""Facts about a frame that its file does not tell, and who provides them."""

from datetime import date, datetime, time
from typing import Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict

__all__ = [
    "WEATHER_KEYS",
    "Facts",
    "Night",
    "Override",
    "Proposal",
    "Provider",
    "Slot",
    "Weather",
    "late",
]

# Header keywords of facts 3.3; WXTIME and GUIDTIME are `time` and `guidtime`.
WEATHER_KEYS = (
    "WXDOMHUM",
    "WXDOMTMP",
    "WXDWPT",
    "WXOUTHUM",
    "WXOUTTMP",
    "WXPRESS",
    "WXWNDIR",
    "WXWNDSP",
    "GUIDFWHM",
)


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


class Night(Fact):
    """One instrument's night; `hst_date` is the UT date - 1 day (facts 3.1).

    `sunrise` and `sunset` are UT times, `oa` the observing assistant's alias.
    """

    hst_date: date
    telescope: int
    instrument: str
    slots: tuple[Slot, ...] = ()
    sunrise: time | None = None
    sunset: time | None = None
    oa: str | None = None


class Proposal(Fact):
    """What the proposals API knows of a program; `propint` is months (facts 3.5)."""

    pi: str | None = None
    institution: str | None = None
    title: str | None = None
    propint: int | None = None


class Weather(Fact):
    """Samples nearest to the exposure, by header keyword; absent is None."""

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
    """Where facts come from; None: it answers that there is no such thing.

    A provider that can't answer raises; `gather_facts` turns that into `missing`.
    """

    async def night(
        self, hst_date: date, telescope: int, instrument: str
    ) -> Night | None:
        """Return who observes with this instrument in this night."""

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal of a program, `YYYYS_PROG`."""

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the weather within 30 s of `at`."""

    def override(self, instrument: str, at: datetime) -> str | None:
        """Return the program an operator has set for this time, if any."""


def late(before: Facts, now: Facts) -> bool:
    """Tell whether anything that was missing is there now."""
    return bool(set(before.missing) - set(now.missing))
