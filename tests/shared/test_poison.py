"""Frames that fail alike, and frames that kill their worker (design 5), on both engines."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, select, update
from sqlmodel import Session

from koa_shared.db import Database
from koa_shared.jobs import workshop as workshop_module
from koa_shared.jobs.queue import Job, JobQueue, NewJob, job_table
from koa_shared.jobs.workshop import MAX_ATTEMPTS, Failure, Lane, Workshop
from koa_shared.metrics import Metrics
from koa_shared.retry import Circuits

metadata = MetaData()
jobs = job_table(metadata)
pytestmark = pytest.mark.timeout(60)
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def db(database: Any) -> Database:
    db: Database = database()
    metadata.create_all(db.engine)
    return db


def run(session: Session, statement: Any) -> None:
    session.execute(statement)


async def expire(db: Database) -> None:
    """On PostgreSQL what a dead replica held is another's once its lease has run out."""
    await db.write(run, update(jobs).where(jobs.c.state == "leased").values(lease_until=1.0))


class Shop:
    """A process of a service whose frames fail as their names say."""

    def __init__(self, db: Database) -> None:
        self.db, self.queue, self.metrics = db, JobQueue(jobs), Metrics("preparer")
        self.workshop = Workshop(db, self.queue, Circuits(self.metrics), self.metrics)
        self.failures: list[tuple[str, Failure]] = []
        self.tried: list[str] = []
        self.together: list[set[str]] = []
        self.mended = False
        self.lane = Lane("q", self.work, self.failed, slots=3)
        self.workshop.add(self.lane)

    def failed(self, session: Session, job: Job, failure: Failure) -> None:
        self.failures.append((job.key, failure))

    async def work(self, job: Job) -> None:
        self.tried.append(job.key)
        self.together.append({running.key for running in self.lane.running.values()})
        await asyncio.sleep(0.05)
        if job.key.startswith("bad") and not self.mended:
            raise ValueError(f"frame {job.key} of 7 has no keyword")
        if job.key.startswith("odd"):
            raise KeyError(job.key)
        await self.db.write(self.queue.finish, job)

    async def put(self, *keys: str) -> None:
        for key in keys:
            await self.db.write(self.queue.put, NewJob("q", key, "KCWI"))

    async def due_now(self) -> None:
        due = update(jobs).where(jobs.c.state == "ready").values(not_before=0)
        await self.db.write(run, due)
        self.workshop.wake("q")

    async def states(self) -> dict[str, tuple[str, int]]:
        query = select(jobs.c.key, jobs.c.state, jobs.c.attempts)
        rows = await self.db.read(lambda s: s.execute(query).all())
        return {key: (state, attempts) for key, state, attempts in rows}

    async def until(self, ask: Any) -> None:
        async with asyncio.timeout(15):
            while not ask(await self.states()):
                await asyncio.sleep(0.01)
                await self.due_now()


def parked(*keys: str) -> Any:
    return lambda states: all(states.get(key, ("", 0))[0] == "parked" for key in keys)


def gone(*keys: str) -> Any:
    return lambda states: not states.keys() & {*keys}


async def test_the_third_frame_that_fails_alike_parks_the_group(db: Database) -> None:
    shop = Shop(db)
    async with shop.workshop.open():
        await shop.put("bad1")
        await shop.until(parked("bad1"))
        await shop.put("bad2")
        await shop.until(parked("bad2"))
        assert await shop.states() == {"bad1": ("parked", 5), "bad2": ("parked", 5)}
        await shop.put("bad3", "bad4", "odd1", "good")
        await shop.until(parked("bad3", "bad4", "odd1"))
        states = await shop.states()
    assert MAX_ATTEMPTS == 5
    # A bad rule does not burn the night; what fails otherwise has its own five attempts.
    assert (states["bad3"], states["bad4"]) == (("parked", 1), ("parked", 1))
    assert states["odd1"] == ("parked", 5)
    assert "good" not in states
    [mark] = {failure.fingerprint for key, failure in shop.failures if key.startswith("bad")}
    assert {f.fingerprint for key, f in shop.failures if key == "odd1"}.isdisjoint({mark})


async def test_a_parked_group_outlives_the_process(db: Database) -> None:
    first = Shop(db)
    async with first.workshop.open():
        await first.put("bad1", "bad2", "bad3")
        await first.until(parked("bad1", "bad2", "bad3"))
    second = Shop(db)
    async with second.workshop.open():
        await second.put("bad4")
        await second.until(parked("bad4"))
    assert (await second.states())["bad4"] == ("parked", 1)


