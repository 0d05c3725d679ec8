"""The loops that work off a service's queues: claim, run, settle (design 5)."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import structlog
from sqlmodel import Session

from .. import logs
from ..db import Database
from ..errors import DependencyDown, LeaseLost, NotYet
from ..metrics import Metrics
from ..retry import Circuits, backoff
from .queue import LEASE_SECONDS, Claim, Job, JobQueue

__all__ = ["Failure", "Lane", "Workshop"]

logger = structlog.get_logger("koa_shared")

MAX_ATTEMPTS = 5  # failures of the frame itself, before an operator is asked
STOP_SECONDS = 8.0  # what SIGTERM leaves running work, of the 10 s it may take


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt; `delay` is None when the job is parked."""

    error: Exception
    attempt: int
    delay: float | None


@dataclass(frozen=True, slots=True)
class Lane:
    """One queue, who works on it, and what that work needs."""

    queue: str
    handle: Callable[[Job], Awaitable[None]]
    failed: Callable[[Session, Job, Failure], None]
    slots: int = 2
    needs: tuple[str, ...] = ()
    budget: int | None = None
    paused: Callable[[], frozenset[str]] = frozenset
    settled: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _State:
    running: dict[asyncio.Task[None], Job] = field(default_factory=dict)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    beat: float = field(default_factory=time.monotonic)

    def bytes(self) -> int:
        return sum(job.size for job in self.running.values())

    def done(self, task: asyncio.Task[None]) -> None:
        del self.running[task]
        self.woken.set()


