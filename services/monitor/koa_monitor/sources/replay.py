"""Replay of a recorded night: JSON lines, one broadcast each.

    {"t": "2025-12-08T09:06:38.080Z", "source": "kcwi_blue", "keyword": "LOUTFILE",
     "value": "/s/sdata1400/kcwi1/2025dec08/kb251208_00012.fits"}

`t` is RFC 3339 or seconds since 1970; `read` (an object) is needed where a path is built of
several keywords.  At speed N, a broadcast of time t is heard, and stamped, at
start + (t - t0)/N, where t0 is the file's first time.  At speed 0 all come at once, stamped
one microsecond apart.  Afterwards the source stays connected and silent.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, NonNegativeFloat, TypeAdapter, ValidationError

from koa_shared.instruments import Source

from .base import KeywordSource


class Recorded(BaseModel):
    """One line of a recording."""

    t: AwareDatetime
    source: str
    keyword: str
    value: str
    read: dict[str, str] = {}


class ReplaySource(KeywordSource):
    """One source's part of a night, whose lines have their delays from the start."""

    def __init__(self, source: Source, night: Sequence[tuple[timedelta, Recorded]]) -> None:
        super().__init__(source)
        self._night = [(delay, line) for delay, line in night if line.source == source.name]

    async def _listen(self) -> None:
        start = datetime.now(UTC)
        self.connect()
        self._initial = False  # each is a change, as it was that night
        for delay, line in self._night:
            await asyncio.sleep((start + delay - datetime.now(UTC)).total_seconds())
            self.heard(line.value, start + delay, line.read)
        await asyncio.Event().wait()

    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Refuse: what the recording lacks can't be read any more."""
        raise LookupError(f"the recording holds no {', '.join(keywords)}")


def open_replay(recording: str, sources: Sequence[Source]) -> list[ReplaySource]:
    """Return a source for each of `sources`; raises OSError or ValueError, with the line."""
    path, _, speed = recording.partition("@")
    rate, lines = TypeAdapter(NonNegativeFloat).validate_python(speed or 1), []
    for number, text in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            lines += [Recorded.model_validate_json(text)] if text.strip() else []
        except ValidationError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    lines.sort(key=lambda line: line.t)
    night = [
        ((line.t - lines[0].t) / rate if rate else timedelta(microseconds=n), line)
        for n, line in enumerate(lines)
    ]
    return [ReplaySource(source, night) for source in sources]
