"""The loops that work off a service's queues: claim, run, settle (design 5)."""

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlmodel import Session

from .. import logs
from ..contracts import Finding, Severity, utcnow
from ..db import Database
from ..errors import DependencyDown, LeaseLost, NotYet, WorkerDied
from ..metrics import Metrics
from ..retry import Circuits, backoff
from ..traces import Traces
from .fingerprint import fingerprint
from .queue import LATER, Job, JobQueue, NewJob, Paused

logger = structlog.get_logger("koa_shared")

MAX_ATTEMPTS = 5  # failures of the frame itself, before an operator is asked
LIVE_SECONDS = 60.0  # from a live job on, others leave slots free for the next
STOP_SECONDS = 7.0  # what SIGTERM leaves running work, of the 10 s it may take; requests get 2


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt; `delay` is None when the job is parked."""

    error: Exception
    attempt: int
    delay: float | None
    fingerprint: str = ""

    def finding(self, step: str) -> Finding:
        """Return what stands on the frame's record."""
        code = getattr(self.error, "finding", "CODE_ERROR")
        text = f"{type(self.error).__name__}: {self.error}"
        return Finding(code=code, severity=Severity.ERROR, step=step, message=text)

    def next_at(self) -> datetime | None:
        """Return when the next attempt is due."""
        return None if self.delay is None else utcnow() + timedelta(seconds=self.delay)


def log_failure(_: Session, job: Job, failure: Failure) -> None:
    """Note a failure that is not a frame's."""
    why, parked = repr(failure.error), failure.delay is None
    logger.error("Job failed", queue=job.queue, key=job.key, why=why, parked=parked)


@dataclass
class Lane:
    """One queue, who works on it, and what that work needs.

    `failed` notes a frame's failed attempt in its transaction; `budget` are bytes in
    flight; `paused` names the groups that are held back; `spare` slots are live jobs' alone,
    while there are some.
    """

    queue: str
    handle: Callable[[Job], Awaitable[None]]
    failed: Callable[[Session, Job, Failure], None] = log_failure
    slots: int = 2
    needs: tuple[str, ...] = ()
    budget: int | None = None
    paused: Paused = lambda _: frozenset()
    spare: int = 0
    live_at: float = -LIVE_SECONDS
    running: dict[asyncio.Task[None], Job] = field(default_factory=dict)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    beat: float = field(default_factory=time.monotonic)
    is_idle: bool = False  # the last look found nothing that waits for its turn

    def room(self) -> int | None:
        """Return the bytes that still fit; None is no limit (one job always fits)."""
        if self.budget is None or not self.running:
            return None
        return self.budget - sum(job.size for job in self.running.values())

    @property
    def is_frames(self) -> bool:
        """Whether its failures are those of a frame."""
        return self.failed is not log_failure

    def is_for_live(self) -> bool:
        """Tell whether only a live job may start now."""
        later = sum(job.priority >= LATER for job in self.running.values())
        is_live = time.monotonic() - self.live_at < LIVE_SECONDS
        return is_live and later >= max(1, self.slots - self.spare)


def cause(error: BaseException) -> BaseException:
    """Return what counts of steps side by side: a dependency's fault, else the first."""
    while isinstance(error, BaseExceptionGroup):
        faults = error.exceptions
        error = next((e for e in faults if isinstance(e, DependencyDown)), faults[0])
    return error


