"""What all keyword sources share: the queue, the reads of a path, back-off, heartbeats."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from koa_shared import faults
from koa_shared.instruments import Source
from koa_shared.retry import backoff

logger = structlog.get_logger("koa_monitor")

HEARTBEAT_GRACE = 2.0  # production adds it to every period, against false alarms (facts 1.1)
READ_SECONDS = 2.0  # the keywords of one path must be there and agree within this time
CHECK_SECONDS = 1.0  # how soon it is noticed that a subscription or a heartbeat has ended
LONGEST_BACKOFF = 10.0  # what returns after a night must be heard at once


class Broadcast(NamedTuple):
    """One keyword update as heard; `time` is the keyword server's own stamp, UTC.

    `initial` marks the value that came with a (re)connection: it may be old, or set while
    nobody listened.  `read` holds `Source.path_keywords` as read right after, if `value` is
    the required one.  It lacks them if they could not be read: a rescan has to find the file.
    """

    source: str
    service: str
    keyword: str
    value: str
    time: datetime
    initial: bool
    read: Mapping[str, str]


class KeywordSource(ABC):
    """One keyword of one control system, with its name in the instrument file.

    An adapter says how to subscribe (`_listen`) and how to read keywords (`read`), and calls
    `connect`, `disconnect`, `beat` and `heard`.  Updates wait in a queue that has no end, so
    that neither a slow consumer nor a slow read holds up a control system.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        self.connected, self._initial = False, True
        self.last: tuple[str, datetime] | None = None  # value and stamp
        self.last_error: str | None = None
        self.last_beat: float | None = None  # on the monotonic clock
        period = source.heartbeat.seconds if source.heartbeat else float("inf")
        self.beat_limit = period + HEARTBEAT_GRACE
        self._reading = asyncio.Lock()
        self._heard: asyncio.Queue[asyncio.Task[Broadcast]] = asyncio.Queue()

    @abstractmethod
    async def _listen(self) -> None:
        """Subscribe, and return or raise only when it has to be done again."""

    @abstractmethod
    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords of the same service, afresh."""

    @property
    def heartbeat_age(self) -> float | None:
        """Seconds since the last heartbeat or, if none came, since the first connection."""
        return None if self.last_beat is None else time.monotonic() - self.last_beat

    async def run(self, hear: Callable[[Broadcast], Awaitable[None]]) -> None:
        """Listen until cancelled; reconnect for ever.

        Every update leads to one call of `hear`.  The calls come in order and wait for each
        other; what they raise is logged and ends nothing.
        """
        await asyncio.gather(self._keep_listening(), self._deliver(hear))

    async def _keep_listening(self) -> None:
        attempt = 0
        while True:
            try:
                await self._listen()
                why = "subscription ended"
            except Exception as error:  # noqa: BLE001 (a source never ends)
                why = f"{type(error).__name__}: {error}"
            attempt = 0 if self.connected else attempt + 1
            self.disconnect(why)
            await asyncio.sleep(backoff(attempt, 0.2, LONGEST_BACKOFF))

    async def _deliver(self, hear: Callable[[Broadcast], Awaitable[None]]) -> None:
        while True:
            update = await self._heard.get()
            try:
                heard = await update
                with faults.around("hear", heard.source):
                    await hear(heard)
            except Exception:
                logger.exception("A broadcast could not be handled", source=self.name)

    def connect(self) -> None:
        """Note that the control system answers."""
        if not self.connected:
            logger.info("Source is connected", source=self.name)
            self.connected, self.last_error = True, None
            if self.source.heartbeat and self.last_beat is None:
                self.beat()

    def disconnect(self, why: str) -> None:
        """Note that the control system is gone; the next value is an initial one."""
        if self.connected or why != self.last_error:
            logger.warning("Source is not connected", source=self.name, why=why)
        self.connected, self.last_error, self._initial = False, why, True

    def beat(self, *_: object) -> None:
        """Note a heartbeat; from any thread."""
        self.last_beat = time.monotonic()

    def heard(self, value: str, stamp: datetime, read: Mapping[str, str] | None = None) -> None:
        """Take one update in; the same value and stamp again are the same update."""
        self.connect()
        initial, self._initial = self._initial, False
        if initial or (value, stamp) != self.last:
            self.last, names = (value, stamp), (self.name, self.source.service, self.source.keyword)
            update = Broadcast(*names, value, stamp, initial, read or {})
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
                return update._replace(read=read)
        except Exception as error:  # noqa: BLE001 (whatever a control system raises)
            why = repr(error)
            logger.warning("Path can't be read", source=self.name, keywords=keywords, why=why)
            return update


class ThreadedSource(KeywordSource):
    """A source whose library blocks, and calls back on threads of its own.

    Such a library tells nothing of connections: a lost heartbeat is a disconnection, and
    without one a source counts as connected once it could subscribe (facts 1.1, 1.5).
    """

    def __init__(self, source: Source, module: Any) -> None:
        super().__init__(source)
        self.module, self._loop, self._registered = module, asyncio.get_running_loop(), False
        # One thread each: a service that hangs holds up no other source.
        self._pool = ThreadPoolExecutor(1, f"source-{source.name}")

    @abstractmethod
    def _register(self) -> None:
        """Register the callbacks; may block."""

    @abstractmethod
    def _fetch(self, keyword: str) -> str:
        """Read one keyword afresh, and call back if it is the trigger; may block."""

    async def _listen(self) -> None:
        stale = self.last_beat
        if not self._registered:
            await self._loop.run_in_executor(self._pool, self._register)
            self._registered = True
        await self.read((self.source.keyword,))
        self.connect()
        # A heartbeat that was lost before has to come back to be lost again.
        while self.last_beat == stale or (self.heartbeat_age or 0) <= self.beat_limit:  # noqa: ASYNC110
            await asyncio.sleep(CHECK_SECONDS)
        raise ConnectionError(f"no heartbeat for {self.beat_limit:g} s")

    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords one after the other."""
        run = self._loop.run_in_executor
        return {keyword: await run(self._pool, self._fetch, keyword) for keyword in keywords}

    def on_update(self, text: str, seconds: float) -> None:
        """Take in an update and its server's stamp; from any thread."""
        stamp = datetime.fromtimestamp(seconds, UTC)
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self.heard, text, stamp)
