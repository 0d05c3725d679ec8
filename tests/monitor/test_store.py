"""The monitor's ledger on both engines: written once, announced once (design 4, 5)."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import Session

from koa_monitor.pipeline import Stat
from koa_monitor.store import Broadcast, Store, jobs, outbox
from koa_shared.contracts import Event, FileWritten, Origin
from koa_shared.db import Database
from koa_shared.jobs.outbox import Outbox
from koa_shared.jobs.queue import JobQueue

NOON = datetime(2025, 12, 8, 12, 0, 0, tzinfo=UTC)
PATH = "/s/sdata1400/kb0001.fits"
OpenDatabase = Callable[..., Database]
MakeFile = Callable[..., FileWritten]


@pytest.fixture
async def db(database: OpenDatabase, store: Store) -> Database:
    db = database("monitor")
    await db.write(store.start_sources, ["kcwi_blue", "kcwi_red"])
    return db


@pytest.fixture
def store() -> Store:
    return Store(JobQueue(jobs), Outbox(outbox))


def broadcast(value: str = PATH, **more: Any) -> Broadcast:
    known = {
        "source": "kcwi_blue", "service": "kbds", "keyword": "LOUTFILE", "value": value,
        "time": NOON, "heard": NOON, "read": {},
    }  # fmt: skip
    return Broadcast.model_validate(known | more)


async def queued(db: Database, queue: str) -> list[str]:
    keys = select(jobs.c.key).where(jobs.c.queue == queue).order_by(jobs.c.id)
    return await db.read(lambda s: list(s.scalars(keys)))


async def told(db: Database) -> list[Event]:
    payloads = await db.read(lambda s: list(s.scalars(select(outbox.c.payload))))
    return [Event.model_validate(payload) for payload in payloads]


async def test_a_broadcast_is_heard_once(
    database: OpenDatabase, db: Database, store: Store
) -> None:
    both = [db, database("monitor")]  # two replicas hear the same
    await asyncio.gather(*(both[n % 2].write(store.hear, broadcast(), "") for n in range(6)))
    rows = await db.read(store.triggers, None, None, None)
    assert [(row.value, row.time, row.decision) for row in rows] == [(PATH, NOON, None)]
    assert await queued(db, "resolve") == [str(rows[0].id)]
    assert (await db.read(store.source_rows))["kcwi_blue"].last_value == PATH


@pytest.mark.parametrize(
    "other",
    [
        {"source": "kcwi_red"}, {"keyword": "LASTFILE"}, {"value": "/s/sdata1400/x.fits"},
        {"time": NOON + timedelta(microseconds=1)},
    ],
)  # fmt: skip
async def test_what_differs_in_its_key_is_another_broadcast(
    db: Database, store: Store, other: dict[str, Any]
) -> None:
    await db.write(store.hear, broadcast(), "")
    await db.write(store.hear, broadcast(**other), "")
    assert len(await queued(db, "resolve")) == 2


async def test_a_value_of_any_bytes_is_written_down(db: Database, store: Store) -> None:
    """A broadcast that can't be stored would be missed; PostgreSQL takes no NUL."""
    for value in ("a\x00b", "x\udcff", ""):
        heard = broadcast(value, read={"OUTDIR": value})
        await db.write(store.hear, heard, "")
        await db.write(store.hear, heard, "")
    rows = await db.read(store.triggers, None, None, None)
    assert [row.value for row in rows] == ["", "x\\udcff", "a\\x00b"]


