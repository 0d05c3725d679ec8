"""Facts from a TOML file; `koa_shared/data/schedule-example.toml` documents it."""

import tomllib
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog
from pydantic import AwareDatetime

from koa_shared.contracts import Message

from . import WEATHER_KEYS, Night, Proposal, Weather
from .sun import sun_times

logger = structlog.get_logger("koa_preparer")
Day = date


class NightEntry(Night):
    """A night; what is left out, or `*`, is any."""

    date: Day | Literal["*"] = "*"
    instrument: str = "*"
    telescope: int | Literal["*"] = "*"


class ProposalEntry(Proposal):
    """A program; `*_PROG` is that program in any semester."""

    semid: str


class Override(Message):
    """A program for a time range, of one instrument or (None) of all (design 8)."""

    instrument: str | None = None
    start: AwareDatetime
    end: AwareDatetime
    project: str


class Content(Message):
    """The whole file."""

    night: tuple[NightEntry, ...] = ()
    proposal: tuple[ProposalEntry, ...] = ()
    override: tuple[Override, ...] = ()
    weather: tuple[Weather, ...] = ()


class TomlProvider:
    """Reads the file anew when it changes; a broken change keeps what was good.

    It lies on a local disk (or in a ConfigMap), as the event loop looks at it.
    Raises ValueError when it can't be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._text = path, ""
        self._good: Content | None = None
        self._read()

    def _read(self) -> Content:
        try:
            if (text := self._path.read_text()) != self._text or self._good is None:
                self._text = text
                self._good = Content.model_validate(tomllib.loads(text))
        except (OSError, ValueError) as error:
            if self._good is None:
                raise ValueError(f"no schedule in {self._path}: {error}") from error
            logger.warning("Schedule broken, last good one stays", why=str(error))
        return self._good

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night:
        """Return the night of the last entry that fits, with twilight computed."""
        about = {"date": hst_date, "instrument": instrument, "telescope": telescope}
        night = sun_times(hst_date + timedelta(days=1))
        for entry in reversed(self._read().night):
            if all(getattr(entry, name) in ("*", value) for name, value in about.items()):
                return Night(**night | entry.model_dump(exclude=set(about), exclude_none=True))
        return Night(**night)

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the program of this semester, else the one of any semester."""
        known = {entry.semid: entry for entry in self._read().proposal}
        entry = known.get(semid) or known.get(f"*_{semid.partition('_')[2]}")
        return entry and Proposal(**entry.model_dump(exclude={"semid"}))

    async def weather(self, telescope: int, at: datetime) -> Weather | None:  # noqa: ARG002
        """Return the values that the file says hold."""
        if not (entries := self._read().weather):
            return None
        values = dict.fromkeys(WEATHER_KEYS) | entries[0].values
        guided = None if values["GUIDFWHM"] is None else at
        return Weather(values=values, time=at, guidtime=guided)

    def override(self, instrument: str, at: datetime) -> str | None:
        """Return the program of the first override that holds."""
        fitting = (o for o in self._read().override if o.instrument in (None, instrument))
        return next((o.project for o in fitting if o.start <= at < o.end), None)
