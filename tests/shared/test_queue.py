"""The one durable queue, on both engines (design 5)."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, pairwise, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData, delete, func, select, update
from sqlmodel import Session

from koa_shared.db import Database
from koa_shared.errors import LeaseLost
from koa_shared.jobs.queue import LATER, Job, JobQueue, NewJob, job_table

metadata = MetaData()
jobs = job_table(metadata)
OpenDatabase = Callable[..., Database]

on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def db(database: OpenDatabase) -> Database:
    db = database()
    metadata.create_all(db.engine)
    return db


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue(jobs)


def rows(session: Session, *names: str) -> list[Any]:
    return list(session.execute(select(*(jobs.c[name] for name in names)).order_by(jobs.c.id)))


def run(session: Session, statement: Any) -> None:
    session.execute(statement)


async def claim(db: Database, queue: JobQueue, **more: Any) -> Job:
    job = await db.write(queue.claim, "q", **more)
    assert job is not None
    return job


async def keys(db: Database, queue: JobQueue, **more: Any) -> list[str]:
    """Claim all there is; return the keys in the order they were given out."""
    found = []
    while job := await db.write(queue.claim, "q", **more):
        found.append(job.key)
    return found


async def test_put_is_idempotent(db: Database, queue: JobQueue) -> None:
    first = NewJob("q", "a", "KCWI", {"n": 1}, trace="t", size=7)
    assert await db.write(queue.put, first)
    assert not await db.write(queue.put, NewJob("q", "a", "HIRES", {"n": 2}))
    assert await db.write(queue.put, NewJob("other", "a", "KCWI"))
    job = await claim(db, queue)
    assert (job.key, job.grp, job.payload, job.trace) == ("a", "KCWI", {"n": 1}, "t")
    assert (job.size, job.token, job.attempts) == (7, 1, 0)
    assert not await db.write(queue.put, first)  # also while it is worked on
    assert await db.write(queue.claim, "q") is None


async def test_what_rolls_back_was_never_put(db: Database, queue: JobQueue) -> None:
    def fail(session: Session) -> None:
        queue.put(session, NewJob("q", "a", "KCWI"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await db.write(fail)
    assert await keys(db, queue) == []


async def test_by_priority_then_newest_first(db: Database, queue: JobQueue) -> None:
    for key, priority, sort_at in (
        ("old", 0, 1.0), ("backlog", 4, 99.0), ("new", 0, 3.0), ("mid", 0, 2.0), ("cal", 1, 50.0),
    ):  # fmt: skip
        await db.write(queue.put, NewJob("q", key, "KCWI", priority=priority, sort_at=sort_at))
    assert await keys(db, queue) == ["new", "mid", "old", "cal", "backlog"]


async def test_what_has_waited_for_long_is_backlog(db: Database, queue: JobQueue) -> None:
    """A night of one peer's absence: what is live now waits for no instrument's backlog."""
    now = time.time()
    for grp, n in product(("ESI", "KPF"), range(3)):
        job = NewJob("q", f"{grp}{n}", grp, sort_at=now - 3600 + n)
        await db.write(queue.put, replace(job, priority=LATER if n else 0))
    for n in range(3):
        calibration = NewJob("q", f"live{n}", "KCWI", priority=1, sort_at=now - n)
        await db.write(queue.put, calibration)
    first = [await claim(db, queue, live=True) for _ in range(3)]
    assert [job.key for job in first] == ["live0", "live1", "live2"]
    assert [job.priority for job in first] == [1, 1, 1]
    assert await db.write(queue.claim, "q", live=True) is None
    rest = [await claim(db, queue) for _ in range(6)]
    assert {job.priority for job in rest} == {LATER}
    assert [job.key for job in rest if job.grp == "ESI"] == ["ESI2", "ESI1", "ESI0"]


async def test_of_equals_the_first_put(db: Database, queue: JobQueue) -> None:
    for key in "abc":
        await db.write(queue.put, NewJob("q", key, "KCWI"))
    assert await keys(db, queue) == ["a", "b", "c"]


async def test_a_flood_of_one_instrument_holds_no_other_up(db: Database, queue: JobQueue) -> None:
    for n in range(6):
        await db.write(queue.put, NewJob("q", f"flood{n}", "KPF", sort_at=100.0 + n))
    await db.write(queue.put, NewJob("q", "one", "ESI", sort_at=1.0))
    await db.write(queue.put, NewJob("q", "two", "ESI", sort_at=0.0))
    first = [(await claim(db, queue)).grp for _ in range(4)]
    assert sorted(first) == ["ESI", "ESI", "KPF", "KPF"]
    assert set(first[:2]) == {"ESI", "KPF"}


async def test_fair_also_one_at_a_time(db: Database, queue: JobQueue) -> None:
    for n in range(3):
        for grp in ("A", "B"):
            await db.write(queue.put, NewJob("q", f"{grp}{n}", grp, sort_at=float(n)))
    order = []
    for _ in range(6):
        job = await claim(db, queue)
        await db.write(queue.finish, job)
        order.append(job.grp)
    assert all(a != b for a, b in pairwise(order)), order


async def test_priority_goes_before_fairness(db: Database, queue: JobQueue) -> None:
    await db.write(queue.put, NewJob("q", "backlog", "ESI", priority=4))
    for n in range(3):
        await db.write(queue.put, NewJob("q", f"live{n}", "KPF"))
    assert (await keys(db, queue))[-1] == "backlog"


async def test_only_what_fits_is_given_out_and_nothing_overtakes_it(
    db: Database, queue: JobQueue
) -> None:
    await db.write(queue.put, NewJob("q", "large", "KPF", size=100, sort_at=time.time()))
    await db.write(queue.put, NewJob("q", "small", "KPF", size=10))
    assert await keys(db, queue, room=99) == []
    assert await keys(db, queue, room=100) == ["large", "small"]


async def test_a_paused_group_waits_and_no_other(db: Database, queue: JobQueue) -> None:
    for grp in ("A", "B"):
        await db.write(queue.put, NewJob("q", grp, grp))
    assert await keys(db, queue, paused=lambda _: frozenset({"A"})) == ["B"]
    assert await keys(db, queue) == ["A"]


async def test_queues_do_not_mix(db: Database, queue: JobQueue) -> None:
    await db.write(queue.put, NewJob("other", "a", "KCWI"))
    assert await db.write(queue.claim, "q") is None
    assert await db.read(queue.next_in, "q") is None
    assert await db.write(queue.claim, "other") is not None


async def settle(db: Database, queue: JobQueue, job: Job, how: str) -> None:
    again: dict[str, Callable[..., Any]] = {
        "finish": queue.finish,
        "renew": queue.renew,
        "again": lambda s, j: queue.again(s, j, 0.0, "x", "F"),
        "park": lambda s, j: queue.again(s, j, None, "x", "F"),
    }
    await db.write(again[how], job)


@pytest.mark.parametrize("how", ["finish", "renew", "again", "park"])
async def test_a_stale_worker_changes_nothing(db: Database, queue: JobQueue, how: str) -> None:
    await db.write(queue.put, NewJob("q", "a", "KCWI"))
    stale = await claim(db, queue)
    await db.write(lambda s: queue.again(s, stale, 0.0, ""))
    with pytest.raises(LeaseLost):  # given back: nobody's
        await settle(db, queue, stale, how)
    fresh = await claim(db, queue)
    assert fresh.token == stale.token + 1
    before = await db.read(rows, "state", "token", "attempts", "error", "lease_until")
    with pytest.raises(LeaseLost):  # another's
        await settle(db, queue, stale, how)
    assert await db.read(rows, "state", "token", "attempts", "error", "lease_until") == before
    await settle(db, queue, fresh, how)


@pytest.mark.parametrize("how", ["finish", "renew", "again", "park"])
async def test_what_is_done_in_a_lost_jobs_name_is_undone(
    db: Database, queue: JobQueue, how: str
) -> None:
    await db.write(queue.put, NewJob("q", "a", "KCWI"))
    job = await claim(db, queue)
    await db.write(queue.drop, "q", "a")

    def work(session: Session) -> None:
        queue.put(session, NewJob("effect", "a", "KCWI"))
        queue.finish(session, job)

    with pytest.raises(LeaseLost):
        await db.write(work)
    assert await db.read(rows, "queue") == []
    with pytest.raises(LeaseLost):
        await settle(db, queue, job, how)


async def expire(db: Database) -> None:
    await db.write(run, update(jobs).values(lease_until=1.0))


@on_postgresql
async def test_a_lease_that_ran_out_is_anothers(database: OpenDatabase, db: Database) -> None:
    dead, alive = JobQueue(jobs), JobQueue(jobs)
    await db.write(dead.put, NewJob("q", "a", "KCWI"))
    lost = await claim(db, dead)
    assert await db.write(alive.claim, "q") is None
    await expire(db)
    await db.write(dead.renew, lost)  # late, but nobody took it: still ours
    assert await db.write(alive.claim, "q") is None
    assert await db.write(alive.orphans) == []
    await expire(db)
    assert await db.write(dead.orphans) == []  # it lives, as far as it knows
    [orphan] = await db.write(alive.orphans)
    await db.write(alive.again, orphan, 0.0, "its worker died", "WorkerDied-1")
    taken = await claim(db, alive)
    assert (taken.key, taken.token, taken.attempts) == ("a", lost.token + 1, 1)
    assert taken.is_suspect
    with pytest.raises(LeaseLost):
        await db.write(dead.finish, lost)
    await db.write(alive.finish, taken)


@on_postgresql
async def test_a_lease_is_a_minute_of_the_databases_clock(db: Database, queue: JobQueue) -> None:
    await db.write(queue.put, NewJob("q", "a", "KCWI"))
    await claim(db, queue)
    now = func.extract("epoch", func.clock_timestamp())
    left = await db.read(lambda s: s.scalar(select(jobs.c.lease_until - now)))
    assert left is not None
    assert 50 < float(left) <= 60


@on_postgresql
async def test_recover_takes_nothing_from_a_living_replica(db: Database, queue: JobQueue) -> None:
    await db.write(queue.put, NewJob("q", "a", "KCWI"))
    job = await claim(db, queue)
    other = JobQueue(jobs)
    await db.write(other.recover)
    assert await db.write(other.orphans) == []
    assert await db.write(other.claim, "q") is None
    await db.write(queue.finish, job)


@on_sqlite
async def test_recover_takes_back_what_the_dead_process_held(
    database: OpenDatabase, db: Database
) -> None:
    dead = JobQueue(jobs)
    for key in ("held", "parked", "late"):
        await db.write(dead.put, NewJob("q", key, "KCWI"))
        job = None if key == "late" else await claim(db, dead)
        if key == "parked" and job is not None:
            await db.write(dead.again, job, None, "why", "x")
    late = update(jobs).where(jobs.c.key == "late").values(not_before=1e15)
    await db.write(run, late)  # the host's clock began anew
    await db.write(dead.put, NewJob("q", "failed", "KCWI", delay=30))  # a restart is no mercy
    again, reborn = database(), JobQueue(jobs)
    assert await again.write(reborn.claim, "q") is None
    await again.write(reborn.recover)
    assert await again.write(dead.orphans) == []
    [orphan] = await again.write(reborn.orphans)
    await again.write(reborn.again, orphan, 0.0, "WorkerDied()")
    assert await keys(again, reborn) == ["late", "held"]  # others go first
    states = [("leased",), ("parked",), ("leased",), ("ready",)]
    assert await again.read(rows, "state") == states
    assert (await again.read(rows, "token"))[0] == (2,)


async def test_again_waits_and_counts(db: Database, queue: JobQueue) -> None:
    await db.write(queue.put, NewJob("q", "a", "KCWI"))
    await db.write(queue.again, await claim(db, queue), 0.15, "busy")
    assert await db.write(queue.claim, "q") is None
    due = await db.read(queue.next_in, "q")
    assert due is not None
    assert 0 < due <= 0.15
    await asyncio.sleep(due)
    job = await claim(db, queue)
    assert (job.attempts, job.token) == (0, 2)
    await db.write(queue.again, job, 0.0, "broken" * 1000, "x")
    assert (await claim(db, queue)).attempts == 1
    error = (await db.read(rows, "error"))[0][0]
    assert error.startswith("broken")
    assert len(error) <= 2000


async def test_a_delayed_job_is_not_due_before(db: Database, queue: JobQueue) -> None:
    await db.write(queue.put, NewJob("q", "a", "KCWI", delay=60))
    assert await db.write(queue.claim, "q") is None
    due = await db.read(queue.next_in, "q")
    assert due is not None
    assert 55 < due <= 60


async def test_next_in_looks_at_what_waits(db: Database, queue: JobQueue) -> None:
    assert await db.read(queue.next_in, "q") is None
    await db.write(queue.put, NewJob("q", "a", "KCWI"))
    await db.write(queue.put, NewJob("q", "b", "KCWI", delay=60))
    assert await db.read(queue.next_in, "q") == 0.0
    await db.write(queue.finish, await claim(db, queue))
    assert (await db.read(queue.next_in, "q") or 0) > 50


async def test_parked_until_an_operator_says_so(db: Database, queue: JobQueue) -> None:
    await db.write(queue.put, NewJob("q", "a", "KCWI"))
    await db.write(queue.again, await claim(db, queue), None, "why", "x")
    assert await db.write(queue.claim, "q") is None
    assert await db.read(queue.next_in, "q") is None
    assert await db.read(rows, "state", "error") == [("parked", "why")]
    assert not await db.write(queue.unpark, "q", "b")
    assert await db.write(queue.unpark, "q", "a")
    job = await claim(db, queue)
    assert (job.key, job.attempts) == ("a", 0)
    assert not await db.write(queue.unpark, "q", "a")  # it is worked on
    await db.write(queue.finish, job)


async def test_depths(db: Database, queue: JobQueue) -> None:
    for key in "abcd":
        await db.write(queue.put, NewJob("q", key, "KCWI"))
    await db.write(queue.put, NewJob("other", "a", "KCWI"))
    await db.write(queue.again, await claim(db, queue), None, "", "x")
    await claim(db, queue)
    older = update(jobs).where(jobs.c.key == "d").values(created_at=jobs.c.created_at - 100)
    await db.write(run, older)
    depths = {(q, state): (n, age) for q, state, n, age in await db.read(queue.depths)}
    counts = {name: n for name, (n, _) in depths.items()}
    assert counts == {
        ("q", "ready"): 2,
        ("q", "leased"): 1,
        ("q", "parked"): 1,
        ("other", "ready"): 1,
    }
    assert 100 <= depths["q", "ready"][1] < 130
    assert 0 <= depths["other", "ready"][1] < 30


@on_postgresql
async def test_two_replicas_never_get_the_same_job(database: OpenDatabase, db: Database) -> None:
    """Six claimers on six connections each; claims and puts at once."""
    queues = [(db, JobQueue(jobs)), (database(), JobQueue(jobs))]
    for n in range(60):
        await db.write(queues[0][1].put, NewJob("q", str(n), f"I{n % 3}"))

    async def work(at: int) -> list[str]:
        mine, queue = queues[at % 2]
        found: list[str] = []
        misses = 0
        while misses < 20:  # a claimer may find all it wants locked; it asks again
            job = await mine.write(queue.claim, "q")
            misses = 0 if job else misses + 1
            if job:
                found.append(job.key)
                await mine.write(queue.finish, job)
            await asyncio.sleep(0)
        return found

    found = await asyncio.gather(*(work(n) for n in range(8)))
    assert sorted(chain.from_iterable(found), key=int) == [str(n) for n in range(60)]
    assert await db.read(rows, "key") == []


operations = st.lists(
    st.sampled_from(["put a", "put b", "claim", "finish", "again", "park", "unpark a", "drop a"]),
    max_size=25,
)


@on_sqlite
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=operations)
async def test_at_most_one_holder_whatever_happens(db: Database, steps: list[str]) -> None:
    """Of all jobs ever claimed, per key only the last one can settle."""
    queue = JobQueue(jobs)
    await db.write(run, delete(jobs))
    held: list[Job] = []
    alive: dict[str, Job] = {}
    for step in steps:
        verb, _, key = step.partition(" ")
        if verb == "put":
            await db.write(queue.put, NewJob("q", key, "KCWI"))
        elif verb == "claim" and (job := await db.write(queue.claim, "q")):
            assert job.key not in alive
            held.append(job)
            alive[job.key] = job
        elif verb == "unpark":
            assert not (await db.write(queue.unpark, "q", key) and key in alive)
        elif verb == "drop":
            await db.write(queue.drop, "q", key)
            alive.pop(key, None)
        elif verb in ("finish", "again", "park"):
            await settle_all(db, queue, verb, held, alive)


async def settle_all(
    db: Database, queue: JobQueue, how: str, held: list[Job], alive: dict[str, Job]
) -> None:
    """Settle all that was ever held: the living can, the others can't."""
    for job in held:
        if alive.get(job.key) is job:
            await settle(db, queue, job, how)
            del alive[job.key]
        else:
            with pytest.raises(LeaseLost):
                await settle(db, queue, job, how)
