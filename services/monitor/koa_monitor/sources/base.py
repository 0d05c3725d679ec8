"""What all keyword sources share: the queue, the reads of a path, back-off, health.

An adapter says how to subscribe (`listen`) and how to read keywords (`read`), and
calls `heard`, `beat`, `connect` and `disconnect`.  Each update goes into a queue that
has no end, so that neither a slow consumer nor a slow read holds up a control system.
"""

import asyncio
import importlib
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Protocol, TypeVar

import structlog

from koa_shared.instruments import Source
from koa_shared.retry import backoff

logger = structlog.get_logger("koa_monitor")

T = TypeVar("T")

# Production adds it to every period, against false alarms (facts 1.1).
HEARTBEAT_GRACE = 2.0
# The keywords of one path must be there and agree within this time.
READ_SECONDS = 2.0
# What returns after a night must be heard at once.
LONGEST_BACKOFF = 10.0


class SourceUnavailable(Exception):
    """A source can't be used as configured; the sentence says what to do."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """One keyword update as heard.

    `time` is the keyword server's own stamp, UTC, to the microsecond.  `read` holds
    `Source.path_keywords` as read right after, and is empty when the path needs none
    or when `value` is not the required one.  If they could not be read, `read` lacks
    them and `error` says why: the path is unknown and a rescan has to find the file.
    `initial` marks the value that came with a (re)connection: it may be old, or have
    been set while nobody listened.
    """

    source: str
    keyword: str
    value: str
    time: datetime
    read: Mapping[str, str] = field(default_factory=dict)
    initial: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """What is known of a source now.

    `heartbeat_age` is seconds since the last heartbeat, or since the connection if
    none came; None without a heartbeat keyword or before the first connection.
    `waiting` counts updates that were heard and not yet handed over.
    """

    connected: bool = False
    heartbeat_age: float | None = None
    heartbeat_lost: bool = False
    last_value: str | None = None
    last_time: datetime | None = None
    last_error: str | None = None
    waiting: int = 0


Hear = Callable[[Broadcast], Awaitable[None] | None]
OnConnect = Callable[[str], Awaitable[None] | None]


class KeywordSource(Protocol):
    """One keyword of one control system."""

    @property
    def name(self) -> str:
        """The source's name in the instrument file."""

    @property
    def health(self) -> SourceHealth:
        """How it stands now."""

    async def run(self, hear: Hear, on_connect: OnConnect | None = None) -> None:
        """Listen until cancelled; reconnect for ever.

        Every update leads to one call of `hear`, in order.  `on_connect` is called
        with the source's name at each (re)connection, ahead of the initial value;
        the calls wait for each other, so it should only start a rescan.  What they
        raise is logged and ends nothing.
        """


