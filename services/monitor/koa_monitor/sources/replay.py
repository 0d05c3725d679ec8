"""Replay of a recorded night: JSON lines, one broadcast each.

    {"t": "2025-12-08T09:06:38.080Z", "source": "kcwi_blue", "keyword": "LOUTFILE",
     "value": "/s/sdata1400/kcwi1/2025dec08/kb251208_00012.fits"}

`t` is RFC 3339 or seconds since 1970; `read` (an object) is needed where a path is built of
several keywords.  At speed N, a broadcast of time t is heard, and stamped, at
start + (t - t0)/N, where t0 is the file's first time.  At speed 0 all come at once, stamped
one microsecond apart.  Afterwards the source stays connected and silent.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ValidationError

from koa_shared.instruments import Source

from .base import KeywordSource, QueuedSource, SourceUnavailable


class Recorded(BaseModel):
    """One line of a recording."""

    t: AwareDatetime
    source: str
    keyword: str
    value: str
    read: dict[str, str] = {}


class ReplaySource(QueuedSource):
    """One source's part of a recorded night, of all lines with their delays from the start."""

    def __init__(self, source: Source, night: Sequence[tuple[timedelta, Recorded]]) -> None:
        super().__init__(source)
        this = (source.name, source.keyword)
        self._recorded = [(d, line) for d, line in night if (line.source, line.keyword) == this]

    async def _listen(self) -> None:
        start = datetime.now(UTC)
        self.connect()
        self._initial = False  # each is a change, as it was that night
        for delay, line in self._recorded:
            wait = (start + delay - datetime.now(UTC)).total_seconds()
            await asyncio.sleep(max(0.0, wait))
            self.heard(line.value, start + delay, line.read)
        await asyncio.Event().wait()

    async def read(self, _: tuple[str, ...]) -> dict[str, str]:
        """Refuse: what the recording lacks can't be read any more."""
        raise LookupError("the recording holds no 'read' for it")


def open_replay(path: Path, speed: str, sources: Sequence[Source]) -> list[KeywordSource]:
    """Return a source for each of `sources`; raises SourceUnavailable, with the line."""
    if not re.fullmatch(r"\d*\.?\d+", speed):
        raise SourceUnavailable(f"replay speed {speed!r} is not a number from 0 up")
    lines, rate = _load(path), float(speed)
    night = [
        ((line.t - lines[0].t) / rate if rate else timedelta(microseconds=n), line)
        for n, line in enumerate(lines)
    ]
    return [ReplaySource(source, night) for source in sources]


def _load(path: Path) -> list[Recorded]:
    lines = []
    try:
        texts = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceUnavailable(f"recording {path} can't be read: {error}") from error
    for number, text in enumerate(texts, 1):
        try:
            lines += [Recorded.model_validate_json(text)] if text.strip() else []
        except ValidationError as error:
            raise SourceUnavailable(f"{path}, line {number}: {error}") from error
    return sorted(lines, key=lambda line: line.t)
