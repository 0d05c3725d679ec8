"""The live stream for many listeners: what they ask at the same time is read once."""

import asyncio
from typing import Any

from koa_shared.web import Caller

from .catalog import is_open_to, view


class Entry:
    """A change of a frame, as text for those who see the frame whole, and for others."""

    def __init__(self, entry: Any, frame: Any, links: dict[str, Any]) -> None:
        self.id, self._status, self._frame = entry.id, entry.status, frame
        self._links = links[frame.frame_id]
        self._texts: dict[bool, str] = {}

    def text(self, caller: Caller) -> str:
        """Return the event as this caller may see it."""
        is_open = is_open_to(caller, self._frame.semid, self._frame.release_date)
        if is_open not in self._texts:
            row = self._frame.model_dump() | {"links": self._links}
            data = view(row, caller).model_dump_json(exclude_none=True)
            self._texts[is_open] = f"id: {self.id}\nevent: {self._status}\ndata: {data}\n\n"
        return self._texts[is_open]


class Feed:
    """The end of the stream, and who waits there."""

    def __init__(self, db: Any, store: Any) -> None:
        self._db, self._store = db, store
        self._asked: dict[int, asyncio.Future[tuple[list[Entry], int]]] = {}
        self.changed = asyncio.Event()  # set, and replaced, when the stream grows

    def published(self) -> None:
        """Wake everyone who listens; what is being read may lack what is new."""
        self._asked.clear()
        self.changed.set()
        self.changed = asyncio.Event()

    async def after(self, last: int) -> tuple[list[Entry], int]:
        """Return some entries behind an id, and the oldest id that is kept."""
        if last not in self._asked:
            self._asked[last] = asyncio.ensure_future(self._read(last))
        return await asyncio.shield(self._asked[last])

    async def _read(self, last: int) -> tuple[list[Entry], int]:
        try:
            rows, oldest = await self._db.read(self._store.stream_after, last)
            links = await self._db.read(self._store.links, [frame for _, frame in rows])
            return [Entry(entry, frame, links) for entry, frame in rows], oldest
        finally:
            self._asked.pop(last, None)
