"""The preparer's ledger on both engines: known by what was read, generations (design 4)."""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from koa_preparer.errors import NotAnEnd, UnknownFrame
from koa_preparer.store import File, Store, jobs, outbox
from koa_shared.contracts import Event, FilePrepared, FileWritten, Finding, Status, Timeline
from koa_shared.db import Database
from koa_shared.errors import LeaseLost
from koa_shared.jobs.outbox import Outbox
from koa_shared.jobs.queue import Job, JobQueue
from koa_shared.jobs.workshop import Failure

NOON = datetime(2025, 12, 8, 12, 0, 0, tzinfo=UTC)
OpenDatabase = Callable[..., Database]
MakeFile = Callable[..., FileWritten]
Make = Callable[..., FilePrepared]
BAD = Finding(code="BAD", severity="invalid", step="rules", message="bad")


@pytest.fixture
def db(database: OpenDatabase) -> Database:
    return database("preparer")


@pytest.fixture
def store() -> Store:
    return Store(JobQueue(jobs), Outbox(outbox))


async def announce(db: Database, store: Store, file: FileWritten) -> tuple[bool, File]:
    return await db.write(store.announce, file, "")


async def started(db: Database, store: Store, file: FileWritten) -> Job:
    """Announce a file and start on it."""
    await announce(db, store, file)
    job = await db.write(store.queue.claim, "prepare")
    assert job is not None
    await db.write(store.start, job)
    return job


async def told(db: Database) -> list[Event]:
    payloads = select(outbox.c.payload).order_by(outbox.c.id)
    rows = await db.read(lambda s: list(s.scalars(payloads)))
    return [Event.model_validate(row) for row in rows]


async def queued(db: Database) -> list[tuple[str, str]]:
    pairs = select(jobs.c.queue, jobs.c.key).order_by(jobs.c.id)
    return [(row[0], row[1]) for row in await db.read(lambda s: s.execute(pairs).all())]


async def row_of(db: Database, store: Store, file: FileWritten) -> File:
    return await db.read(store.file, file.frame_id)


FIXED: dict[str, Any] = {
    "koaid": "KB.20251208.43200.00", "facts": {"weather": None}, "raw_sha256": "a" * 64,
    "read_size": 5760, "read_mtime_ns": 1_765_195_200_000_000_000,
}  # fmt: skip


async def transferred(db: Database, store: Store, file: FileWritten, make: Make) -> None:
    job = await started(db, store, file)
    await db.write(store.transferring, job, Timeline(process_end=NOON), **FIXED)
    await db.write(store.transferred, job, make(file), None)


async def test_announced_twice_is_one_frame(db: Database, store: Store, new_file: MakeFile) -> None:
    file = new_file()
    fresh, row = await announce(db, store, file)
    assert (fresh, row.status, row.generation) == (True, "QUEUED", 1)
    fresh, row = await announce(db, store, file)
    assert (fresh, row.frame_id) == (False, file.frame_id)
    assert await queued(db) == [("prepare", f"{file.frame_id}:1")]


async def test_announced_by_many_at_once(
    database: OpenDatabase, db: Database, store: Store, new_file: MakeFile
) -> None:
    both = [db, database("preparer")]
    answers = await asyncio.gather(*(announce(both[n % 2], store, new_file()) for n in range(6)))
    assert sorted(fresh for fresh, _ in answers) == [False] * 5 + [True]
    assert len(await queued(db)) == 1