class Workshop:
    """All lanes of one service process."""

    def __init__(
        self, db: Database, queue: JobQueue, circuits: Circuits, metrics: Metrics
    ) -> None:
        self.db, self.queue, self.circuits, self.metrics = db, queue, circuits, metrics
        self._lanes: dict[str, tuple[Lane, _State]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._insisting: set[asyncio.Task[None]] = set()
        self._stopping = False
        # Other replicas put jobs into the same PostgreSQL; SQLite is ours alone.
        self._idle = 30.0 if db.is_sqlite else 1.0

    def add(self, lane: Lane) -> None:
        """Open a lane; before the workshop starts."""
        self._lanes[lane.queue] = (lane, _State())

    def wake(self, *queues: str) -> None:
        """Jobs were put into these queues."""
        for queue in queues:
            self._lanes[queue][1].woken.set()

    def is_alive(self) -> bool:
        """Tell whether every loop turned within the last two minutes."""
        limit = time.monotonic() - 120
        return all(state.beat > limit for _, state in self._lanes.values())

    async def __aenter__(self) -> Self:
        await self.db.write(self.queue.recover)
        for lane, state in self._lanes.values():
            self._loops.append(asyncio.create_task(self._loop(lane, state)))
        self._loops.append(asyncio.create_task(self._measure()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        for loop in self._loops:
            loop.cancel()
        tasks = [task for _, state in self._lanes.values() for task in state.running]
        if tasks:
            late = (await asyncio.wait(tasks, timeout=STOP_SECONDS))[1]
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _loop(self, lane: Lane, state: _State) -> None:
        while True:
            state.beat = time.monotonic()
            state.woken.clear()
            try:
                wait = await self._turn(lane, state)
            except DependencyDown as error:
                wait = self._down(error)
            except Exception:
                logger.exception("A loop failed", queue=lane.queue)
                wait = 1.0
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(state.woken.wait(), wait)

    def _down(self, error: DependencyDown) -> float:
        circuit = self.circuits[error.dependency]
        circuit.failed(str(error))
        return max(0.05, circuit.wait())

    async def _turn(self, lane: Lane, state: _State) -> float:
        """Claim one job if there is room; return how long to wait before the next."""
        # While a dependency is down one job at a time is the probe.
        slots = 1 if self.circuits.is_open(lane.needs) else lane.slots
        if len(state.running) >= slots:
            return self._idle
        if (wait := self.circuits.wait(lane.needs)) > 0:
            return wait
        room = None
        if lane.budget is not None and state.running:
            room = lane.budget - state.bytes()
        job = await self.db.write(
            self.queue.claim, Claim(lane.queue, room, lane.paused())
        )
        self.circuits["database"].succeeded()
        if job is not None:
            task = asyncio.create_task(self._work(lane, job))
            state.running[task] = job
            task.add_done_callback(state.done)
            return 0.0
        due = await self.db.read(self.queue.next_in, lane.queue)
        return self._idle if not due else min(self._idle, max(due, 0.002))

    async def _work(self, lane: Lane, job: Job) -> None:
        logs.bind(self.metrics.service, job.trace or None, key=job.key)
        keeper = asyncio.create_task(self._keep(job))
        outcome = "done"
        try:
            await lane.handle(job)
            for name in lane.needs:
                self.circuits[name].succeeded()
        except BaseException as error:
            outcome = await self._settle(lane, job, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            keeper.cancel()
            self.metrics.attempts.labels(
                self.metrics.service, lane.queue, outcome
            ).inc()

    async def _settle(self, lane: Lane, job: Job, error: BaseException) -> str:
        """Put a job back whose attempt did not end well; return how it ended."""
        try:
            match error:
                case LeaseLost():
                    return "lease_lost"
                case NotYet():
                    await self._again(job, error.delay, str(error))
                    return "not_yet"
                case DependencyDown():
                    await self._again(job, self._down(error), str(error))
                    return "dependency"
                case Exception():
                    return await self._failed(lane, job, error)
                case _:
                    await self._again(job, 0.0, "the service was stopped")
                    return "stopped"
        except LeaseLost:
            return "lease_lost"
        except DependencyDown as down:
            self._down(down)
            # The row stays leased; on PostgreSQL the lease runs out, on SQLite:
            insisting = asyncio.create_task(self._insist(job))
            self._insisting.add(insisting)  # the loop alone would not keep it
            insisting.add_done_callback(self._insisting.discard)
            return "unsettled"

    async def _again(self, job: Job, delay: float, error: str) -> None:
        await self.db.write(self.queue.again, job, delay, error, counts=False)

    async def _insist(self, job: Job) -> None:
        """Give a job back once the database can take it."""
        with contextlib.suppress(LeaseLost):
            while True:
                with contextlib.suppress(DependencyDown):
                    await self._again(job, 0.0, "the database was away")
                    self.wake(job.queue)
                    return
                await asyncio.sleep(1)

    async def _failed(self, lane: Lane, job: Job, error: Exception) -> str:
        attempt = job.attempts + 1
        parked = attempt >= MAX_ATTEMPTS
        delay = None if parked else backoff(attempt)
        logger.error(
            "An attempt failed", attempt=attempt, next_in=delay, exc_info=error
        )

        def settle(session: Session) -> None:
            if delay is None:
                self.queue.park(session, job, repr(error))
            else:
                self.queue.again(session, job, delay, repr(error), counts=True)
            lane.failed(session, job, Failure(error, attempt, delay))

        await self.db.write(settle)
        lane.settled()
        return "parked" if parked else "failed"

    async def _keep(self, job: Job) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            with contextlib.suppress(DependencyDown, LeaseLost):
                await self.db.write(self.queue.renew, job)

    async def _measure(self) -> None:
        service = self.metrics.service
        while True:
            with contextlib.suppress(DependencyDown):
                rows = await self.db.read(self.queue.depths)
                counts = {q: [0, 0.0, 0] for q in self._lanes}
                for queue, state, count, age in rows:
                    if queue in counts and state == "parked":
                        counts[queue][2] = count
                    elif queue in counts:
                        counts[queue][0] += count
                        counts[queue][1] = max(counts[queue][1], age)
                for queue, (depth, age, _) in counts.items():
                    self.metrics.depth.labels(service, queue).set(depth)
                    self.metrics.oldest.labels(service, queue).set(age)
                self.metrics.parked.labels(service).set(
                    sum(parked for _, _, parked in counts.values())
                )
            await asyncio.sleep(5)