def forget(error: BaseException) -> None:
    """Let go of what an error's frames hold: a frame's bytes, until the collector comes."""
    for part in (error, error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if part is not None:
            traceback.clear_frames(part.__traceback__)


class Workshop:
    """All lanes of one service process."""

    def __init__(
        self, db: Database, queue: JobQueue, circuits: Circuits, metrics: Metrics, alike: int = 3
    ) -> None:
        self.db, self.queue, self.circuits, self.metrics = db, queue, circuits, metrics
        self.traces = Traces("")
        self._alike = alike  # frames that fail alike park their group
        self._lanes: dict[str, Lane] = {}
        circuits.closed.append(self._closed)
        self._held_until: dict[tuple[int, int], float] = {}
        self._returning: set[asyncio.Task[None]] = set()
        self._is_open = False
        # A replica that died left jobs in PostgreSQL, and told nobody; SQLite is ours alone.
        self._idle = 30.0 if db.is_sqlite else 5.0

    def add(self, *lanes: Lane) -> None:
        """Open lanes; before the workshop starts."""
        self._lanes |= {lane.queue: lane for lane in lanes}

    def wake(self, *queues: str) -> None:
        """Something may have changed for these queues."""
        for queue in self._lanes.keys() & queues:
            self._lanes[queue].woken.set()

    def _closed(self, dependency: str) -> None:
        needs = (lane for lane in self._lanes.values() if dependency in ("database", *lane.needs))
        self.wake(*(lane.queue for lane in needs))

    def is_alive(self) -> bool:
        """Tell whether every loop turned within the last two minutes."""
        return all(lane.beat > time.monotonic() - 120 for lane in self._lanes.values())

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Work until the block ends; what runs then has 7 s, else its job is given back."""
        await self.db.write(self.queue.recover)
        await self._bury()
        queue = self.queue
        queue.may_start, queue.start, queue.wake = self._may_start, self._start, self.wake
        loops = [asyncio.create_task(self._loop(lane)) for lane in self._lanes.values()]
        loops.append(asyncio.create_task(self._measure()))
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            for loop in loops:
                loop.cancel()
            tasks = {task for lane in self._lanes.values() for task in lane.running}
            tasks |= self._returning
            late = (await asyncio.wait(tasks, timeout=STOP_SECONDS))[1] if tasks else set()
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _may_start(self, session: Session, job: NewJob) -> bool:
        """Guess, in any thread, whether a new job may start without a claim of its own."""
        lane = self._lanes.get(job.queue)
        if not (self._is_open and lane and lane.is_idle and len(lane.running) < lane.slots):
            return False
        if job.priority >= LATER and lane.is_for_live():
            return False
        # Who failed before takes its turn.
        return not job.fingerprint and job.grp not in lane.paused(session)

    def _start(self, job: Job) -> None:
        """Start a job that was put leased, or give it back if there is no room after all."""
        lane = self._lanes[job.queue]
        room = lane.room()
        fits = (room is None or job.size <= room) and not (job.is_suspect and self._running())
        if self._is_open and fits and self._wait(lane) == 0:
            self._run(lane, job)
        else:
            lane.is_idle = False
            lane.woken.set()  # a look that is under way has not seen it
            self._give_back(job, "it waits for its turn")

    def _run(self, lane: Lane, job: Job) -> None:
        def done(task: asyncio.Task[None]) -> None:
            del lane.running[task]
            if job.is_suspect:  # it ran alone
                self.wake(*self._lanes)
            elif not lane.is_idle:
                lane.woken.set()

        if job.priority < LATER:
            lane.live_at = time.monotonic()
        task = asyncio.create_task(self._work(lane, job))
        lane.running[task] = job
        task.add_done_callback(done)

    def _running(self) -> list[Job]:
        """Return the work on frames that a death of this process would be blamed on."""
        lanes = [lane for lane in self._lanes.values() if lane.is_frames]
        return [job for lane in lanes for job in lane.running.values()]

    def _wait(self, lane: Lane) -> float:
        """Return the seconds until a lane may take on one more job; 0 is now."""
        if lane.is_frames and any(job.is_suspect for job in self._running()):
            return self._idle
        # While a dependency is down one job at a time is the probe.
        slots = 1 if self.circuits.open(lane.needs) else lane.slots
        return self._idle if len(lane.running) >= slots else self.circuits.wait(lane.needs)

    async def _loop(self, lane: Lane) -> None:
        while True:
            lane.beat = time.monotonic()
            lane.woken.clear()
            try:
                wait = await self._turn(lane)
            except DependencyDown as error:
                wait = self.circuits[error.dependency].failed(str(error))
            except Exception:
                logger.exception("A loop failed", queue=lane.queue)
                wait = 1.0
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await lane.woken.wait()

    async def _turn(self, lane: Lane) -> float:
        """Claim one job if there is room; return how long to wait before the next."""
        lane.is_idle = False
        if (wait := self._wait(lane)) > 0:
            return wait
        if self._returning:  # what goes back was there before what came since
            await asyncio.wait(self._returning, timeout=5)
        # What it returns has been started, by its commit.
        alone, live, room = not self._running(), lane.is_for_live(), lane.room()
        claim = self.queue.claim
        job = await self.db.write(claim, lane.queue, room, lane.paused, alone=alone, live=live)
        self.circuits["database"].succeeded()
        if job is not None:
            return 0.0
        due = await self.db.read(self.queue.next_in, lane.queue)
        lane.is_idle = due != 0 and not lane.woken.is_set()
        # 0 is due since the claim looked, or held back by a pause or for want of room.
        return self._idle if due is None else min(self._idle, due or 0.25)

    async def _work(self, lane: Lane, job: Job) -> None:
        service = self.metrics.service
        trace, end = self.traces.begin(lane.queue, job.trace)
        logs.bind(service, trace, key=job.key)
        self._held_until[job.id, job.token] = time.monotonic() + self.queue.lease
        keeper = asyncio.create_task(self._keep(job))
        outcome = "done"
        try:
            with self.metrics.timer("job")(lane.queue):
                await lane.handle(job)
            for name in lane.needs:
                self.circuits[name].succeeded()
        except BaseException as error:
            outcome = await self._settle(lane, job, error)
            forget(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            keeper.cancel()
            del self._held_until[job.id, job.token]
            end(outcome)
            self.metrics.attempts.labels(service, lane.queue, outcome).inc()

    async def _settle(self, lane: Lane, job: Job, error: BaseException) -> str:
        """Put a job back whose attempt did not end well; return how it ended."""
        try:
            match error := cause(error):
                case LeaseLost():
                    return "lease_lost"
                case NotYet():
                    await self._again(job, error.delay, str(error))
                    return "not_yet"
                case DependencyDown():
                    delay = self.circuits[error.dependency].failed(str(error))
                    await self._again(job, delay, str(error))
                    return "dependency"
                case Exception():
                    return await self._failed(lane, job, error)
                case _:
                    await self._again(job, 0.0, "the service was stopped")
                    return "stopped"
        except LeaseLost:
            return "lease_lost"
        except Exception as fault:
            # The row stays leased; on PostgreSQL the lease runs out, on SQLite:
            if not isinstance(fault, DependencyDown):
                logger.exception("A job could not be settled", queue=job.queue, key=job.key)
            self._give_back(job, "it could not be settled", 1.0)
            return "unsettled"

    async def _again(self, job: Job, delay: float, error: str) -> None:
        await self.db.write(self.queue.again, job, delay, error)

    def _give_back(self, job: Job, why: str, delay: float = 0.0) -> None:
        async def insist() -> None:
            with contextlib.suppress(LeaseLost):
                while True:
                    with contextlib.suppress(DependencyDown):
                        return await self._again(job, delay, why)
                    await asyncio.sleep(1)

        task = asyncio.create_task(insist())
        self._returning.add(task)  # the loop alone would not keep it
        task.add_done_callback(self._returning.discard)

    async def _failed(self, lane: Lane, job: Job, error: Exception) -> str:
        mark, attempt = fingerprint(error, job.queue), job.attempts + 1
        died = isinstance(error, WorkerDied)

        def settle(session: Session) -> float | None:
            most = MAX_ATTEMPTS
            if lane.is_frames and self.queue.alike(session, job, mark) >= self._alike:
                most = 2 if died else 1  # the second time it has died alone
            delay: float | None = backoff(attempt, 4.0 if died else 0.5)
            if died and attempt == 1:
                delay = 0.0  # later ones are spread: a machine that dies often dies soon again
            delay = None if attempt >= most else delay
            lane.failed(session, job, Failure(error, attempt, delay, mark))
            self.queue.again(session, job, delay, repr(error), mark)
            return delay

        delay = await self.db.write(settle)
        about = {"attempt": attempt, "next_in": delay, "fingerprint": mark}
        logger.error("An attempt failed", **about, exc_info=error)
        return "parked" if delay is None else "failed"

    async def _bury(self) -> None:
        """Count a death against the frames that were worked on when a worker died."""
        for job in await self.db.read(self.queue.orphans):
            lane, died = self._lanes.get(job.queue), WorkerDied(f"at a frame of {job.grp}")
            if lane and lane.is_frames:
                await self._settle(lane, job, died)
                self.metrics.attempts.labels(self.metrics.service, job.queue, "died").inc()
            else:
                self._give_back(job, repr(died))

    async def _keep(self, job: Job) -> None:
        while True:
            await asyncio.sleep(self.queue.lease / 3)
            asked = time.monotonic()
            with contextlib.suppress(DependencyDown, LeaseLost):
                await self.db.write(self.queue.renew, job)
                self._held_until[job.id, job.token] = asked + self.queue.lease

    def insist(self, job: Job) -> None:
        """Raise LeaseLost if this process stood still for so long that another may have it."""
        if not self.db.is_sqlite and time.monotonic() > self._held_until[job.id, job.token]:
            raise LeaseLost

    async def _measure(self) -> None:
        metrics, service = self.metrics, self.metrics.service
        while True:
            with contextlib.suppress(DependencyDown):
                rows = await self.db.read(self.queue.depths)
                for queue in self._lanes:
                    held = [row for row in rows if row[0] == queue and row[1] != "parked"]
                    metrics.depth.labels(service, queue).set(sum(row[2] for row in held))
                    oldest = max((row[3] for row in held), default=0.0)
                    metrics.oldest.labels(service, queue).set(oldest)
                parked = sum(row[2] for row in rows if row[1] == "parked")
                metrics.parked.labels(service).set(parked)
                await self._bury()
            await asyncio.sleep(5)
