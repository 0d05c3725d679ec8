"""The catalogue on both engines: events, hand-over, versions, filters, the stream."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy.event import listen
from sqlmodel import Session, col, select, update

from koa_ingestor.errors import VerificationFailed
from koa_ingestor.pipeline import Verdict, archive_key
from koa_ingestor.store import Store
from koa_ingestor.store.schema import Frame, Stream, jobs
from koa_shared.contracts import (
    Event,
    EventBatch,
    FilePrepared,
    FileWritten,
    Finding,
    Inventory,
    SourceState,
    Status,
    Timeline,
    utcnow,
)
from koa_shared.db import Database
from koa_shared.errors import LeaseLost, Rejected
from koa_shared.jobs.queue import Job, JobQueue
from koa_shared.jobs.workshop import Failure, Lane, Workshop
from koa_shared.metrics import Metrics
from koa_shared.retry import Circuits
from koa_shared.web import Caller

NOON = datetime(2025, 12, 8, 12, 0, 0, tzinfo=UTC)
KOAID = "KB.20251208.43200.00"
OPERATOR, PUBLIC = Caller(name="sre", role="operator"), Caller()
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

OpenDatabase = Callable[..., Database]
MakeFile = Callable[..., FileWritten]
MakeEvent = Callable[..., Event]
Make = Callable[..., FilePrepared]


@pytest.fixture
def db(database: OpenDatabase) -> Database:
    return database("ingestor")


@pytest.fixture
def store() -> Store:
    return Store(JobQueue(jobs), list)


async def tell(db: Database, store: Store, *events: Event) -> int:
    return await db.write(store.apply, EventBatch(events=list(events)))


async def frame_of(db: Database, store: Store, name: str) -> Frame:
    return await db.read(store.find, name)


async def ingest(db: Database, store: Store, prepared: FilePrepared) -> Job:
    """Hand a frame over and claim its job."""
    await db.write(store.hand_over, prepared, "")
    job = await db.write(store.queue.claim, "ingest")
    assert job is not None
    assert job.key == f"{prepared.frame_id}:{prepared.generation}"
    return job


def _run(session: Session, statement: Any) -> None:
    session.execute(statement)


async def archive(db: Database, store: Store, prepared: FilePrepared) -> int:
    """Take a frame the whole way; return its version."""
    job = await ingest(db, store, prepared)
    _, verdict, held = await db.write(store.begin, job)
    assert verdict in (Verdict.NEW, Verdict.RESUME)
    assert held is not None
    await db.write(store.commit, job, prepared, held.version, Timeline())
    return held.version


def whole(frame: Frame) -> dict[str, Any]:
    return frame.model_dump(exclude={"updated", "findings"}) | {
        "codes": sorted(finding["code"] for finding in frame.findings)
    }


# Events.


def life(new_event: MakeEvent, file: FileWritten) -> list[Event]:
    """A monitor's and a preparer's events of one generation, with a failed attempt."""
    warning = {"code": "W", "severity": "warning", "step": "read", "message": "w"}
    later = {"attempt": 1, "next_attempt_at": NOON + timedelta(seconds=9)}
    return [
        new_event(
            file, "QUEUED", 0, service="monitor", timeline={"detected": NOON, "queued": NOON}
        ),
        new_event(file, "PROCESSING", 1, timeline={"process_start": NOON}),
        new_event(file, "PROCESSING", 2, findings=[warning], **later),
        new_event(file, "TRANSFERRING", 3, timeline={"acquired": NOON, "process_end": NOON}),
        new_event(file, "TRANSFERRED", 4, koaid=KOAID, timeline={"transfer_end": NOON}),
    ]


async def test_events_out_of_order_and_repeated_come_to_the_same(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    chance, found = random.Random(1), []
    orders = [range(5), [4, 3, 2, 1, 0], *chance.sample(list(permutations(range(5))), 6)]
    for n, order in enumerate(orders):
        events = life(new_event, new_file(path="/s/sdata1400/a.fits", size=n + 1))
        for at in order:
            assert await tell(db, store, events[at]) == 1
        assert await tell(db, store, *chance.sample(events, 5)) == 0
        found.append(whole(await frame_of(db, store, events[0].frame_id)))
        del found[-1]["frame_id"]
        assert found[-1] | {"source": "", "step": ""} == found[0] | {"source": "", "step": ""}
    assert (found[0]["status"], found[0]["codes"]) == ("TRANSFERRED", ["W"])
    assert (found[0]["koaid"], found[0]["acquired"]) == (KOAID, NOON)
    assert found[0]["next_attempt_at"] is None


async def test_a_clock_that_was_set_is_noted_once(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    events = life(new_event, new_file())
    ahead = NOON + timedelta(hours=1)
    early = new_event(
        new_file(), "QUEUED", 0, service="monitor", timeline={"detected": ahead, "queued": NOON}
    )
    await tell(db, store, early, *events[1:])
    found = (await frame_of(db, store, early.frame_id)).findings
    assert [f["code"] for f in found if f["code"] == "CLOCK_SKEW"] == ["CLOCK_SKEW"]
    await tell(db, store, *life(new_event, new_file(size=7)))
    [other] = [
        f
        for f in await db.read(lambda s: s.exec(select(Frame)).all())
        if f.frame_id != early.frame_id
    ]
    assert "CLOCK_SKEW" not in [f["code"] for f in other.findings]


async def test_a_failed_attempt_keeps_the_status_and_tells_when(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    events = life(new_event, new_file())
    await tell(db, store, *events[:3])
    frame = await frame_of(db, store, events[0].frame_id)
    assert (frame.status, frame.attempt) == ("PROCESSING", 1)
    assert frame.next_attempt_at == NOON + timedelta(seconds=9)


async def test_an_event_for_an_unknown_frame_makes_its_row(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    file = new_file("kb0042.fits")
    reason = {"code": "TRUNCATED", "severity": "invalid", "step": "read", "message": "cut"}
    await tell(db, store, new_event(file, "INVALID", 3, findings=[reason]))
    frame = await frame_of(db, store, file.frame_id)
    assert (frame.status, frame.path, frame.name) == ("INVALID", file.path, "kb0042.fits")
    assert (frame.night, frame.instrument) == ("2025-12-08", "KCWI")


async def test_what_comes_late_of_an_older_generation_changes_nothing(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    file = new_file()
    await tell(db, store, new_event(file, "INVALID", 5))
    await tell(db, store, new_event(file, "PROCESSING", 6, generation=2))
    before = whole(await frame_of(db, store, file.frame_id))
    assert before["status"] == "PROCESSING"
    bad = {"code": "OLD", "severity": "error", "step": "read", "message": ""}
    await tell(db, store, new_event(file, "ERROR", 4, findings=[bad]))
    assert whole(await frame_of(db, store, file.frame_id)) == before


async def test_a_service_sets_only_its_own(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    file = new_file()
    await tell(db, store, new_event(file, "QUEUED", 0, service="monitor"))
    for seq, (service, status) in enumerate(
        [("monitor", "COMPLETE"), ("preparer", "COMPLETE"), ("monitor", "PROCESSING")], 10
    ):
        await tell(db, store, new_event(file, status, seq, service=service))
        assert (await frame_of(db, store, file.frame_id)).status == "QUEUED"


async def test_a_late_failed_attempt_does_not_haunt_an_ended_frame(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make, new_event: MakeEvent
) -> None:
    """The outbox was behind: the hand-over overtook the event of a failed attempt."""
    file = new_file()
    await archive(db, store, new_prepared(file))
    later = {"attempt": 1, "next_attempt_at": NOON + timedelta(seconds=9)}
    await tell(db, store, new_event(file, "PROCESSING", 2, **later))
    frame = await frame_of(db, store, file.frame_id)
    assert (frame.status, frame.attempt, frame.next_attempt_at) == ("COMPLETE", 0, None)


async def test_sources_and_inventories_are_kept(db: Database, store: Store) -> None:
    state = SourceState(name="esi", instrument="ESI", connected=True)
    seen = Inventory(night="2025-12-08", instrument="ESI", on_disk=3, announced=2)
    for connected in (True, False):
        one = state.model_copy(update={"connected": connected})
        await db.write(store.apply, EventBatch(sources=[one], inventory=seen))
    rows = (await db.read(store.overview, None))["sources"]
    assert [row["connected"] for row in rows] == [False]
    other = seen.model_copy(update={"night": "2025-12-07", "on_disk": 9})
    await db.write(store.apply, EventBatch(inventory=other))
    told = await db.read(store.night, "2025-12-08", Caller(role="operator"))
    assert [(i.instrument, i.inventory and i.inventory.on_disk) for i in told.instruments] == [
        ("ESI", 3)
    ]


# Hand-over.


async def test_the_first_hand_over_wins(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    first, second = new_prepared(new_file()), new_prepared(new_file(), raw="b", attempt=2)
    fresh, frame = await db.write(store.hand_over, first, "")
    assert (fresh, frame.status) == (True, Status.TRANSFERRED)
    for again in (first, second):
        fresh, frame = await db.write(store.hand_over, again, "")
        assert (fresh, frame.status, frame.generation) == (False, "TRANSFERRED", 1)
    job = await db.write(store.queue.claim, "ingest")
    assert job is not None
    assert await db.write(store.queue.claim, "ingest") is None
    prepared, _, _ = await db.write(store.begin, job)
    assert prepared == first


async def test_of_hand_overs_at_once_one_is_fresh(
    database: OpenDatabase, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    one, two = database("ingestor"), database("ingestor")
    file = new_file()
    both = [
        db.write(store.hand_over, new_prepared(file, attempt=n + 1), "")
        for n, db in enumerate([one, two, one, two])
    ]
    assert sorted(fresh for fresh, _ in await asyncio.gather(*both)) == [False] * 3 + [True]


async def test_a_hand_over_supersedes_older_generations(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file = new_file()
    old = await ingest(db, store, new_prepared(file))
    fresh, frame = await db.write(store.hand_over, new_prepared(file, 2), "")
    assert (fresh, frame.generation, frame.status) == (True, 2, "TRANSFERRED")
    with pytest.raises(LeaseLost):
        await db.write(store.queue.finish, old)
    fresh, frame = await db.write(store.hand_over, new_prepared(file, 1, attempt=9), "")
    assert (fresh, frame.generation) == (False, 2)


async def test_a_generation_far_ahead_holds_the_writer_up_for_no_time(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    with pytest.raises(ValidationError):
        new_prepared(new_file(), 10**12)
    prepared = new_prepared(new_file(), 3)
    await ingest(db, store, prepared)
    ahead = new_prepared(new_file(), 1_000_000)
    async with asyncio.timeout(2):  # a million statements take more than 30 s
        await db.write(store.hand_over, ahead, "")
    waiting = await db.read(lambda session: session.scalars(select(jobs.c.key)).all())
    assert waiting == [f"{prepared.frame_id}:1000000"]


async def test_events_after_the_hand_over_do_not_move_back(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make, new_event: MakeEvent
) -> None:
    file = new_file()
    await archive(db, store, new_prepared(file))
    await tell(db, store, *life(new_event, file))
    frame = await frame_of(db, store, file.frame_id)
    assert (frame.status, frame.version) == ("COMPLETE", 1)
    assert {"queued", "process_start", "transfer_end", "available"} <= frame.timeline.keys()


# Versions.


async def test_nothing_is_visible_before_the_commit(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    prepared = new_prepared(new_file())
    job = await ingest(db, store, prepared)
    _, verdict, held = await db.write(store.begin, job)
    assert (verdict, held and held.version) == (Verdict.NEW, 1)
    frame = await frame_of(db, store, prepared.frame_id)
    assert (frame.status, frame.version, frame.products) == ("INGESTING", None, [])
    for number in (None, 1):
        assert (await db.read(store.holding, frame.frame_id, number))[1] is None
    await db.write(store.commit, job, prepared, 1, Timeline(copy_end=NOON))
    frame = await frame_of(db, store, KOAID)
    assert (frame.frame_id, frame.status, frame.version) == (prepared.frame_id, "COMPLETE", 1)
    kept = (await db.read(store.holding, frame.frame_id, None))[1]
    assert kept is not None
    assert kept.header == [["SIMPLE", True, ""]]
    assert kept.committed_at == datetime.fromisoformat(frame.timeline["available"])


async def test_after_a_crash_the_claim_is_resumed(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    prepared = new_prepared(new_file())
    crashed = await ingest(db, store, prepared)
    await db.write(store.begin, crashed)
    await db.write(store.queue.again, crashed, 0.0, "crash")
    job = await db.write(store.queue.claim, "ingest")
    assert job is not None
    _, verdict, held = await db.write(store.begin, job)
    assert (verdict, held and held.version) == (Verdict.RESUME, 1)
    await db.write(store.commit, job, prepared, 1, Timeline())
    with pytest.raises(LeaseLost):
        await db.write(store.commit, job, prepared, 1, Timeline())


async def test_a_new_generation_is_the_next_version_and_the_old_stays(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file = new_file()
    assert await archive(db, store, new_prepared(file)) == 1
    assert await archive(db, store, new_prepared(file, 2)) == 2
    frame = await frame_of(db, store, KOAID)
    assert (frame.version, frame.generation) == (2, 2)
    old, new = [(await db.read(store.holding, frame.frame_id, number))[1] for number in (1, 2)]
    assert old is not None
    assert new is not None
    assert (old.generation, new.generation) == (1, 2)
    assert old.products[0]["key"] != new.products[0]["key"]
    assert (await db.read(store.holding, frame.frame_id, 3))[1] is None


async def test_a_version_that_never_became_one_makes_room(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    """Also when the next generation has another KOAID: nobody waits for it for ever.

    Its number is not given again: who began with it may still be writing under it.
    """
    file, other = new_file(), new_file("kb0002.fits")
    job = await ingest(db, store, new_prepared(file))
    await db.write(store.begin, job)
    await db.write(store.queue.drop, "ingest", job.key)
    padded = "KB.20251208.43200.08"
    assert await archive(db, store, new_prepared(file, 2, koaid=padded)) == 1
    assert await archive(db, store, new_prepared(other, raw="b")) == 2


async def test_a_file_that_the_preparer_refuses_waits_for_an_operator(
    db: Database, store: Store, new_file: MakeFile, new_event: Callable[..., Event]
) -> None:
    file, refusal = new_file(), {"code": "ANNOUNCE_REFUSED", "severity": "error", "message": ""}
    told = [
        new_event(file, "QUEUED", 0, step="announce", service="monitor"),
        new_event(
            file, "QUEUED", 1, step="refused", service="monitor",
            findings=[refusal | {"step": "refused"}],
        ),
    ]  # fmt: skip
    await db.write(store.apply, EventBatch(events=told))
    assert [row.frame_id for row in await db.read(store.parked)] == [file.frame_id]
    again = new_event(file, "PROCESSING", 1)
    await db.write(store.apply, EventBatch(events=[again]))
    assert await db.read(store.parked) == []


async def test_what_is_on_its_way_is_told_by_its_oldest_frame(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    def acquired(minute: int) -> dict[str, Any]:
        return {"timeline": {"acquired": NOON + timedelta(minutes=minute)}}

    one, two, three, four, five = (new_file(f"kb{n}.fits") for n in range(5))
    told = [
        new_event(one, "PROCESSING", step="read", **acquired(2)),
        new_event(two, "PROCESSING", step="read", **acquired(1)),
        new_event(three, "TRANSFERRING", step="upload", origin="canary", **acquired(3)),
        new_event(four, "PROCESSING", step="read", generation=2, **acquired(0)),  # asked anew
        new_event(five, "ERROR", step="read", **acquired(0)),  # at an end
    ]
    refused = new_file("kb9.fits")
    told.append(new_event(refused, "QUEUED", step="refused", service="monitor", **acquired(0)))
    manual = new_file("kb8.fits", origin="manual")
    told.append(new_event(manual, "PROCESSING", step="read", **acquired(0)))
    await tell(db, store, *told)
    found = [tuple(row) for row in await db.read(store.unfinished)]
    assert sorted(found) == [
        ("KCWI", "read", NOON + timedelta(minutes=1)),
        ("KCWI", "upload", NOON + timedelta(minutes=3)),
    ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_what_is_on_its_way_is_found_by_an_index(db: Database, store: Store) -> None:
    def plan(session: Session) -> str:
        asked: list[tuple[str, Any]] = []
        listen(session.get_bind(), "before_cursor_execute", lambda *a: asked.append((a[2], a[3])))
        store.unfinished(session)
        query, values = asked[-1]
        link = session.connection().connection.cursor()
        return str(link.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall())

    assert "USING INDEX frame_status" in await db.read(plan)


async def turned_away(
    db: Database, store: Store, prepared: FilePrepared
) -> tuple[Verdict, int | None]:
    job = await ingest(db, store, prepared)
    _, verdict, held = await db.write(store.begin, job)
    assert held is not None
    finding = Finding(code="DUPLICATE_KOAID", severity="invalid", step="claim", message="")
    status = Status.DUPLICATE if verdict is Verdict.DUPLICATE else Status.INVALID
    await db.write(store.end, job, finding, status)
    return verdict, held.version


async def test_same_raw_is_a_duplicate_and_claims_nothing(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    await archive(db, store, new_prepared(new_file()))
    twin = new_prepared(new_file("copy.fits"))
    assert await turned_away(db, store, twin) == (Verdict.DUPLICATE, 1)
    assert (await frame_of(db, store, twin.frame_id)).status == "DUPLICATE"
    assert (await frame_of(db, store, KOAID)).frame_id != twin.frame_id


async def test_a_conflict_that_is_accepted_is_the_next_version(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    await archive(db, store, new_prepared(new_file()))
    other = new_prepared(new_file("kb0002.fits"), raw="b")
    assert await turned_away(db, store, other) == (Verdict.CONFLICT, 1)
    assert (await frame_of(db, store, other.frame_id)).status == "INVALID"
    frame = await db.write(store.reopen, other.frame_id, "accept", ("op", "rewritten"))
    assert frame.status == Status.TRANSFERRED
    assert [deed["verb"] for deed in await db.read(store.audit.last)] == ["accept"]
    job = await db.write(store.queue.claim, "ingest")
    assert job is not None
    _, verdict, held = await db.write(store.begin, job)
    assert (verdict, held and held.version) == (Verdict.NEW, 2)
    await db.write(store.commit, job, other, 2, Timeline())
    newest = await frame_of(db, store, KOAID)
    assert (newest.frame_id, newest.version) == (other.frame_id, 2)


async def test_two_claims_of_one_koaid_at_once(
    database: OpenDatabase, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    one, two = database("ingestor"), database("ingestor")
    frames = [new_prepared(new_file(f"kb{n}.fits"), raw="abcdef"[n]) for n in range(6)]
    claimed = [await ingest(one, store, frame) for frame in frames]
    begun = await asyncio.gather(
        *(db.write(store.begin, job) for job, db in zip(claimed, [one, two] * 3, strict=True))
    )
    assert sorted(verdict for _, verdict, _ in begun) == ["new"] + ["wait"] * 5


async def test_keys_of_versions_never_meet(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    file, keys = new_file(), set()
    for generation in (1, 2, 3):
        version = await archive(db, store, new_prepared(file, generation))
        keys.add(archive_key(("KCWI", 0, KOAID, version), f"{KOAID}.fits"))
    assert len(keys) == 3


# Lists.

HIDDEN = {
    "program": "2025B_C001", "type": "object", "origin": "live", "name": "kb0001.fits",
    "path": "/s/sdata1400/kcwi1/2025dec08/kb0001.fits",
}  # fmt: skip


@pytest.mark.parametrize(
    ("caller", "release", "sees"),
    [
        (PUBLIC, None, False),
        (PUBLIC, NOON + timedelta(days=36500), False),
        (PUBLIC, NOON - timedelta(days=36500), True),
        (Caller(name="o", role="observer", programs=frozenset({"2025B_C002"})), None, False),
        (Caller(name="o", role="observer", programs=frozenset({"2025B_C001"})), None, True),
        (Caller(name="p", role="producer"), None, False),
        (OPERATOR, None, True),
    ],
)
async def test_conditions_on_hidden_columns(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make,
    caller: Caller, release: datetime | None, *, sees: bool,
) -> None:  # fmt: skip
    await archive(db, store, new_prepared(new_file(), release=release))

    async def found(filters: dict[str, Any]) -> int:
        rows, _ = await db.read(store.frames, filters, caller)
        return len(rows)

    for condition, value in HIDDEN.items():
        assert await found({condition: value}) == int(sees), condition
        assert await found({condition: value, "koaid": KOAID}) == int(sees), condition
        assert await found({condition: "other"}) == 0, condition
    assert await found({"koaid": KOAID, "instrument": "KCWI"}) == 1


async def test_conditions_on_open_columns(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    await archive(db, store, new_prepared(new_file()))
    good = {
        "instrument": "KCWI", "night": "2025-12-08", "status": Status.COMPLETE, "level": 0,
        "koaid": KOAID, "since": NOON,
    }  # fmt: skip
    bad = {
        "instrument": "ESI", "night": "2025-12-09", "status": Status.ERROR, "level": 1,
        "koaid": "KB.20251208.43200.01", "since": NOON + timedelta(seconds=1),
    }  # fmt: skip
    for name, value in good.items():
        assert len((await db.read(store.frames, {name: value}, PUBLIC))[0]) == 1, name
        assert (await db.read(store.frames, {name: bad[name]}, PUBLIC))[0] == [], name


async def test_what_is_released_is_opened_to_searches(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    await archive(db, store, new_prepared(new_file(), release=utcnow() + timedelta(hours=1)))
    await archive(db, store, new_prepared(new_file("kb2.fits"), koaid="KB.20251208.43201.00"))

    async def found() -> int:
        return len((await db.read(store.frames, {"type": "object"}, PUBLIC))[0])

    assert (await db.write(store.release), await found()) == (False, 0)
    late = col(Frame.release_date) > utcnow()
    await db.write(_run, update(Frame).where(late).values(release_date=utcnow()))  # an hour later
    assert await db.write(store.release)
    assert (await db.write(store.release), await found()) == (False, 1)


async def test_pages_of_several_programs_are_one_list(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    mine = Caller(name="o", role="observer", programs=frozenset({"A", "B"}))
    for n in range(24):
        at = {"acquired": NOON + timedelta(seconds=n), "detected": NOON + timedelta(seconds=n)}
        release = NOON - timedelta(days=1) if n % 4 in (0, 1) else None
        prepared = new_prepared(
            new_file(f"kb{n}.fits"), koaid=f"KB.20251208.432{n:02}.00", timeline=at,
            program={"semid": "ABCB"[n % 4], "release_date": release},
        )  # fmt: skip
        await archive(db, store, prepared)
    seen: list[int] = []
    cursor = None
    while not seen or cursor:
        rows, cursor = await db.read(store.frames, {"type": "object", "limit": 5}, mine, cursor)
        seen += [int(row.name[2:-5]) for row in rows]
    assert seen == [n for n in reversed(range(24)) if n % 4 != 2]


async def test_pages_are_stable_when_all_are_acquired_at_once(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    files = [new_file(f"kb{n:04}.fits") for n in range(25)]
    await tell(db, store, *(new_event(file, "PROCESSING") for file in files[:15]))
    at = {"acquired": NOON + timedelta(seconds=1)}
    await tell(db, store, *(new_event(f, "PROCESSING", timeline=at) for f in files[15:]))
    seen: list[str] = []
    cursor = None
    for page in range(4):
        rows, cursor = await db.read(store.frames, {"limit": 7}, PUBLIC, cursor)
        seen += [row.frame_id for row in rows]
        assert (cursor is None) is (page == 3)
        # What is newer comes before what was given out already.
        new = new_file(f"new{page}.fits")
        late = {"acquired": NOON + timedelta(seconds=9)}
        await tell(db, store, new_event(new, "PROCESSING", timeline=late))
    assert len(seen) == len(set(seen)) == 25
    assert set(seen) == {file.frame_id for file in files}
    assert set(seen[:10]) == {file.frame_id for file in files[15:]}


@pytest.mark.parametrize("cursor", ["x", "", "e30=", "WzEsMl0=", "WyJ4IiwieSJd", "\x00", "é"])
async def test_what_is_no_cursor_is_refused(db: Database, store: Store, cursor: str) -> None:
    if not cursor:
        return
    with pytest.raises(Rejected) as caught:
        await db.read(store.frames, {}, PUBLIC, cursor)
    assert caught.value.code == "bad_cursor"


# The stream.


async def test_each_change_is_one_entry_and_repeats_are_none(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    events = life(new_event, new_file())
    await tell(db, store, *events)
    await tell(db, store, *events)
    rows, oldest = await db.read(store.stream_after, 0)
    statuses = ["QUEUED", "PROCESSING", "PROCESSING", "TRANSFERRING", "TRANSFERRED"]
    assert [entry.status for entry, _ in rows] == statuses
    ids = [entry.id or 0 for entry, _ in rows]
    assert ids == sorted(set(ids))
    assert oldest == ids[0]
    assert await db.read(store.stream_end) == ids[-1]
    rest, _ = await db.read(store.stream_after, ids[2])
    assert [entry.id for entry, _ in rest] == ids[3:]


async def test_ids_are_never_given_twice(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    """After a quiet week everything is old; who resumes must still be told what is new."""
    await tell(db, store, *life(new_event, new_file()))
    end = await db.read(store.stream_end)
    await db.write(store.trim_stream, datetime.now(UTC) + timedelta(days=8))
    await tell(db, store, new_event(new_file("new.fits"), "PROCESSING"))
    rows, _ = await db.read(store.stream_after, end)
    assert [(frame.name, entry.id) for entry, frame in rows] == [("new.fits", end + 1)]


@on_postgresql
async def test_ids_are_in_the_order_of_commits(
    database: OpenDatabase, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    """A reader that goes on from the newest id it saw misses nothing."""
    dbs, seen, last = [database("ingestor") for _ in range(3)], list[int](), 0
    events = [new_event(new_file(f"{n}.fits"), "PROCESSING") for n in range(60)]
    done = asyncio.Event()

    async def read() -> None:
        nonlocal last
        while True:
            ended = done.is_set()
            rows, _ = await dbs[2].read(store.stream_after, last)
            seen.extend(entry.id or 0 for entry, _ in rows)
            last = seen[-1] if seen else 0
            if ended and not rows:
                return

    reading = asyncio.create_task(read())
    await asyncio.gather(*(tell(dbs[n % 2], store, event) for n, event in enumerate(events)))
    done.set()
    await reading
    everything = await dbs[0].read(
        lambda s: list(s.exec(select(Stream.id).order_by(col(Stream.id))))
    )
    assert seen == everything
    assert len(seen) == 60


@on_postgresql
async def test_batches_and_hand_overs_at_once_do_not_deadlock(
    database: OpenDatabase, store: Store, new_file: MakeFile, new_prepared: Make,
    new_event: MakeEvent,
) -> None:  # fmt: skip
    """A deadlock's victim would be answered 503 and would open the database's circuit."""
    dbs = [database("ingestor") for _ in range(2)]
    files = [new_file(f"{n}.fits") for n in range(8)]

    async def batch(n: int) -> None:
        order = random.Random(n).sample(files, len(files))
        await tell(dbs[n % 2], store, *(new_event(f, "PROCESSING", n) for f in order))

    async def hand_over(n: int) -> None:
        koaid = f"KB.20251208.4320{n}.00"
        await dbs[n % 2].write(store.hand_over, new_prepared(files[n], koaid=koaid), "")

    work = [batch(n) for n in range(12)] + [hand_over(n) for n in range(8)]
    await asyncio.gather(*work)
    rows, _ = await dbs[0].read(store.frames, {}, PUBLIC)
    assert {row.status for row in rows} == {"TRANSFERRED"}


async def test_a_header_with_anything_in_it_is_stored(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    header = [["OBJECT", "a\x00b", ""], ["X", float("nan"), "\udcff"]]
    metadata = {"object": "a\x00b", "koaimtyp": "object", "ra": None}
    prepared = new_prepared(new_file()).model_copy(update={"header": header, "metadata": metadata})
    await db.write(store.hand_over, prepared, "")
    frame = await frame_of(db, store, prepared.frame_id)
    assert frame.object == "a\\x00b"


async def test_what_no_text_column_takes_is_rejected_or_not_found(
    db: Database, store: Store
) -> None:
    """PostgreSQL refuses a NUL even in a question."""
    with pytest.raises(Rejected):
        await db.read(store.find, "a\x00b")
    with suppress(Rejected):
        assert (await db.read(store.frames, {"path": "a\x00b"}, OPERATOR))[0] == []


# Findings, and what failed alike.


async def named(db: Database, store: Store, caller: Caller = PUBLIC, **filters: Any) -> list[str]:
    """Return the names of all frames that match, page by page."""
    found, cursor = list[str](), None
    while True:
        rows, cursor = await db.read(store.frames, filters | {"limit": 2}, caller, cursor)
        found += [row.name for row in rows]
        if cursor is None:
            return found


async def test_frames_are_found_by_their_findings(
    db: Database, store: Store, new_file: MakeFile, new_event: MakeEvent
) -> None:
    def finding(code: str) -> dict[str, str]:
        return {"code": code, "severity": "warning", "step": "x", "message": code}

    for n in range(5):
        file, at = new_file(f"{n}.fits"), NOON + timedelta(minutes=n)
        told = [finding("ALL"), *([finding("ODD")] if n % 2 else [])]
        early = {"findings": told, "timeline": {"detected": at}}
        await tell(db, store, new_event(file, "PROCESSING", 1, **early))
        await tell(db, store, new_event(file, "PROCESSING", 2, findings=[finding("ODD")][: n % 2]))
    assert await named(db, store, finding="ALL") == [f"{n}.fits" for n in (4, 3, 2, 1, 0)]
    assert await named(db, store, finding="ODD") == ["3.fits", "1.fits"]
    assert await named(db, store, finding="ODD", instrument="HIRES") == []
    assert await named(db, store, finding="OD") == []
    # It was written later than it was heard of, and its next generation has no finding.
    first = new_file("0.fits")
    late = {"acquired": NOON + timedelta(hours=1)}
    await tell(db, store, new_event(first, "PROCESSING", 3, timeline=late))
    assert await named(db, store, finding="ALL") == [f"{n}.fits" for n in (0, 4, 3, 2, 1)]
    third = new_file("3.fits")
    await tell(db, store, new_event(third, "PROCESSING", 4, generation=2))
    assert await named(db, store, finding="ODD") == ["1.fits"]


def failed(attempt: int, delay: float | None) -> Failure:
    return Failure(VerificationFailed("declared 1, archived 2"), attempt, delay, "F-1")


async def test_what_failed_alike_here_is_tried_again_as_one(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make, new_event: MakeEvent
) -> None:
    for n in range(3):
        prepared = new_prepared(new_file(f"{n}.fits"), raw=str(n), koaid=f"KB.20251208.4320{n}.00")
        job = await ingest(db, store, prepared)
        await db.write(store.begin, job)
        finding = failed(5, None).finding("promote")
        await db.write(store.note, job, finding, Status.ERROR, failed(5, None))
        await db.write(store.queue.again, job, None, "why", "F-1")
    # One that the preparer parked is told here too, but it is not ours to try again.
    theirs = new_file("theirs.fits")
    await tell(db, store, new_event(theirs, "ERROR", 1, fingerprint="F-1"))
    rows = await db.read(store.parked)
    assert [row.fingerprint for row in rows] == ["F-1"] * 4
    assert {row.findings[-1]["code"] for row in rows if row.findings} == {"VERIFICATION_FAILED"}
    assert await db.write(store.retry_group, "F-1", ("sre", "a new disk")) == 3
    assert [row.name for row in await db.read(store.parked)] == ["theirs.fits"]
    claimed = [await db.write(store.queue.claim, "ingest") for _ in range(3)]
    assert [(job and job.attempts, job and job.fingerprint) for job in claimed] == [(0, "")] * 3
    deeds = await db.read(store.audit.last)
    assert [(deed["verb"], deed["why"]) for deed in deeds] == [("retry", "a new disk")] * 3


@on_postgresql
async def test_a_hand_over_and_a_failing_ingest_never_wait_for_each_other(
    database: OpenDatabase, db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    """Both lock frames and jobs: in the same order, else PostgreSQL ends one after a while."""
    queue, metrics = store.queue, Metrics("ingestor")
    workshop = Workshop(db, queue, Circuits(metrics), metrics)
    patient = "ALTER DATABASE \"{}\" SET deadlock_timeout = '20s'"
    with db.engine.begin() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        connection.exec_driver_sql(patient.format(name))
    db.engine.dispose()  # new connections have it
    noted, other = threading.Event(), database("ingestor")

    def note(session: Session, job: Job, failure: Failure) -> None:
        noted.set()
        time.sleep(0.3)  # the hand-over has begun, and waits for whatever we hold
        store.note(session, job, failure.finding("promote"), None, failure)

    async def fail(job: Job) -> None:
        raise VerificationFailed("no")

    lane = Lane("ingest", fail, note)
    file = new_file()
    job = await ingest(db, store, new_prepared(file))
    failing = asyncio.create_task(workshop._failed(lane, job, VerificationFailed("no")))
    await asyncio.to_thread(noted.wait)
    begun = time.monotonic()
    fresh, frame = await other.write(store.hand_over, new_prepared(file, 2), "")
    with suppress(LeaseLost):
        await failing
    assert (fresh, frame.generation) == (True, 2)
    assert time.monotonic() - begun < 10


async def test_a_restored_frame_is_available_after_it_was_sent(
    db: Database, store: Store, new_file: MakeFile, new_prepared: Make
) -> None:
    """The bucket tells whole seconds: that is no clock that was set."""
    sent = NOON + timedelta(milliseconds=700)
    prepared = new_prepared(new_file(), timeline=Timeline(acquired=NOON, transfer_start=sent))
    await db.write(store.restore, prepared, 1, NOON)
    frame = await frame_of(db, store, prepared.frame_id)
    assert (frame.status, frame.version) == ("COMPLETE", 1)
    assert Timeline.model_validate(frame.timeline).available == sent
    assert "CLOCK_SKEW" not in [finding["code"] for finding in frame.findings]