def load_module(name: str, what: str) -> ModuleType:
    """Import a control system's Python module, which no package index offers."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SourceUnavailable(
            f"the Python module {name!r} can't be imported ({error}); {what}, or "
            "configure another control system"
        ) from error


class QueuedSource(ABC):
    """A keyword source but for its control system; see the module's docstring."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._health = SourceHealth()
        self._initial = True
        self._beat_at: float | None = None
        self._beat = asyncio.Event()
        self._broken = asyncio.Event()
        self._heard: asyncio.Queue[Broadcast | None] = asyncio.Queue()
        self._ready: asyncio.Queue[Broadcast | None] = asyncio.Queue()

    @abstractmethod
    async def listen(self) -> None:
        """Subscribe, and return or raise only when it has to be done again."""

    @abstractmethod
    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords of the same service, afresh."""

    @property
    def name(self) -> str:
        """The source's name in the instrument file."""
        return self.source.name

    @property
    def health(self) -> SourceHealth:
        """How it stands now."""
        age = None
        if self.source.heartbeat and self._beat_at is not None:
            age = time.monotonic() - self._beat_at
        return replace(
            self._health,
            heartbeat_age=age,
            heartbeat_lost=age is not None and age > self._beat_limit,
            waiting=self._heard.qsize() + self._ready.qsize(),
        )

    @property
    def _beat_limit(self) -> float:
        beat = self.source.heartbeat
        return beat.seconds + HEARTBEAT_GRACE if beat else float("inf")

    async def run(self, hear: Hear, on_connect: OnConnect | None = None) -> None:
        """Listen until cancelled (see KeywordSource.run)."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._supervise())
                tasks.create_task(self._complete())
                tasks.create_task(self._deliver(hear, on_connect))
                if self.source.heartbeat:
                    tasks.create_task(self._watch())
        finally:
            self.disconnect("not running")

    # What an adapter calls, on the event loop.

    def connect(self) -> None:
        """Note that the control system answers."""
        if not self._health.connected:
            logger.info("Source is connected", source=self.name)
            self._health = replace(self._health, connected=True, last_error=None)
            if self._beat_at is None:
                self.beat()
            self._heard.put_nowait(None)

    def disconnect(self, why: str) -> None:
        """Note that the control system is gone; the next value is an initial one."""
        if self._health.connected or why != self._health.last_error:
            logger.warning("Source is not connected", source=self.name, why=why)
        self._initial = True
        self._health = replace(self._health, connected=False, last_error=why)

    def beat(self) -> None:
        """Note a heartbeat."""
        self._beat_at = time.monotonic()
        self._beat.set()

    def heard(self, value: str, stamp: datetime, read: Mapping[str, str] | None = None) -> None:
        """Take one update in; the same value and stamp again are the same update."""
        self.connect()
        repeat = (value, stamp) == (self._health.last_value, self._health.last_time)
        if repeat and not self._initial:
            return
        self._health = replace(self._health, last_value=value, last_time=stamp)
        self._heard.put_nowait(
            Broadcast(self.name, self.source.keyword, value, stamp, read or {}, self._initial)
        )
        self._initial = False

    # The tasks of `run`.

    async def _supervise(self) -> None:
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                await self.listen()
                why = "subscription ended"
            except Exception as error:  # noqa: BLE001 (a source never ends)
                why = f"{type(error).__name__}: {error}"
            self.disconnect(why)
            steady = time.monotonic() - started > LONGEST_BACKOFF
            attempt = 0 if steady else attempt + 1
            await asyncio.sleep(backoff(attempt, 0.2, LONGEST_BACKOFF))

    async def _watch(self) -> None:
        """Report a heartbeat that stays away, once until it is back."""
        await self._beat.wait()
        while True:
            self._beat.clear()
            try:
                # Not wait_for, which loses a cancellation in Python 3.11.
                async with asyncio.timeout(self._beat_limit):
                    await self._beat.wait()
            except TimeoutError:
                logger.warning("Heartbeat is lost", source=self.name)
                self._broken.set()
                await self._beat.wait()
                logger.info("Heartbeat is back", source=self.name)

    async def _complete(self) -> None:
        """Add the path's keywords right after the trigger, before anything waits."""
        while True:
            item = await self._heard.get()
            if item and self._needs_read(item):
                item = await self._with_path(item)
            self._ready.put_nowait(item)

    def _needs_read(self, item: Broadcast) -> bool:
        wanted = self.source.required in (None, item.value)
        return bool(self.source.path_keywords) and wanted and not item.read

    async def _with_path(self, item: Broadcast) -> Broadcast:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return replace(item, read=await self._settled())
        except Exception as error:  # noqa: BLE001 (whatever a control system raises)
            why = str(error) or f"no answer in {READ_SECONDS:g} s"
            why = f"{', '.join(self.source.path_keywords)} can't be read: {why}"
        logger.warning("Path keywords can't be read", source=self.name, why=why)
        self._health = replace(self._health, last_error=why)
        return replace(item, error=why)

    async def _settled(self) -> dict[str, str]:
        """Read until two reads agree: the keywords are not one atomic value."""
        last = await self.read(self.source.path_keywords)
        while (now := await self.read(self.source.path_keywords)) != last:
            last = now
        return now

    async def _deliver(self, hear: Hear, on_connect: OnConnect | None) -> None:
        while True:
            item = await self._ready.get()
            try:
                if item is not None:
                    result = hear(item)
                else:
                    result = on_connect(self.name) if on_connect else None
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("A broadcast could not be handled", source=self.name)


class ThreadedSource(QueuedSource):
    """A source whose library blocks, and calls back on threads of its own.

    Such a library tells nothing of connections: a lost heartbeat is a disconnection.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: ThreadPoolExecutor | None = None

    @abstractmethod
    def subscribe(self) -> None:
        """Register the callbacks, once, and fetch the trigger afresh; may block."""

    @abstractmethod
    def fetch(self, keyword: str) -> str:
        """Read one keyword afresh; may block."""

    async def run(self, hear: Hear, on_connect: OnConnect | None = None) -> None:
        """Listen until cancelled (see KeywordSource.run)."""
        self._loop = asyncio.get_running_loop()
        # One thread each: a service that hangs holds up no other source.
        self._pool = ThreadPoolExecutor(1, f"source-{self.name}")
        try:
            await super().run(hear, on_connect)
        finally:
            self._loop = None
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def listen(self) -> None:
        """Subscribe; return when the heartbeat was lost."""
        self._broken.clear()
        await self._blocking(self.subscribe)
        self.connect()
        await self._broken.wait()
        raise ConnectionError(f"no heartbeat for {self._beat_limit:g} s")

    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords one after the other."""
        return {k: await self._blocking(self.fetch, k) for k in keywords}

    async def _blocking(self, function: Callable[..., T], *args: str) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, function, *args)

    def hand_over(self, function: Callable[..., None], *args: object) -> None:
        """Call `function` on the event loop, in order; from any thread."""
        if loop := self._loop:
            with suppress(RuntimeError):  # the loop was just closed: nobody listens
                loop.call_soon_threadsafe(function, *args)


def from_epoch(seconds: float) -> datetime:
    """Return a time stamp of a keyword server as a UTC time."""
    return datetime.fromtimestamp(seconds, UTC)
