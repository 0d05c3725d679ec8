"""The outbox: what happened is told, in order, though the ingestor is away (design 4)."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from sqlalchemy import MetaData, select
from sqlmodel import Session

from koa_shared.contracts import Event, EventBatch, FileWritten
from koa_shared.db import Database
from koa_shared.errors import DependencyDown, Rejected
from koa_shared.jobs.outbox import BATCH, GATHER, Outbox, outbox_table
from koa_shared.metrics import Metrics
from koa_shared.retry import Circuit

metadata = MetaData()
table = outbox_table(metadata)
OpenDatabase = Callable[..., Database]


class Ingestor:
    """Takes events, or does not."""

    def __init__(self) -> None:
        self.batches: list[EventBatch] = []
        self.fault: Exception | None = None
        self.tries = 0

    async def tell(self, batch: EventBatch) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        self.batches.append(batch)

    @property
    def told(self) -> list[int]:
        return [event.seq for batch in self.batches for event in batch.events]


@pytest.fixture
def db(database: OpenDatabase) -> Database:
    db = database()
    metadata.create_all(db.engine)
    return db


@pytest.fixture
def ingestor() -> Ingestor:
    return Ingestor()


@asynccontextmanager
async def sending(db: Database, outbox: Outbox, ingestor: Ingestor) -> AsyncIterator[Circuit]:
    circuit = Circuit("ingestor", Metrics("preparer"))
    task = asyncio.create_task(outbox.run(db, ingestor.tell, circuit))
    yield circuit
    assert not task.done(), "the loop ended"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(ask: Callable[[], object], seconds: float = 25.0) -> None:
    async with asyncio.timeout(seconds):
        while not ask():  # noqa: ASYNC110 (who answers knows of no event)
            await asyncio.sleep(0.002)


async def left(db: Database) -> int:
    return await db.read(lambda s: len(s.execute(select(table.c.id)).all()))


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(table)


@pytest.fixture
def put(
    outbox: Outbox, new_file: Callable[..., FileWritten], new_event: Callable[..., Event]
) -> Callable[..., None]:
    def put(session: Session, *numbers: int) -> None:
        for seq in numbers:
            outbox.put(session, new_event(new_file(), "PROCESSING", seq))

    return put


Put = Callable[..., None]


async def test_sent_in_order_and_then_forgotten(
    db: Database, outbox: Outbox, ingestor: Ingestor, put: Put,
    new_file: Callable[..., FileWritten], new_event: Callable[..., Event],
) -> None:  # fmt: skip
    whole = new_event(
        new_file(), "INVALID", 1, koaid="KB.20251208.43200.00", attempt=3,
        findings=[{"code": "A", "severity": "invalid", "step": "read", "message": "a\x00b"}],
    )  # fmt: skip
    await db.write(outbox.put, whole)
    await db.write(put, 2, 3)
    async with sending(db, outbox, ingestor):
        await until(lambda: ingestor.told == [1, 2, 3])
        first = ingestor.batches[0].events[0]
        finding = whole.findings[0].model_copy(update={"message": "a\\x00b"})
        assert first == whole.model_copy(update={"findings": [finding]})
        await db.write(put, 4)
        await until(lambda: ingestor.told == [1, 2, 3, 4], 2)  # far less than its 5 s
        async with asyncio.timeout(5):
            while await left(db):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_what_rolls_back_is_not_told(
    db: Database, outbox: Outbox, ingestor: Ingestor, put: Put
) -> None:
    def fail(session: Session) -> None:
        put(session, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await db.write(fail)
    await db.write(put, 2)
    async with sending(db, outbox, ingestor):
        await until(lambda: ingestor.told)
    assert ingestor.told == [2]


async def test_an_ingestor_that_is_away_loses_nothing(
    db: Database, outbox: Outbox, ingestor: Ingestor, put: Put
) -> None:
    ingestor.fault = DependencyDown("ingestor", "connection refused")
    await db.write(put, 1, 2)
    async with sending(db, outbox, ingestor) as circuit:
        await until(lambda: ingestor.tries >= 2)
        assert circuit.reason
        assert await left(db) == 2
        ingestor.fault = None
        await until(lambda: ingestor.told == [1, 2])
        await until(lambda: not circuit.reason)


async def test_what_is_refused_for_good_does_not_block_the_road(
    db: Database, outbox: Outbox, ingestor: Ingestor, put: Put
) -> None:
    ingestor.fault = Rejected("no such thing")
    await db.write(put, 1)
    async with sending(db, outbox, ingestor):
        async with asyncio.timeout(5):
            while await left(db):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ingestor.fault = None
        await db.write(put, 2)
        await until(lambda: ingestor.told == [2])


async def test_a_backlog_goes_in_batches_that_fit(
    db: Database, outbox: Outbox, ingestor: Ingestor, put: Put
) -> None:
    await db.write(put, *range(BATCH + 3))
    begun = time.monotonic()
    async with sending(db, outbox, ingestor):
        await until(lambda: len(ingestor.told) == BATCH + 3)
    assert time.monotonic() - begun >= GATHER, "between them there is room for others"
    assert [len(batch.events) for batch in ingestor.batches] == [BATCH, 3]
    assert ingestor.told == list(range(BATCH + 3))


async def test_an_unexpected_answer_does_not_end_the_loop(
    db: Database, outbox: Outbox, ingestor: Ingestor, put: Put
) -> None:
    """A bug in between must not stop the events of all frames until a restart."""
    ingestor.fault = RuntimeError("surprise")
    await db.write(put, 1)
    async with sending(db, outbox, ingestor):
        await until(lambda: ingestor.tries >= 1)
        await asyncio.sleep(0.05)
        ingestor.fault = None
        await until(lambda: ingestor.told == [1], 10)
