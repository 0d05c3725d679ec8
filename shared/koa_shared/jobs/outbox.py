"""Events for the ingestor: kept with what they tell, sent in batches, in order."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from sqlalchemy import Column, Integer, MetaData, Table, delete, insert, select
from sqlmodel import Session

from ..contracts import Event
from ..db import Database, JsonColumn
from ..errors import DependencyDown, Rejected
from ..retry import Circuits

__all__ = ["EventSender", "outbox_table", "put_event"]

logger = structlog.get_logger("koa_shared")

BATCH = 500  # half of what one post may carry; about 1 MB


def outbox_table(metadata: MetaData) -> Table:
    """Declare the table of events that wait to be told to the ingestor."""
    return Table(
        "outbox",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("payload", JsonColumn, nullable=False),
    )


def put_event(session: Session, outbox: Table, event: Event) -> None:
    """Note an event, in the transaction of what it tells."""
    payload = event.model_dump(mode="json", exclude_defaults=True)
    session.execute(insert(outbox).values(payload=payload))


def _peek(session: Session, outbox: Table) -> list[tuple[int, Any]]:
    rows = session.execute(
        select(outbox.c.id, outbox.c.payload).order_by(outbox.c.id).limit(BATCH)
    )
    return [(row[0], row[1]) for row in rows]


def _drop(session: Session, outbox: Table, ids: list[int]) -> None:
    session.execute(delete(outbox).where(outbox.c.id.in_(ids)))


class EventSender:
    """The loop that empties the outbox; repeats are harmless (`seq` drops them)."""

    def __init__(
        self,
        db: Database,
        outbox: Table,
        send: Callable[[list[Any]], Awaitable[None]],
        circuits: Circuits,
    ) -> None:
        self._db, self._outbox, self._send = db, outbox, send
        self._circuit = circuits["ingestor"]
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is something to send."""
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._woken.clear()
            try:
                more = await self._send_batch()
            except DependencyDown as error:
                self._circuit.failed(str(error))
                await asyncio.sleep(max(0.1, self._circuit.wait()))
                continue
            if not more:
                with contextlib.suppress(TimeoutError):
                    # A replica that died may have left events: look now and then.
                    await asyncio.wait_for(self._woken.wait(), 5)

    async def _send_batch(self) -> bool:
        rows = await self._db.read(_peek, self._outbox)
        if not rows:
            return False
        try:
            await self._send([payload for _, payload in rows])
        except Rejected as error:
            # A batch that is refused for good would block the road: say so, go on.
            logger.error("Events were refused", why=str(error), count=len(rows))
        self._circuit.succeeded()
        await self._db.write(_drop, self._outbox, [id_ for id_, _ in rows])
        return len(rows) == BATCH
