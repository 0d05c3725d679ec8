"""The loops that work queues off: waking, failing, pausing, stopping (design 5)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import MetaData, event, select, update
from sqlmodel import Session

from koa_shared import logs
from koa_shared.db import Database
from koa_shared.errors import DependencyDown, FrameFault, LeaseLost, NotYet
from koa_shared.jobs import workshop as workshop_module
from koa_shared.jobs.queue import Job, JobQueue, NewJob, job_table
from koa_shared.jobs.workshop import MAX_ATTEMPTS, Failure, Lane, Workshop
from koa_shared.metrics import Metrics
from koa_shared.retry import Circuits

metadata = MetaData()
jobs = job_table(metadata)
OpenDatabase = Callable[..., Database]
Handler = Callable[[Job], Awaitable[None]]

pytestmark = pytest.mark.timeout(60)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def run(session: Session, statement: Any) -> None:
    session.execute(statement)


class Flaky(Database):
    """A database that can be away."""

    away = False

    async def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.away:
            raise DependencyDown("database", "away")
        return await super()._run(*args, **kwargs)


class Rig:
    """A workshop, what its handlers did, and what it noted as failed."""

    def __init__(self, db: Database, queue: JobQueue | None = None) -> None:
        self.db, self.queue, self.metrics = db, queue or JobQueue(jobs), Metrics("preparer")
        self.circuits = Circuits(self.metrics)
        self.workshop = Workshop(db, self.queue, self.circuits, self.metrics)
        self.done: list[str] = []
        self.failures: list[Failure] = []

    def lane(self, handle: Handler | None = None, queue: str = "q", **more: Any) -> Lane:
        lane = Lane(queue, handle or self.work, self._failed, **more)
        self.workshop.add(lane)
        return lane

    def _failed(self, session: Session, job: Job, failure: Failure) -> None:
        self.failures.append(failure)

    async def work(self, job: Job) -> None:
        await self.db.write(self.queue.finish, job)
        self.done.append(job.key)

    async def put(self, key: str, grp: str = "KCWI", **more: Any) -> None:
        await self.db.write(self.queue.put, NewJob(more.pop("queue", "q"), key, grp, **more))

    async def rows(self, *names: str) -> list[Any]:
        query = select(*(jobs.c[name] for name in names)).order_by(jobs.c.id)
        return await self.db.read(lambda s: list(s.execute(query)))

    async def due_now(self) -> None:
        """Let every delay be over."""
        await self.db.write(run, update(jobs).values(not_before=0))
        self.workshop.wake("q")

    def sample(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(name, {"service": "preparer"} | labels)
        return found or 0.0


async def until(ask: Callable[[], Any], seconds: float = 25.0) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(seconds):
        while not ask():  # noqa: ASYNC110 (who answers knows of no event)
            await asyncio.sleep(0.002)


@pytest.fixture
def rig(database: OpenDatabase) -> Rig:
    db = database(kind=Flaky)
    metadata.create_all(db.engine)
    return Rig(db)


async def test_what_is_put_is_worked_on_without_a_polling_delay(rig: Rig) -> None:
    lags: list[float] = []
    put_at = 0.0

    async def handle(job: Job) -> None:
        lags.append(time.monotonic() - put_at)
        await rig.work(job)

    rig.lane(handle)
    async with rig.workshop.open():
        for n in range(8):
            await asyncio.sleep(0.05)  # until the loop sleeps: 1 s, or 30 s on SQLite
            put_at = time.monotonic()
            await rig.put(str(n))
            await until(lambda n=n: len(rig.done) > n)  # type: ignore[misc]
    assert sorted(lags)[len(lags) // 2] < 0.6, lags  # a commit is in it


async def test_what_waited_before_the_start_is_worked_on(rig: Rig) -> None:
    await rig.put("a")
    rig.lane()
    async with rig.workshop.open():
        await until(lambda: rig.done == ["a"])
    assert rig.sample("koa_attempts_total", step="q", outcome="done") == 1


async def test_too_early_costs_no_attempt(rig: Rig) -> None:
    seen: list[int] = []

    async def handle(job: Job) -> None:
        seen.append(job.attempts)
        if len(seen) < 12:
            raise NotYet("it grows", 0.01)
        await rig.work(job)

    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        await until(lambda: rig.done)
    assert seen == [0] * 12
    assert rig.failures == []
    assert rig.sample("koa_attempts_total", step="q", outcome="not_yet") == 11


async def test_a_job_that_gets_due_while_another_is_looked_for_is_not_forgotten(
    rig: Rig,
) -> None:
    """Between `claim` (not due yet) and `next_in` (due already) no job may fall."""

    class Slow(JobQueue):
        def claim(self, session: Session, *args: Any, **more: Any) -> Job | None:
            found = super().claim(session, *args, **more)
            time.sleep(0.1)
            return found

    rig = Rig(rig.db, Slow(jobs))
    rig.lane()
    async with rig.workshop.open():
        await asyncio.sleep(0.15)
        await rig.put("a", delay=0.05)
        rig.workshop.wake("q")
        await until(lambda: rig.done, 5)


async def test_an_outage_opens_the_circuit_and_one_probe_closes_it(rig: Rig) -> None:
    down, together, running, calls = True, 0, 0, 0

    async def handle(job: Job) -> None:
        nonlocal together, running, calls
        calls, running = calls + 1, running + 1
        together = max(together, running)
        await asyncio.sleep(0.02 if down else 0.2)
        running -= 1
        if down:
            raise DependencyDown("s3", "connection refused")
        await rig.work(job)

    rig.lane(handle, slots=4, needs=("s3",))
    other = rig.lane(queue="free", needs=("ingestor",))
    for n in range(6):
        await rig.put(str(n))
    async with rig.workshop.open():
        await until(lambda: rig.circuits["s3"].reason)
        await until(lambda: not running)  # those that were under way when it went
        together = 0
        assert rig.sample("koa_circuit_open", dependency="s3") == 1
        await rig.put("x", queue="free")
        rig.workshop.wake("free")
        await until(lambda: rig.done == ["x"])  # who does not need it goes on
        for _ in range(3):  # probes, without the growing waits between them
            before = calls
            rig.circuits["s3"]._probe_at = 0.0
            await rig.due_now()
            await until(lambda before=before: calls > before and not running)  # type: ignore[misc]
        assert together == 1, "while it is down one job at a time is the probe"
        down, rig.circuits["s3"]._probe_at = False, 0.0
        await rig.due_now()
        await until(lambda: len(rig.done) == 7)
        assert not rig.circuits["s3"].reason
    assert together > 1, "after it all slots work again"
    assert rig.failures == []
    assert other.running == {}
    assert rig.sample("koa_circuit_open", dependency="s3") == 0


async def test_who_closes_a_circuit_wakes_those_who_wait_for_it(rig: Rig) -> None:
    """The outbox or another lane meets the peer first: the others sleep on no more."""
    rig.lane(needs=("ingestor",))
    circuit = rig.circuits["ingestor"]
    circuit.failed("connection refused")
    circuit._probe_at = time.monotonic() + 3600
    async with rig.workshop.open():
        await rig.put("a")
        await asyncio.sleep(0.1)
        assert rig.done == []
        circuit.succeeded()
        await until(lambda: rig.done == ["a"], 5)


async def test_what_waited_for_long_keeps_no_slot_from_live_jobs(rig: Rig) -> None:
    lane = rig.lane(slots=2, spare=1)
    for n in range(3):
        await rig.put(str(n), sort_at=time.time() - 3600 - n)
    async with rig.workshop.open():
        await until(lambda: sorted(rig.done) == ["0", "1", "2"])
        await until(lambda: lane.is_idle)
        await rig.put("3", sort_at=time.time() - 3600)  # which starts without a claim
        await until(lambda: len(rig.done) == 4)
        assert not lane.is_for_live()
        assert lane.live_at < 0, "nothing of this was live"
        await rig.put("new", sort_at=time.time())
        await until(lambda: len(rig.done) == 5)
        assert lane.live_at > 0


async def test_an_outage_parks_nothing_however_long(rig: Rig) -> None:
    async def handle(job: Job) -> None:
        raise DependencyDown("s3", "connection refused")

    rig.lane(handle, needs=("s3",))
    await rig.put("a")
    async with rig.workshop.open():
        for n in range(3 * MAX_ATTEMPTS):
            rig.circuits["s3"]._probe_at = 0.0
            await rig.due_now()
            outage = {"step": "q", "outcome": "dependency"}
            await until(lambda n=n, o=outage: rig.sample("koa_attempts_total", **o) > n)  # type: ignore[misc]
    assert await rig.rows("state", "attempts") == [("ready", 0)]
    assert rig.failures == []


async def test_an_outage_met_in_a_task_group_is_an_outage(rig: Rig) -> None:
    """Copies run side by side: what they raise comes in an ExceptionGroup."""

    async def copy(error: Exception | None) -> None:
        await asyncio.sleep(0)
        if error is not None:
            raise error

    async def handle(job: Job) -> None:
        async with asyncio.TaskGroup() as outer:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(DependencyDown("s3", "connection refused")))
                group.create_task(copy(None))
            outer.create_task(copy(None))

    rig.lane(handle, needs=("s3",))
    await rig.put("a")
    async with rig.workshop.open():
        await until(lambda: rig.sample("koa_attempts_total", step="q", outcome="dependency"))
        assert rig.circuits["s3"].reason
    assert await rig.rows("state", "attempts") == [("ready", 0)]
    assert rig.failures == []


async def test_too_early_in_a_task_group_costs_nothing_either(rig: Rig) -> None:
    async def late() -> None:
        raise NotYet("two reads differ", 30.0)

    async def handle(job: Job) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(late())

    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        await until(lambda: rig.sample("koa_attempts_total", step="q", outcome="not_yet"))
    assert await rig.rows("state", "attempts") == [("ready", 0)]
    assert rig.failures == []


async def test_failures_of_the_frame_back_off_and_park_after_five(rig: Rig) -> None:
    async def handle(job: Job) -> None:
        raise FrameFault("BAD", "it is broken")

    def attempts() -> float:
        ends = ("failed", "parked")
        return sum(rig.sample("koa_attempts_total", step="q", outcome=end) for end in ends)

    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        for n in range(1, 6):
            await until(lambda n=n: attempts() == n)  # type: ignore[misc]
            await rig.due_now()
        await asyncio.sleep(0.1)
        assert attempts() == 5
    assert await rig.rows("state", "attempts") == [("parked", 5)]
    assert [f.attempt for f in rig.failures] == [1, 2, 3, 4, 5]
    delays = [f.delay for f in rig.failures]
    assert delays[-1] is None
    assert rig.failures[-1].next_at() is None
    for n, delay in enumerate(delays[:-1], 1):
        assert delay is not None
        assert 0.05 * 2**n <= delay <= 0.5 * 2**n
    assert rig.sample("koa_attempts_total", step="q", outcome="failed") == 4
    assert rig.sample("koa_attempts_total", step="q", outcome="parked") == 1


async def test_a_failed_job_waits_its_delay(rig: Rig) -> None:
    starts: list[float] = []

    async def handle(job: Job) -> None:
        starts.append(time.monotonic())
        if len(starts) == 1:
            raise ValueError
        await rig.work(job)

    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        await until(lambda: rig.done)
    delay = rig.failures[0].delay
    assert delay is not None
    assert delay - 0.01 <= starts[1] - starts[0] < delay + 1


async def test_slots_are_respected_and_used(rig: Rig) -> None:
    go_on, running, most = asyncio.Event(), 0, 0

    async def handle(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        await rig.work(job)

    rig.lane(handle, slots=3)
    for n in range(7):
        await rig.put(str(n))
    async with rig.workshop.open():
        await until(lambda: running == 3)
        await asyncio.sleep(0.1)
        assert most == 3
        go_on.set()
        await until(lambda: len(rig.done) == 7)


async def test_bytes_in_flight_stay_within_the_budget(rig: Rig) -> None:
    sizes = {"a": 60, "b": 60, "c": 40, "huge": 500, "d": 40}
    running: set[str] = set()
    seen: list[frozenset[str]] = []

    async def handle(job: Job) -> None:
        running.add(job.key)
        seen.append(frozenset(running))
        await asyncio.sleep(0.3)
        running.remove(job.key)
        await rig.work(job)

    rig.lane(handle, slots=4, budget=100)
    for key, size in sizes.items():
        await rig.put(key, size=size)
    async with rig.workshop.open():
        await until(lambda: len(rig.done) == 5)
    assert frozenset({"huge"}) in seen, "what is larger than the budget runs alone"
    for together in seen:
        assert sum(sizes[key] for key in together) <= 100 or together == {"huge"}
    assert max(map(len, seen)) == 2, "and what fits beside runs beside"


async def test_a_paused_instrument_waits_and_resumes_on_waking(rig: Rig) -> None:
    held = frozenset({"KPF"})
    rig.lane(paused=lambda _: held)
    await rig.put("held", "KPF")
    await rig.put("free", "ESI")
    async with rig.workshop.open():
        await until(lambda: rig.done == ["free"])
        await asyncio.sleep(0.1)
        assert rig.done == ["free"]
        held = frozenset()
        rig.workshop.wake("q")
        await until(lambda: rig.done == ["free", "held"], 1)


async def test_a_pause_that_ends_by_itself_is_seen_soon(rig: Rig) -> None:
    """A disk that answers again wakes nobody (design 5: it pauses its own instrument)."""
    held = frozenset({"KPF"})
    rig.lane(paused=lambda _: held)
    await rig.put("held", "KPF")
    async with rig.workshop.open():
        await asyncio.sleep(0.1)
        held = frozenset()
        await until(lambda: rig.done, 5)


@asynccontextmanager
async def stopping(rig: Rig, handle: Handler) -> Any:
    """Start, let one job run, then stop."""
    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        yield


async def test_stopping_lets_running_work_end(rig: Rig) -> None:
    begun = asyncio.Event()

    async def handle(job: Job) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        await rig.work(job)

    async with stopping(rig, handle):
        await begun.wait()
    assert rig.done == ["a"]
    assert await rig.rows("state") == []


async def test_what_does_not_end_in_time_is_given_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workshop_module.STOP_SECONDS == 7.0  # of Kubernetes' ten, after 2 for requests
    monkeypatch.setattr(workshop_module, "STOP_SECONDS", 0.2)
    begun = asyncio.Event()

    async def handle(job: Job) -> None:
        begun.set()
        await asyncio.sleep(60)

    start = time.monotonic()
    async with stopping(rig, handle):
        await begun.wait()
    assert 0.2 <= time.monotonic() - start < 5
    assert await rig.rows("state", "attempts", "error") == [("ready", 0, "the service was stopped")]
    job = await rig.db.write(JobQueue(jobs).claim, "q")  # at once, by another
    assert job is not None
    assert rig.failures == []


@on_sqlite
async def test_a_job_is_given_back_after_the_database_was_away_when_it_ended(rig: Rig) -> None:
    db, handled = rig.db, 0
    assert isinstance(db, Flaky)

    async def handle(job: Job) -> None:
        nonlocal handled
        handled += 1
        db.away = handled == 1
        await rig.work(job)

    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        await until(lambda: rig.sample("koa_attempts_total", step="q", outcome="unsettled"))
        await asyncio.sleep(0.2)
        assert (handled, rig.done) == (1, [])
        db.away = False
        await until(lambda: rig.done == ["a"], 15)
    assert handled == 2
    assert rig.failures == []


@on_sqlite
async def test_the_loops_outlive_a_database_that_is_away(rig: Rig) -> None:
    assert isinstance(rig.db, Flaky)
    rig.lane()
    async with rig.workshop.open():
        rig.db.away = True
        rig.workshop.wake("q")
        await until(lambda: rig.circuits["database"].reason)
        assert rig.workshop.is_alive()
        rig.db.away = False
        await rig.put("a")
        await until(lambda: rig.done == ["a"], 15)
        assert not rig.circuits["database"].reason


async def test_who_lost_the_job_is_silent(rig: Rig) -> None:
    async def handle(job: Job) -> None:
        await rig.db.write(rig.queue.drop, "q", "a")
        await rig.work(job)

    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        await until(lambda: rig.sample("koa_attempts_total", step="q", outcome="lease_lost"))
    assert (rig.failures, rig.done) == ([], [])


async def test_who_was_stopped_past_the_lease_notices_before_it_writes(
    rig: Rig, database: OpenDatabase
) -> None:
    """SIGSTOP in the middle of a job: another replica may have done it, and all is kept."""
    rig.queue.lease, seen = 0.6, list[str]()

    async def handle(job: Job) -> None:
        rig.workshop.insist(job)
        await asyncio.sleep(1.5)  # renewed meanwhile
        rig.workshop.insist(job)
        time.sleep(1)  # noqa: ASYNC251 (as a stopped process does)
        try:
            rig.workshop.insist(job)
            seen.append("goes on")
        except LeaseLost:
            seen.append("notices")
            raise

    rig.lane(handle)
    await rig.put("a")
    async with rig.workshop.open():
        await until(lambda: seen, 15)
    # On SQLite a lease ends with the process: nobody else can have the job.
    assert seen[0] == ("goes on" if rig.db.is_sqlite else "notices")


async def test_what_failed_notes_is_in_the_settling_transaction(rig: Rig) -> None:
    """If it can't be noted, the attempt is not counted either, and the lane lives on."""

    async def handle(job: Job) -> None:
        if job.key == "good":
            return await rig.work(job)
        raise ValueError

    lane = rig.lane(handle)

    def broken(session: Session, job: Job, failure: Failure) -> None:
        raise ZeroDivisionError

    lane.failed = broken
    await rig.put("bad")
    async with rig.workshop.open():
        await until(lambda: rig.sample("koa_attempts_total", step="q", outcome="unsettled"))
        assert await rig.rows("attempts") == [(0,)]
        await rig.put("good")
        rig.workshop.wake("q")
        await until(lambda: rig.done == ["good"])