async def test_one_that_gets_over_it_opens_the_group(db: Database) -> None:
    shop = Shop(db)
    async with shop.workshop.open():
        await shop.put("bad1", "bad2", "bad3")
        await shop.until(parked("bad1", "bad2", "bad3"))
        await db.write(shop.queue.unpark, "q", "bad1")  # retried, and still bad
        await shop.until(parked("bad1"))
        assert (await shop.states())["bad1"] == ("parked", 1)
        shop.mended = True
        await db.write(shop.queue.unpark, "q", "bad1")
        await shop.until(gone("bad1"))
        shop.mended = False
        await shop.put("bad4")
        await shop.until(parked("bad4"))
        assert (await shop.states())["bad4"] == ("parked", 5)


async def test_an_operator_opens_the_group(db: Database) -> None:
    shop = Shop(db)
    async with shop.workshop.open():
        await shop.put("bad1", "bad2", "bad3")
        await shop.until(parked("bad1", "bad2", "bad3"))
        await db.write(shop.queue.open_group, shop.failures[0][1].fingerprint)
        await shop.put("bad4")
        await shop.until(parked("bad4"))
    assert (await shop.states())["bad4"] == ("parked", 5)


async def test_what_is_no_frames_failure_is_not_grouped(db: Database) -> None:
    shop = Shop(db)
    shop.lane.failed = workshop_module.log_failure
    async with shop.workshop.open():
        await shop.put("bad1", "bad2", "bad3")
        await shop.until(parked("bad1", "bad2", "bad3"))
    assert set((await shop.states()).values()) == {("parked", 5)}


# -- deaths ------------------------------------------------------------------------------


async def leased(db: Database, *keys: str) -> None:
    """Have a process die at these frames: what it held stays leased."""
    dead = JobQueue(jobs)
    for _ in keys:
        await db.write(dead.claim, "q")
    await expire(db)


async def test_a_death_counts_for_what_was_leased_and_it_runs_alone_from_then_on(
    db: Database,
) -> None:
    shop = Shop(db)
    await shop.put("a", "b", "c")
    await leased(db, "a", "b")
    async with shop.workshop.open():
        assert {key: n for key, (_, n) in (await shop.states()).items() if n} == {"a": 1, "b": 1}
        await shop.put("d", "e")
        await shop.until(gone(*"abcde"))
    assert [f.finding("q").code for _, f in shop.failures] == ["WORKER_DIED"] * 2
    labels = {"service": "preparer", "step": "q", "outcome": "died"}
    assert shop.metrics.registry.get_sample_value("koa_attempts_total", labels) == 2
    alone = [running for running in shop.together if running & {"a", "b"}]
    assert alone in ([{"a"}, {"b"}], [{"b"}, {"a"}])
    assert {*shop.tried[-2:]} == {"a", "b"}, "others go first"


async def test_while_a_suspect_runs_no_other_frame_begins(db: Database) -> None:
    shop = Shop(db)
    shop.workshop.add(Lane("other", shop.work, shop.failed))
    await shop.put("a")
    await leased(db, "a")

    async def work(job: Job) -> None:
        if job.key == "a":
            await shop.put("b", "c")
            await db.write(shop.queue.put, NewJob("other", "d", "ESI"))
            shop.workshop.wake("q", "other")
            await asyncio.sleep(0.3)
            assert shop.tried == []
        await shop_work(job)

    shop_work, shop.lane.handle = shop.work, work
    async with shop.workshop.open():
        await shop.until(gone(*"abcd"))
    assert shop.tried[0] == "a"
    assert [f.attempt for _, f in shop.failures] == [1], "the death, and nothing else"


async def test_a_suspect_waits_without_being_claimed(db: Database) -> None:
    shop, go = Shop(db), asyncio.Event()
    await shop.put("a")
    await leased(db, "a")
    await shop.put("b")

    async def work(job: Job) -> None:
        if job.key == "b":
            await go.wait()
        await shop_work(job)

    shop_work, shop.lane.handle = shop.work, work
    async with shop.workshop.open():
        await asyncio.sleep(0.7)
        token = select(jobs.c.token).where(jobs.c.key == "a")
        assert await db.read(lambda s: s.scalar(token)) == 1
        go.set()
        await shop.until(gone("a", "b"))
    assert shop.tried == ["b", "a"]


