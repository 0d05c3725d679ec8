"""Facts from a TOML file; `koa_shared/data/schedule-example.toml` documents it."""

import tomllib
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog

from . import WEATHER_KEYS, Fact, Night, Override, Proposal, Shift, Weather
from .sun import sun_times

logger = structlog.get_logger("koa_preparer")
Day = date


class ScheduleError(Exception):
    """The schedule can't be used; says which file and why."""


class NightEntry(Shift):
    """A night; `*` is any, and the entry that says most wins."""

    date: Day | Literal["*"] = "*"
    instrument: str = "*"
    telescope: int | None = None

    def fits(self, asked: tuple[Day, str, int]) -> bool:
        """Tell whether this entry is about (HST date, instrument, telescope)."""
        said = (self.date, self.instrument, self.telescope)
        return all(s in ("*", None, a) for s, a in zip(said, asked, strict=True))

    def weight(self) -> list[bool]:
        """Return how much the entry says, for comparing: a date first of all."""
        return [self.date != "*", self.instrument != "*", self.telescope is not None]


class ProposalEntry(Proposal):
    """A program; `*_PROG` is that program in any semester."""

    semid: str


class WeatherEntry(Fact):
    """Values that hold at any time."""

    telescope: int | None = None
    values: dict[Literal[WEATHER_KEYS], float]  # type: ignore[valid-type]


class Content(Fact):
    """The whole file."""

    night: tuple[NightEntry, ...] = ()
    proposal: tuple[ProposalEntry, ...] = ()
    override: tuple[Override, ...] = ()
    weather: tuple[WeatherEntry, ...] = ()


class TomlProvider:
    """Reads the file anew when it changes; a broken change keeps what was good.

    It lies on a local disk (or in a ConfigMap), as the event loop looks at it.
    Raises ScheduleError when it can't be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self._good = self._read()

    def _look(self) -> tuple[int, ...]:
        try:
            seen = self._path.stat()
        except OSError:
            return ()
        return seen.st_mtime_ns, seen.st_size, seen.st_ino

    def _read(self) -> Content:
        try:
            return Content.model_validate(tomllib.loads(self._path.read_text()))
        except (OSError, ValueError) as error:
            raise ScheduleError(f"no schedule in {self._path}: {error}") from error

    @property
    def _content(self) -> Content:
        if (stamp := self._look()) != self._stamp:
            self._stamp = stamp
            try:
                self._good = self._read()
            except ScheduleError as error:
                logger.warning("Schedule broken, last good one stays", why=str(error))
        return self._good

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night:
        """Return the night of the entry that fits best, with twilight computed."""
        asked = (hst_date, instrument, telescope)
        fitting = [e for e in self._content.night if e.fits(asked)]
        best = max(fitting, key=NightEntry.weight, default=NightEntry())
        shift = best.model_dump(include=set(Shift.model_fields), exclude_none=True)
        key = dict(zip(("hst_date", "instrument", "telescope"), asked, strict=True))
        return Night.model_validate(sun_times(hst_date + timedelta(days=1)) | shift | key)

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the program of this semester, else the one of any semester."""
        known = {entry.semid: entry for entry in self._content.proposal}
        entry = known.get(semid) or known.get(f"*_{semid.partition('_')[2]}")
        return entry and Proposal(**entry.model_dump(exclude={"semid"}))

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the values that the file says hold."""
        for e in self._content.weather:
            if e.telescope in (None, telescope):
                values = {key: e.values.get(key) for key in WEATHER_KEYS}
                guided = at if "GUIDFWHM" in e.values else None
                return Weather(values=values, time=at, guidtime=guided)
        return None

    def override(self, instrument: str, at: datetime) -> str | None:
        """Return the program of the first override that holds."""
        for e in self._content.override:
            if e.instrument in (None, instrument) and e.start <= at < e.end:
                return e.project
        return None