async def test_the_trace_of_the_job_is_bound(rig: Rig) -> None:
    trace, seen = logs.new_trace(), ""

    async def handle(job: Job) -> None:
        nonlocal seen
        seen = logs.traceparent()
        await rig.work(job)

    rig.lane(handle)
    await rig.put("a", trace=trace)
    async with rig.workshop.open():
        await until(lambda: rig.done)
    assert seen == trace


@on_sqlite
async def test_is_alive_tells_of_a_loop_that_does_not_turn(rig: Rig) -> None:
    lane = rig.lane()
    assert rig.workshop.is_alive()
    lane.beat -= 121
    assert not rig.workshop.is_alive()


@on_sqlite
async def test_the_depths_are_measured(rig: Rig) -> None:
    rig.lane(paused=lambda _: frozenset({"KCWI"}))
    for key in ("a", "b", "parked"):
        await rig.put(key)
    parked = update(jobs).where(jobs.c.key == "parked").values(state="parked")
    await rig.db.write(run, parked)
    async with rig.workshop.open():
        await until(lambda: rig.sample("koa_queue_depth", queue="q") == 2)
        await until(lambda: rig.sample("koa_parked") == 1)


async def test_a_new_job_starts_with_the_commit_that_made_it(rig: Rig) -> None:
    """No claim of its own: what is put into an idle lane is leased in the same transaction."""
    tokens: list[int] = []

    async def handle(job: Job) -> None:
        tokens.append(job.token)
        await rig.work(job)

    lane = rig.lane(handle)
    async with rig.workshop.open():
        await until(lambda: lane.is_idle)
        statements = list[str]()

        def note(*args: Any) -> None:
            statements.append(args[2])

        event.listen(rig.db.engine, "before_cursor_execute", note)
        await rig.put("a")
        await until(lambda: rig.done == ["a"])
    assert tokens == [1]
    assert [s.split()[0] for s in statements if s.split()[0] in ("INSERT", "UPDATE")] == ["INSERT"]


