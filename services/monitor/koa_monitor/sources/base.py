"""What all keyword sources share: the queue, the reads of a path, back-off, health.

An adapter says how to subscribe (`_listen`) and how to read keywords (`read`), and calls
`connect`, `disconnect`, `beat` and `heard`.  Updates wait in a queue that has no end, so
that neither a slow consumer nor a slow read holds up a control system.
"""

import asyncio
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from koa_shared.instruments import Source
from koa_shared.retry import backoff

logger = structlog.get_logger("koa_monitor")

HEARTBEAT_GRACE = 2.0  # production adds it to every period, against false alarms (facts 1.1)
READ_SECONDS = 2.0  # the keywords of one path must be there and agree within this time
CHECK_SECONDS = 1.0  # how soon it is noticed that a subscription or a heartbeat has ended
LONGEST_BACKOFF = 10.0  # what returns after a night must be heard at once


class SourceUnavailable(Exception):
    """A source can't be used as configured; the sentence says what to do."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """One keyword update as heard; `time` is the keyword server's own stamp, UTC.

    `read` holds `Source.path_keywords` as read right after, if `value` is the required one.
    It lacks them if they could not be read: a rescan has to find the file.  `initial` marks
    the value that came with a (re)connection: it may be old, or set while nobody listened.
    """

    source: str
    keyword: str
    value: str
    time: datetime
    initial: bool = False
    read: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class SourceHealth:
    """How a source stands now; `last_beat` is of the monotonic clock."""

    connected: bool = False
    last_value: str | None = None
    last_time: datetime | None = None
    last_error: str | None = None
    last_beat: float | None = None
    beat_limit: float = float("inf")

    @property
    def heartbeat_age(self) -> float | None:
        """Seconds since the last heartbeat or, if none came, since the first connection."""
        return None if self.last_beat is None else time.monotonic() - self.last_beat

    @property
    def heartbeat_lost(self) -> bool:
        """Whether it stays away."""
        return (self.heartbeat_age or 0) > self.beat_limit


Hear = Callable[[Broadcast], Awaitable[None] | None]
OnConnect = Callable[[str], Awaitable[None] | None]


class KeywordSource(Protocol):
    """One keyword of one control system, with its name in the instrument file."""

    name: str
    health: SourceHealth

    async def run(self, hear: Hear, on_connect: OnConnect = lambda _: None) -> None:
        """Listen until cancelled; reconnect for ever.

        Every update leads to one call of `hear`, in order, and each (re)connection to one
        of `on_connect` with the source's name, ahead of the initial value.  The calls wait
        for each other; what they raise is logged and ends nothing.
        """


class QueuedSource(ABC):
    """A keyword source but for its control system; see the module's docstring."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.health = source, source.name, SourceHealth()
        if source.heartbeat:
            self.health.beat_limit = source.heartbeat.seconds + HEARTBEAT_GRACE
        self._loop: asyncio.AbstractEventLoop | None = None  # while it runs
        self._initial = True

    @abstractmethod
    async def _listen(self) -> None:
        """Subscribe, and return or raise only when it has to be done again."""

    @abstractmethod
    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords of the same service, afresh."""

    async def run(self, hear: Hear, on_connect: OnConnect = lambda _: None) -> None:
        """Listen until cancelled (see KeywordSource.run)."""
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.Lock()
        # Updates whose paths are being read; None stands for a (re)connection.
        self._heard: asyncio.Queue[asyncio.Task[Broadcast] | None] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._supervise())
                tasks.create_task(self._deliver(hear, on_connect))
        finally:
            self._loop = None
            self.disconnect("not running")

    def connect(self) -> None:
        """Note that the control system answers."""
        if not self.health.connected:
            logger.info("Source is connected", source=self.name)
            self.health.connected, self.health.last_error = True, None
            if self.source.heartbeat and self.health.last_beat is None:
                self.beat()
            self._heard.put_nowait(None)

    def disconnect(self, why: str) -> None:
        """Note that the control system is gone; the next value is an initial one."""
        if self.health.connected or why != self.health.last_error:
            logger.warning("Source is not connected", source=self.name, why=why)
        self.health.connected, self.health.last_error, self._initial = False, why, True

    def beat(self) -> None:
        """Note a heartbeat."""
        self.health.last_beat = time.monotonic()

    def heard(self, value: str, stamp: datetime, read: Mapping[str, str] | None = None) -> None:
        """Take one update in; the same value and stamp again are the same update."""
        self.connect()
        health, initial, self._initial = self.health, self._initial, False
        if initial or (value, stamp) != (health.last_value, health.last_time):
            health.last_value, health.last_time = value, stamp
            keyword = self.source.keyword
            update = Broadcast(self.name, keyword, value, stamp, initial, read or {})
            # The path is read right after the trigger, whatever `hear` is at.
            self._heard.put_nowait(asyncio.create_task(self._with_path(update)))

    async def _with_path(self, update: Broadcast) -> Broadcast:
        keywords = self.source.path_keywords
        if not keywords or update.read or self.source.required not in (None, update.value):
            return update
        try:
            async with self._reading, asyncio.timeout(READ_SECONDS):
                # Until two reads agree: the keywords are not one atomic value.
                last, read = None, await self.read(keywords)
                while read != last:
                    last, read = read, await self.read(keywords)
                return replace(update, read=read)
        except Exception as error:  # noqa: BLE001 (whatever a control system raises)
            why = str(error) or f"no answer in {READ_SECONDS:g} s"
        self.health.last_error = f"{', '.join(keywords)} can't be read: {why}"
        logger.warning("Path keywords can't be read", source=self.name, why=self.health.last_error)
        return update

    async def _supervise(self) -> None:
        attempt = 0
        while True:
            try:
                await self._listen()
                why = "subscription ended"
            except Exception as error:  # noqa: BLE001 (a source never ends)
                why = f"{type(error).__name__}: {error}"
            attempt = 0 if self.health.connected else attempt + 1
            self.disconnect(why)
            await asyncio.sleep(backoff(attempt, 0.2, LONGEST_BACKOFF))

    async def _until(self, ended: Callable[[], bool]) -> None:
        """Wait until a subscription has ended, and report a heartbeat that stays away."""
        lost = False
        while not ended():
            if self.health.heartbeat_lost != lost:
                lost = not lost
                sentence = "Heartbeat is lost" if lost else "Heartbeat is back"
                logger.warning(sentence, source=self.name)
            await asyncio.sleep(CHECK_SECONDS)

    async def _deliver(self, hear: Hear, on_connect: OnConnect) -> None:
        while True:
            update = await self._heard.get()
            try:
                result = hear(await update) if update else on_connect(self.name)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("A broadcast could not be handled", source=self.name)


class ThreadedSource(QueuedSource):
    """A source whose library blocks, and calls back on threads of its own.

    Such a library tells nothing of connections: a lost heartbeat is a disconnection, and
    without one a source counts as connected once it could subscribe (facts 1.1, 1.5).
    """

    def __init__(self, source: Source, module: Any) -> None:
        super().__init__(source)
        self.module = module
        self._registered = False
        # One thread each: a service that hangs holds up no other source.
        self._pool = ThreadPoolExecutor(1, f"source-{source.name}")

    @abstractmethod
    def _register(self) -> None:
        """Register the callbacks; may block."""

    @abstractmethod
    def _fetch(self, keyword: str) -> str:
        """Read one keyword afresh, and call back if it is the trigger; may block."""

    async def _listen(self) -> None:
        stale = self.health.last_beat
        if not self._registered:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._register)
            self._registered = True
        await self.read((self.source.keyword,))
        self.connect()
        # A heartbeat that was lost before has to come back to be lost again.
        await self._until(lambda: self.health.last_beat != stale and self.health.heartbeat_lost)
        raise ConnectionError(f"no heartbeat for {self.health.beat_limit:g} s")

    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords one after the other."""
        loop = asyncio.get_running_loop()
        return {k: await loop.run_in_executor(self._pool, self._fetch, k) for k in keywords}

    def on_update(self, text: str, seconds: float) -> None:
        """Take in an update and its server's stamp; from any thread."""
        self._hand_over(self.heard, text, datetime.fromtimestamp(seconds, UTC))

    def on_heartbeat(self, *_: object) -> None:
        """Take in a heartbeat; from any thread."""
        self._hand_over(self.beat)

    def _hand_over(self, function: Callable[..., None], *args: object) -> None:
        if loop := self._loop:
            loop.call_soon_threadsafe(function, *args)