async def test_a_file_is_accepted_once_and_announced_once(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    file = new_file()
    await db.write(store.hear, broadcast(), "")
    job = await db.write(store.queue.claim, "resolve")
    assert job is not None
    assert (await db.write(store.accept, file, "", job))[0] == "accepted"
    assert (await db.write(store.accept, file, ""))[0] == "duplicate"
    assert await queued(db, "announce") == [file.frame_id]
    assert await queued(db, "resolve") == []
    (event,) = await told(db)
    assert (event.frame_id, event.status, event.generation) == (file.frame_id, "QUEUED", 1)
    assert (event.service, event.timeline.detected) == ("monitor", file.detected)
    (row,) = await db.read(store.triggers, None, None, None)
    assert (row.decision, row.frame_id, row.path) == ("accepted", file.frame_id, file.path)


async def test_two_broadcasts_of_one_file_are_one_frame(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    for second in (0, 1):
        heard = broadcast(time=NOON + timedelta(seconds=second))
        await db.write(store.hear, heard, "")
        job = await db.write(store.queue.claim, "resolve")
        assert job is not None
        await db.write(store.accept, new_file(), "", job)
    decisions = [row.decision for row in await db.read(store.triggers, None, None, None)]
    assert decisions == ["duplicate", "accepted"]
    assert len(await told(db)) == len(await queued(db, "announce")) == 1


async def test_of_accepts_at_once_one_counts(
    database: OpenDatabase, db: Database, store: Store, new_file: MakeFile
) -> None:
    both = [db, database("monitor")]
    accepts = (both[n % 2].write(store.accept, new_file(), "") for n in range(6))
    decisions = [decision for decision, _ in await asyncio.gather(*accepts)]
    assert sorted(decisions) == ["accepted"] + ["duplicate"] * 5
    assert len(await told(db)) == 1


async def test_live_is_announced_before_what_was_found_later(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    now = time.time_ns()
    for n, origin in enumerate([Origin.RECOVERED, Origin.MANUAL, Origin.LIVE]):
        await db.write(store.accept, new_file(f"{n}.fits", origin=origin, mtime_ns=now), "")
    order = []
    while job := await db.write(store.queue.claim, "announce"):
        order.append(job.payload["origin"])
    assert order == ["live", "manual", "recovered"]


async def test_announced_keeps_what_the_preparer_knows_it_as(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    file, first = new_file(), new_file(size=1).frame_id
    await db.write(store.accept, file, "")
    job = await db.write(store.queue.claim, "announce")
    assert job is not None
    assert FileWritten.model_validate(job.payload) == file
    await db.write(store.announced, job, first)
    assert await queued(db, "announce") == []
    await db.write(store.accept, file, "")
    assert await queued(db, "announce") == []


async def test_known_tells_which_are_in_the_ledger(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    files = [new_file(f"{n}.fits") for n in range(3)]
    for file in files[:2]:
        await db.write(store.accept, file, "")
    stats = [Stat(f.path, f.size, f.mtime_ns) for f in files]
    grown = stats[0]._replace(size=stats[0].size + 1)
    many = [Stat(f"/s/sdata1400/{n}", n, n) for n in range(1200)]
    found = await db.read(store.known, [*many, *stats, grown])
    assert found == {file.frame_id for file in files[:2]}
    assert await db.read(store.known, []) == set()


async def test_a_rescan_looks_back_an_hour_behind_the_newest(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    started = (await db.read(store.source_rows))["kcwi_blue"].first_start
    assert await db.read(store.since, "KCWI") == started
    newest = 1_765_195_200 * 10**9
    for n, mtime in enumerate([newest - 9 * 10**12, newest, newest - 10**9]):
        await db.write(store.accept, new_file(f"{n}.fits", mtime_ns=mtime), "")
    expected = datetime.fromtimestamp(1_765_195_200 - 3600, UTC)
    assert await db.read(store.since, "KCWI") == expected
    assert await db.read(store.since, "HIRES") == started  # an empty ledger of its own


async def test_the_first_start_is_remembered(db: Database, store: Store) -> None:
    before = (await db.read(store.source_rows))["kcwi_blue"].first_start
    await db.write(store.hold, "pause", "kcwi_blue", ("sre", "dome"))
    await db.write(store.start_sources, ["kcwi_blue", "esi"])
    rows = await db.read(store.source_rows)
    assert rows["kcwi_blue"].first_start == before
    assert (await db.read(store.audit.held)).keys() == {"kcwi_blue"}
    assert rows["esi"].first_start > before


async def test_resend_announces_what_the_ledger_has_again(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    files = [new_file(f"{n}.fits", detected=NOON + timedelta(hours=n)) for n in range(3)]
    for file in files:
        await db.write(store.accept, file, "")
    while job := await db.write(store.queue.claim, "announce"):
        await db.write(store.announced, job, job.key)
    assert await db.write(store.resend, "KCWI", NOON + timedelta(hours=1)) == 2
    assert set(await queued(db, "announce")) == {file.frame_id for file in files[1:]}
    assert await db.write(store.resend, "ESI", NOON) == 0


async def test_one_rescan_waits_at_a_time(db: Database, store: Store) -> None:
    for _ in range(3):
        await db.write(store.plan_rescan, "KCWI", {})
        await db.write(store.plan_rescan, "KCWI", {"directory": "/s/sdata1400/a"})
        await db.write(store.plan_rescan, "ESI", {})
    assert len(await queued(db, "rescan")) == 3


async def test_an_operators_rescan_is_not_lost_behind_the_planned_one(
    db: Database, store: Store
) -> None:
    await db.write(store.plan_rescan, "KCWI", {})
    await db.write(store.plan_rescan, "KCWI", {"since": "2025-01-01T00:00:00Z", "resend": True})
    payloads = await db.read(lambda s: list(s.scalars(select(jobs.c.payload))))
    assert any(payload.get("resend") for payload in payloads), payloads


async def test_triggers_are_paged_newest_first(db: Database, store: Store) -> None:
    def many(session: Session) -> None:
        for n in range(105):
            store.hear(session, broadcast(f"/s/sdata1400/{n}.fits"), "")

    await db.write(many)
    first = await db.read(store.triggers, None, None, None)
    rest = await db.read(store.triggers, None, None, first[-1].id)
    numbers = [int(row.value.split("/")[-1].removesuffix(".fits")) for row in first + rest]
    assert numbers == list(range(104, -1, -1))
    (one,) = await db.read(store.triggers, "kcwi_blue", "/s/sdata1400/7.fits", None)
    assert one.value == "/s/sdata1400/7.fits"
    assert await db.read(store.triggers, "kcwi_red", None, None) == []