async def test_a_job_that_rolls_back_never_starts(rig: Rig) -> None:
    lane = rig.lane()

    def fail(session: Session) -> None:
        rig.queue.put(session, NewJob("q", "a", "KCWI"))
        raise ZeroDivisionError

    async with rig.workshop.open():
        await until(lambda: lane.is_idle)
        with pytest.raises(ZeroDivisionError):
            await rig.db.write(fail)
        await rig.put("b")
        await until(lambda: rig.done)
    assert rig.done == ["b"]


async def test_a_new_job_without_room_is_given_back_and_waits_its_turn(rig: Rig) -> None:
    going, held, begun = asyncio.Event(), {"NIRC2"}, list[str]()

    async def handle(job: Job) -> None:
        begun.append(job.key)
        await going.wait()
        await rig.work(job)

    lane = rig.lane(handle, slots=3, budget=100, paused=lambda _: frozenset(held))
    async with rig.workshop.open():
        await until(lambda: lane.is_idle)
        await rig.put("first", size=60)
        await until(lambda: lane.running)
        await rig.put("large", size=60, sort_at=time.time())
        await rig.put("small", size=10)
        await rig.put("paused", "NIRC2", size=1)
        await asyncio.sleep(0.6)
        # The small one would fit, but the large one was there before it and has its turn.
        assert [job.key for job in lane.running.values()] == ["first"]
        going.set()
        await until(lambda: len(rig.done) == 3)
        assert begun == ["first", "large", "small"]
        held.clear()
        await until(lambda: rig.done[3:] == ["paused"])
    assert await rig.rows("key") == []