async def test_what_equals_what_was_read_is_the_same_frame(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    """Announced while it was written; the rescan announces it again, whole."""
    early = new_file(size=2880, mtime_ns=1)
    job = await started(db, store, early)
    await db.write(store.transferring, job, Timeline(), **FIXED)
    whole = new_file(size=FIXED["read_size"], mtime_ns=FIXED["read_mtime_ns"])
    assert whole.frame_id != early.frame_id
    fresh, row = await announce(db, store, whole)
    assert (fresh, row.frame_id) == (False, early.frame_id)
    for other in (
        new_file(size=5761, mtime_ns=FIXED["read_mtime_ns"]),
        new_file(size=5760, mtime_ns=FIXED["read_mtime_ns"] + 1),
        new_file("other.fits", size=5760, mtime_ns=FIXED["read_mtime_ns"]),
    ):
        assert (await announce(db, store, other))[0]


async def test_an_unknown_frame(db: Database, store: Store) -> None:
    with pytest.raises(UnknownFrame):
        await db.read(store.file, "nobody")


async def test_science_first_and_sizes_are_admitted(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    order = [("recovered", 3), ("live", 1), ("reprocess", 4), ("manual", 2), ("canary", 5)]
    for origin, n in order:  # all of this very moment
        file = new_file(f"{n}.fits", origin=origin, size=n, mtime_ns=time.time_ns())
        await announce(db, store, file)
    found = []
    while job := await db.write(store.queue.claim, "prepare"):
        found.append(job.size)
    assert found == [5, 1, 2, 3, 4]


async def test_a_start_is_told_once(db: Database, store: Store, new_file: MakeFile) -> None:
    file = new_file()
    job = await started(db, store, file)
    before = (await row_of(db, store, file)).timeline
    assert before.keys() == {"detected", "queued", "process_start"}
    await db.write(store.start, job)  # a second attempt
    assert (await row_of(db, store, file)).timeline == before
    assert [(event.status, event.seq) for event in await told(db)] == [("PROCESSING", 1)]


async def test_since_when_it_has_not_grown(db: Database, store: Store, new_file: MakeFile) -> None:
    job = await started(db, store, new_file())
    first = await db.write(store.seen, job, 100)
    assert await db.write(store.seen, job, 100) == first
    await asyncio.sleep(0.01)
    grown = await db.write(store.seen, job, 200)
    assert grown > first
    assert await db.write(store.seen, job, 200) == grown
    await asyncio.sleep(0.01)
    assert await db.write(store.seen, job, 100) > grown  # shrunk is changed, too


async def test_what_a_second_attempt_must_use_is_fixed(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    file = new_file()
    job = await started(db, store, file)
    await db.write(store.transferring, job, Timeline(acquired=NOON), **FIXED)
    row = await row_of(db, store, file)
    assert {name: getattr(row, name) for name in FIXED} == FIXED
    assert (row.status, row.step) == ("TRANSFERRING", "upload")
    event = (await told(db))[-1]
    assert (event.status, event.koaid, event.timeline.acquired) == (
        "TRANSFERRING", FIXED["koaid"], NOON,
    )  # fmt: skip
    later = Timeline(acquired=NOON + timedelta(seconds=9))
    await db.write(store.transferring, job, later, **FIXED)
    assert (await row_of(db, store, file)).timeline["acquired"].startswith("2025-12-08T12:00:00")


async def test_a_lost_lease_fixes_and_tells_nothing(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file = new_file()
    job = await started(db, store, file)
    await db.write(store.queue.drop, "prepare", job.key)
    before = await row_of(db, store, file), await told(db)
    for lost in (
        (store.start, job), (store.seen, job, 1), (store.transferring, job, Timeline()),
        (store.transferred, job, new_prepared(file), None),
        (store.end, job, Status.INVALID, [BAD]), (store.handed_over, job, NOON),
    ):  # fmt: skip
        with pytest.raises(LeaseLost):
            await db.write(*lost)
    assert (await row_of(db, store, file), await told(db)) == before
    assert await queued(db) == []


async def test_transferred_asks_for_the_hand_over(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file = new_file()
    job = await started(db, store, file)
    await db.write(store.transferring, job, Timeline(), **FIXED)
    prepared = new_prepared(file)
    await db.write(store.transferred, job, prepared, 30.0)
    row = await row_of(db, store, file)
    assert row.status == "TRANSFERRED"
    assert FilePrepared.model_validate(row.prepared) == prepared
    assert [queue for queue, _ in await queued(db)] == ["handover", "enrich"]
    assert await db.write(store.queue.claim, "enrich") is None  # not before its time
    handover = await db.write(store.queue.claim, "handover")
    assert handover is not None
    await db.write(store.handed_over, handover, NOON)
    assert [queue for queue, _ in await queued(db)] == ["enrich"]
    assert (await row_of(db, store, file)).timeline["notified"]


async def test_numbers_of_events_rise(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file = new_file()
    await transferred(db, store, file, new_prepared)
    await db.write(store.again, file.frame_id, "reprocess", {}, ("sre", "why"))
    events = await told(db)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [(event.generation, event.status) for event in events] == [
        (1, "PROCESSING"), (1, "TRANSFERRING"), (1, "TRANSFERRED"), (2, "PROCESSING"),
    ]  # fmt: skip


async def test_a_failed_attempt_keeps_the_status_until_it_is_parked(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    file = new_file()
    job = await started(db, store, file)
    for attempt, delay, status in ((1, 2.0, "PROCESSING"), (5, None, "ERROR")):
        failure = Failure(ValueError(), attempt, delay)
        await db.write(store.note, job, BAD, failure)
        row, event = await row_of(db, store, file), (await told(db))[-1]
        assert (row.status, event.status, event.attempt) == (status, status, attempt)
        assert (event.next_attempt_at is None) is (delay is None)
        assert event.findings == [BAD]
    assert [row.frame_id for row in await db.read(store.parked)] == [file.frame_id]


@pytest.mark.parametrize("verb", ["retry", "release", "reprocess"])
async def test_an_end_is_left_by_a_new_generation(
    db: Database, store: Store, new_file: MakeFile, verb: str
) -> None:
    file = new_file()
    job = await started(db, store, file)
    await db.write(store.end, job, Status.INVALID, [BAD])
    assert await queued(db) == []
    order = {"waive": ["BAD"]}
    row = await db.write(store.again, file.frame_id, verb, order, ("sre", "because"))
    assert (row.generation, row.status, row.findings) == (2, "QUEUED", [])
    assert row.options == {"waive": {"BAD": "sre: because"}}
    assert (row.facts, row.prepared) == (None, None)
    assert (row.origin == "reprocess") is (verb == "reprocess")
    assert await queued(db) == [("prepare", f"{file.frame_id}:2")]
    [deed] = await db.read(store.audit.last, file.frame_id)
    assert await db.read(store.audit.last, "another") == []
    assert (deed["who"], deed["verb"], deed["why"]) == ("sre", verb, "because")
    assert deed["changed"] == {"generation": 1, "status": "INVALID", "waive": ["BAD"]}
    job2 = await db.write(store.queue.claim, "prepare")
    assert job2 is not None
    await db.write(store.start, job2)
    assert (await told(db))[-1].generation == 2


async def test_what_is_on_its_way_is_left_alone(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    file = new_file()
    job = await started(db, store, file)
    with pytest.raises(NotAnEnd):
        await db.write(store.again, file.frame_id, "retry", {}, ("sre", ""))
    await db.write(store.end, job, Status.ERROR, [BAD])  # undisturbed
    await db.write(store.again, file.frame_id, "retry", {}, ("sre", ""))
    with pytest.raises(NotAnEnd):
        await db.write(store.again, file.frame_id, "retry", {}, ("sre", ""))


async def test_a_new_generation_ends_the_old_ones_hand_over(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file = new_file()
    await transferred(db, store, file, new_prepared)
    old = await db.write(store.queue.claim, "handover")
    assert old is not None
    await db.write(store.again, file.frame_id, "reprocess", {}, ("sre", ""))
    with pytest.raises(LeaseLost):
        await db.write(store.handed_over, old, NOON)
    assert await queued(db) == [("prepare", f"{file.frame_id}:2")]


async def test_paused_instruments_are_remembered(db: Database, store: Store) -> None:
    assert await db.read(store.audit.held) == {}
    for _ in range(2):
        await db.write(store.hold, "pause", "KCWI", ("sre", "dome"))
    held = await db.read(store.audit.held)
    assert held.keys() == {"KCWI"}
    assert re.fullmatch(r"by sre since \d{4}-\d\d-\d\d \d\d:\d\d UTC: dome", held["KCWI"])
    for _ in range(2):
        await db.write(store.hold, "resume", "KCWI", ("sre", ""))
    assert await db.read(store.audit.held) == {}
    deeds = [(d["verb"], d["why"]) for d in await db.read(store.audit.last, "KCWI")]
    assert deeds == [("resume", "")] * 2 + [("pause", "dome")] * 2


async def test_resend_hands_over_again(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file = new_file()
    await transferred(db, store, file, new_prepared)
    job = await db.write(store.queue.claim, "handover")
    assert job is not None
    await db.write(store.handed_over, job, NOON)
    deed = ("sre", "restored from the backup")
    assert await db.write(store.resend, NOON + timedelta(seconds=1), deed) == 0
    assert await db.write(store.resend, NOON - timedelta(seconds=1), deed) == 1
    deeds = await db.read(store.audit.last)
    assert [(d["verb"], d["why"], d["changed"]) for d in deeds] == [
        ("resend", deed[1], {"count": 1}), ("resend", deed[1], {"count": 0}),
    ]  # fmt: skip
    assert await queued(db) == [("handover", f"{file.frame_id}:1")]


async def test_resend_tells_again_what_ended_here(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    """A restored catalogue never heard of them: nobody could say where the file is."""
    file = new_file()
    job = await started(db, store, file)
    await db.write(store.end, job, Status.INVALID, [BAD])
    before = await told(db)
    assert await db.write(store.resend, NOON + timedelta(seconds=1), ("sre", "")) == 0
    assert await db.write(store.resend, NOON - timedelta(seconds=1), ("sre", "")) == 1
    last = (await told(db))[-1]
    assert (last.status, last.step, last.findings) == (Status.INVALID, "rules", [BAD])
    assert last.timeline.queued is not None
    assert last.seq == before[-1].seq + 1  # no repeat: the catalogue may know the old one
    row = await row_of(db, store, file)
    assert (row.status, len(row.findings)) == (Status.INVALID, 1)
    assert await queued(db) == []


async def test_of_two_orders_at_once_one_is_refused(
    db: Database, store: Store, new_file: MakeFile
) -> None:
    file = new_file()
    job = await started(db, store, file)
    await db.write(store.end, job, Status.INVALID, [BAD])
    begun = threading.Event()

    def release(session: Any) -> None:
        store.again(session, file.frame_id, "release", {"waive": ["BAD"]}, ("sre", "why"))
        session.flush()
        begun.set()
        time.sleep(0.5)

    first = asyncio.create_task(db.write(release))
    await asyncio.to_thread(begun.wait)
    with pytest.raises(NotAnEnd):
        await db.write(store.again, file.frame_id, "reprocess", {}, ("sre", "campaign 1"))
    await first
    assert (await row_of(db, store, file)).options == {"waive": {"BAD": "sre: why"}}