async def test_the_fifth_death_parks(db: Database) -> None:
    shop = Shop(db)
    await shop.put("a")
    for death in range(1, 6):
        await db.write(run, update(jobs).values(not_before=0))
        await leased(db, "a")
        heir = Shop(db)
        heir.lane.slots = 0  # it only buries
        async with heir.workshop.open():
            states = await heir.states()
        assert states["a"] == ("parked" if death == 5 else "ready", death)
        shop.failures += heir.failures
    delays = [failure.delay for _, failure in shop.failures]
    assert (delays[0], delays[-1]) == (0.0, None)
    for n, delay in enumerate(delays[1:-1], 2):
        assert delay is not None
        assert min(60, 4 * 2**n) / 10 <= delay <= 60


async def test_many_neighbours_of_one_death_park_no_group(db: Database) -> None:
    shop = Shop(db)
    await shop.put("a", "b", "c")
    await leased(db, "a", "b", "c")
    async with shop.workshop.open():
        await shop.until(gone("a", "b", "c"))
    assert [failure.delay for _, failure in shop.failures] == [0.0] * 3


async def test_once_three_are_parked_the_second_death_is_enough(db: Database) -> None:
    shop = Shop(db)
    await shop.put("a", "b", "c")
    await leased(db, "a", "b", "c")
    shop.lane.slots = 0
    async with shop.workshop.open():
        pass
    three = update(jobs).values(state="parked", attempts=5)
    await db.write(run, three)
    await shop.put("new")
    for state, death in (("ready", 1), ("parked", 2)):
        await db.write(run, update(jobs).values(not_before=0))
        await leased(db, "new")
        heir = Shop(db)
        heir.lane.slots = 0
        async with heir.workshop.open():
            assert (await heir.states())["new"] == (state, death)


async def test_an_orderly_stop_costs_nothing(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop_module, "STOP_SECONDS", 0.05)
    shop, begun = Shop(db), asyncio.Event()

    async def work(job: Job) -> None:
        begun.set()
        await asyncio.sleep(60)

    shop.lane.handle = work
    await shop.put("a")
    async with shop.workshop.open():
        await begun.wait()
    heir = Shop(db)
    async with heir.workshop.open():
        await heir.until(gone("a"))
    assert (shop.failures, heir.failures) == ([], [])


@on_postgresql
async def test_a_failure_is_noted_before_its_job_is_locked(db: Database) -> None:
    """As whoever writes frames locks in that order: the frames' lock, then jobs."""
    shop, free = Shop(db), list[bool]()

    def failed(session: Session, job: Job, failure: Failure) -> None:
        with db.engine.connect() as other:
            other.exec_driver_sql("SET lock_timeout = '100ms'")
            found = other.execute(select(jobs.c.id).with_for_update(skip_locked=True)).all()
            free.append(len(found) == 1)

    shop.lane.failed = failed
    async with shop.workshop.open():
        await shop.put("bad1")
        await shop.until(parked("bad1"))
    assert free == [True] * 5


KILLER = """
import asyncio, os, sys
from sqlalchemy import MetaData
sys.path.insert(0, {here!r})
from test_poison import Shop, jobs
from koa_shared.db import Database
from pathlib import Path

class Fatal(Shop):
    async def work(self, job):
        print("begin", job.key, flush=True)
        await asyncio.sleep(0.05)
        if job.key == "poison":
            os._exit(137)
        await super().work(job)

async def main():
    shop = Fatal(Database({url!r}, Path()))
    async with shop.workshop.open():
        while True:
            await asyncio.sleep(0.02)
            await shop.due_now()
            states = await shop.states()
            if all(state == "parked" for state, _ in states.values()):
                return

asyncio.run(main())
"""


async def test_a_frame_that_kills_its_worker_is_parked_and_the_others_pass(db: Database) -> None:
    shop = Shop(db)
    await shop.put("poison", *(f"good{n}" for n in range(12)))
    url = db.engine.url.render_as_string(hide_password=False)
    program = KILLER.format(here=str(Path(__file__).parent), url=url)
    begun, deaths = list[str](), 0
    while True:
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], check=False, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, timeout=50,
        )  # fmt: skip
        begun += done.stdout.decode().split("begin ")
        if done.returncode == 0:
            break
        assert done.returncode == 137
        deaths += 1
        await expire(db)
        assert deaths < 10
    assert await shop.states() == {"poison": ("parked", 5)}
    assert deaths == 5
    goods = [key.strip() for key in begun if key.startswith("good")]
    assert len(goods) <= 12 + 2, "its neighbours are disturbed once"