async def test_live_jobs_find_a_free_slot_while_there_are_some(rig: Rig) -> None:
    running: set[str] = set()
    gates: dict[str, asyncio.Event] = {}

    async def handle(job: Job) -> None:
        running.add(job.key)
        await gates.setdefault(job.key, asyncio.Event()).wait()
        running.discard(job.key)
        await rig.work(job)

    def end(key: str) -> None:
        gates.setdefault(key, asyncio.Event()).set()

    lane = rig.lane(handle, slots=3, spare=2)
    async with rig.workshop.open():
        for n in range(3):
            await rig.put(f"old{n}", priority=4)
        await until(lambda: len(running) == 3)  # nobody is live: all slots are theirs
        await rig.put("live0")
        for n in range(3):
            end(f"old{n}")
        await until(lambda: running == {"live0"})
        for n in range(3, 7):
            await rig.put(f"old{n}", priority=4)
        await until(lambda: len(running) == 2)
        await asyncio.sleep(0.4)
        assert len(running) == 2
        await rig.put("live1")
        await until(lambda: {"live0", "live1"} < running)
        assert len(running) == 3
        for key in ("live0", "live1", *(running - {"live0", "live1"})):
            end(key)
        await until(lambda: len(rig.done) == 6)
        await until(lambda: len(running) == 1)
        lane.live_at = -1000.0  # a minute later
        lane.woken.set()
        await until(lambda: len(running) == 3)
        for n in range(7):
            end(f"old{n}")
        await until(lambda: len(rig.done) == 9)
