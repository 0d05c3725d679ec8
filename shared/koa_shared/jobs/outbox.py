"""Events for the ingestor: kept with what they tell, sent in batches, in order."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa
import structlog
from sqlmodel import Session

from ..contracts import Event, EventBatch
from ..db import Database, JsonColumn, after_commit
from ..errors import DependencyDown, Rejected
from ..retry import Circuit

logger = structlog.get_logger("koa_shared")
GATHER = 0.25  # s
BATCH = 100  # of a night's backlog: it takes its turns with what is live at the ingestor


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """Declare the table of events that wait to be told to the ingestor."""
    columns = (sa.Column("id", sa.Integer, primary_key=True), sa.Column("payload", JsonColumn))
    return sa.Table("outbox", metadata, *columns)


class Outbox:
    """The events that wait, and the loop that sends them."""

    def __init__(self, table: sa.Table) -> None:
        self.table, self._woken = table, asyncio.Event()

    def put(self, session: Session, event: Event) -> None:
        """Note an event, in the transaction of what it tells."""
        payload = event.model_dump(mode="json", exclude_defaults=True)
        session.execute(sa.insert(self.table).values(payload=payload))
        after_commit(session, self._woken.set)

    async def run(
        self, db: Database, tell: Callable[[EventBatch], Awaitable[None]], circuit: Circuit
    ) -> None:
        """Send until cancelled; repeats are harmless (`seq` drops them)."""
        while True:
            self._woken.clear()
            wait = 5.0  # a replica that died may have left events: look now and then
            try:
                if rows := await db.read(self._peek):
                    await self._send([payload for _, payload in rows], tell)
                    circuit.succeeded()
                    await db.write(self._drop, [number for number, _ in rows])
                    await asyncio.sleep(GATHER)
                    continue
            except DependencyDown as error:
                wait = circuit.failed(str(error))
            except Exception:
                logger.exception("Events were not sent")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._woken.wait()
                # A frame's events come close together; one post for them leaves the
                # processor to the frame itself.
                await asyncio.sleep(GATHER)

    async def _send(self, events: list[Any], tell: Callable[[EventBatch], Awaitable[None]]) -> None:
        try:
            await tell(EventBatch.model_validate({"events": events}))
        except Rejected as error:
            if len(events) > 1:  # one bad event takes no other along
                for event in events:
                    await self._send([event], tell)
                return
            # What is refused for good would block the road: say so, go on.
            logger.error("An event was refused", why=str(error), refused=events)

    def _peek(self, session: Session) -> list[tuple[int, Any]]:
        t = self.table.c
        rows = session.execute(sa.select(t.id, t.payload).order_by(t.id).limit(BATCH))
        return [(row[0], row[1]) for row in rows]

    def _drop(self, session: Session, ids: list[int]) -> None:
        session.execute(sa.delete(self.table).where(self.table.c.id.in_(ids)))
