"""The live stream's newest entries: read once from the catalogue for all who listen."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from koa_shared.web import Caller

from .catalog import is_open_to, view

IDLE = 15.0  # s between looks without a reason
KEPT = 256  # entries; who is further behind asks the catalogue


class Entry:
    """A change of a frame, and what it is for those who see the frame whole, or not."""

    def __init__(self, entry: Any, frame: Any) -> None:
        self.id, self._status, self._frame = entry.id, entry.status, frame
        self._texts: dict[bool, str] = {}

    def text(self, caller: Caller) -> str:
        """Return the event as this caller may see it."""
        is_open = is_open_to(caller, self._frame.semid, self._frame.release_date)
        if is_open not in self._texts:
            data = view(self._frame.model_dump(), caller).model_dump_json(exclude_none=True)
            self._texts[is_open] = f"id: {self.id}\nevent: {self._status}\ndata: {data}\n\n"
        return self._texts[is_open]


class Feed:
    """One reader of the stream for all listeners of this process."""

    def __init__(self, db: Any, store: Any) -> None:
        self._db, self._store = db, store
        self._kept: deque[Entry] = deque()
        self._since: int | None = None  # all entries behind this id are kept
        self._changed, self.more = asyncio.Event(), asyncio.Event()

    def published(self) -> None:
        """The stream has grown."""
        self._changed.set()

    def after(self, last: int) -> Sequence[Entry] | None:
        """Return the entries behind an id; None if not all of them are kept here."""
        if self._since is None or last < self._since:
            return None
        return [*takewhile(lambda entry: entry.id > last, reversed(self._kept))][::-1]

    async def run(self) -> None:
        """Read what is published, until cancelled."""
        self._since = last = await self._db.read(self._store.stream_end)
        while True:
            self._changed.clear()
            rows, _ = await self._db.read(self._store.stream_after, last)
            self._kept.extend(Entry(*row) for row in rows)
            while len(self._kept) > KEPT:
                self._since = self._kept.popleft().id
            if rows:
                last = rows[-1][0].id
                self.more.set()
                self.more = asyncio.Event()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE):
                    await self._changed.wait()
