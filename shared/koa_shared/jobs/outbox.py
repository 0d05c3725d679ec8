"""Events for the ingestor: kept with what they tell, sent in batches, in order."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select
from sqlmodel import Session

from ..contracts import Event, EventBatch
from ..db import Database, JsonColumn
from ..errors import DependencyDown, Rejected
from ..retry import Circuit

logger = structlog.get_logger("koa_shared")
GATHER = 0.1  # s
BATCH = 500  # half of what one post may carry; about 1 MB


def outbox_table(metadata: MetaData) -> Table:
    """Declare the table of events that wait to be told to the ingestor."""
    columns = (Column("id", Integer, primary_key=True), Column("payload", JsonColumn))
    return Table("outbox", metadata, *columns)


def put_event(session: Session, outbox: Table, event: Event) -> None:
    """Note an event, in the transaction of what it tells."""
    payload = event.model_dump(mode="json", exclude_defaults=True)
    session.execute(insert(outbox).values(payload=payload))


class EventSender:
    """The loop that empties the outbox; repeats are harmless (`seq` drops them)."""

    def __init__(
        self, db: Database, outbox: Table, tell: Callable[[EventBatch], Awaitable[None]],
        circuit: Circuit,
    ) -> None:  # fmt: skip
        self._db, self._outbox, self._tell, self._circuit = db, outbox, tell, circuit
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is something to send."""
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._woken.clear()
            wait = 5.0  # a replica that died may have left events: look now and then
            try:
                if await self._send_batch():
                    continue
            except DependencyDown as error:
                wait = self._circuit.failed(str(error))
            except Exception:
                logger.exception("Events were not sent")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._woken.wait()
                # A frame's events come close together; one post for them leaves the
                # processor to the frame itself.
                await asyncio.sleep(GATHER)

    def _peek(self, session: Session) -> list[tuple[int, Any]]:
        t = self._outbox.c
        rows = session.execute(select(t.id, t.payload).order_by(t.id).limit(BATCH))
        return [(row[0], row[1]) for row in rows]

    def _drop(self, session: Session, ids: list[int]) -> None:
        session.execute(delete(self._outbox).where(self._outbox.c.id.in_(ids)))

    async def _send_batch(self) -> bool:
        rows = await self._db.read(self._peek)
        if not rows:
            return False
        try:
            await self._tell(EventBatch.model_validate({"events": [row[1] for row in rows]}))
        except Rejected as error:
            # A batch that is refused for good would block the road: say so, go on.
            logger.error("Events were refused", why=str(error), count=len(rows))
        self._circuit.succeeded()
        await self._db.write(self._drop, [row[0] for row in rows])
        return True
