"""What a frame's file does not tell about it: program, schedule and weather."""

import tomllib
from datetime import time
from typing import Literal

from pydantic import AwareDatetime

from koa_shared.contracts import Message
from koa_shared.instruments import DATA

# Header keyword to EPICS channel.
CHANNELS: dict[str, str] = tomllib.loads((DATA / "weather.toml").read_text())
WEATHER_KEYS = tuple(CHANNELS)


class Slot(Message):
    """One program's part of a night; `start` and `end` are UT, None is open."""

    project: str
    start: time | None = None
    end: time | None = None
    kind: str = "Classical"
    account: str = ""


class Night(Message):
    """Who observes with one instrument; times are UT, `oa` is the assistant's alias."""

    slots: tuple[Slot, ...] = ()
    sunrise: time | None = None
    sunset: time | None = None
    oa: str | None = None

    def is_on(self, at: time) -> bool:
        """Tell whether a program has the instrument at this UT, between sunset and sunrise."""
        dusk, dawn = self.sunset or time.min, self.sunrise or time.max
        return any((s.start or dusk) <= at < (s.end or dawn) for s in self.slots)


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
