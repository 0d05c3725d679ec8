"""Keeps facts for the night, and slow or failing providers off the frames."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from datetime import date, datetime, timedelta
from typing import Any, TypeVar

import structlog

from koa_shared.contracts import utcnow
from koa_shared.errors import DependencyDown

from . import Night, Proposal, Provider, Weather, night_of, semester

logger = structlog.get_logger("koa_preparer")

T = TypeVar("T")
KEEP, BRIEF = 12 * 3600.0, 60.0
# Facts kept at most: some nights of every instrument and the weather of an hour.
MOST = 2048
# One lookup is several calls at once; this ends even an answer that drips.
LONGEST = 5.0


class Circuit:
    """Opens for 30 s after three failures in a row; one probe at a time closes it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._failures, self._probe_at = clock, 0, 0.0

    @property
    def is_open(self) -> bool:
        """Whether the upstream is held to be down."""
        return self._failures >= 3

    def allow(self) -> bool:
        """Tell whether a call may go out; while open that makes it the probe."""
        if self.is_open and self._clock() < self._probe_at:
            return False
        self._probe_at = self._clock() + 30
        return True

    def settle(self, *, ok: bool) -> None:
        """Take note of how a call went."""
        self._failures = 0 if ok else self._failures + 1
        self._probe_at = self._clock() + 30


def _whole(value: Night | Proposal | Weather | None) -> bool:
    if isinstance(value, Weather):
        return None not in value.values.values()
    return value is not None and not any(v in (None, ()) for v in vars(value).values())


class CachedProvider:
    """A provider that is asked once per night and fact, however many the frames.

    What is absent or has gaps is asked again after `brief` seconds; until then, and
    while that goes on, a known fact is given as it was (but for weather).
    """

    def __init__(
        self,
        provider: Provider,
        *,
        keep: float = KEEP,
        brief: float = BRIEF,
        clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._provider, self._keep, self._brief = provider, keep, brief
        self._clock, self._on_close = clock, on_close
        self._cache: dict[Hashable, tuple[Any, float]] = {}
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}
        self._circuits: dict[str, Circuit] = {}

    @property
    def down(self) -> tuple[str, ...]:
        """The upstreams whose circuit is open."""
        return tuple(name for name, c in self._circuits.items() if c.is_open)

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night | None:
        """Return who observes with this instrument in this night."""
        ask = self._provider.night
        return await self._get("schedule", ask, hst_date, telescope, instrument)

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal of a program, `YYYYS_PROG`."""
        return await self._get("proposal", self._provider.proposal, semid)

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the weather samples nearest to `at`."""
        # Each telescope has an archiver of its own, hence a circuit of its own.
        ask = self._provider.weather
        return await self._get(f"weather{telescope}", ask, telescope, at)

    def override(self, instrument: str, at: datetime) -> str | None:
        """Return the program an operator has set for this time, if any."""
        return self._provider.override(instrument, at)

    async def _get(
        self, upstream: str, ask: Callable[..., Awaitable[T | None]], *key: Hashable
    ) -> T | None:
        at = (upstream, *key)
        value: T | None
        value, until = self._cache.get(at, (None, 0.0))
        if self._clock() < until:
            self._cache[at] = self._cache.pop(at)  # the longest unused goes first
            return value
        if at not in self._flights:
            self._flights[at] = asyncio.create_task(self._fetch(upstream, ask, *key))
            self._flights[at].add_done_callback(lambda done: self._land(at, done))
        if value is not None and not isinstance(value, Weather):
            return value
        found: T | None = await asyncio.shield(self._flights[at])
        return found

    async def _fetch(
        self, upstream: str, ask: Callable[..., Awaitable[Any]], *key: Hashable
    ) -> Any:
        circuit = self._circuits.setdefault(upstream, Circuit(self._clock))
        if not circuit.allow():
            raise DependencyDown(upstream, "its circuit is open")
        try:
            async with asyncio.timeout(LONGEST):
                value = await ask(*key)
        except Exception as error:
            circuit.settle(ok=False)
            logger.warning("Lookup failed", upstream=upstream, why=repr(error))
            raise DependencyDown(upstream, repr(error)) from error
        circuit.settle(ok=True)
        if lasts := self._keep if _whole(value) else self._brief:
            self._cache[(upstream, *key)] = (value, self._clock() + lasts)
        while len(self._cache) > MOST:
            del self._cache[next(iter(self._cache))]
        return value

    def _land(self, at: Hashable, flight: asyncio.Task[Any]) -> None:
        del self._flights[at]
        if not flight.cancelled():
            flight.exception()  # so that asyncio does not report it as never seen

    async def prefetch(self, instruments: Mapping[str, int | None], night: date) -> None:
        """Ask for a night and its programs before a frame does; never raises.

        `instruments` is name to telescope; None (either one) asks for both.
        """
        both = [(name, t) for name in instruments for t in (1, 2)]
        for name, telescope in both:
            if instruments[name] not in (telescope, None):
                continue
            try:
                found = await self.night(night, telescope, name)
                for project in {s.project for s in found.slots} if found else ():
                    long = "_" in project
                    semid = project if long else f"{semester(night)}_{project}"
                    await self.proposal(semid)
            except DependencyDown as error:
                logger.info("Prefetch failed", instrument=name, why=str(error))

    async def keep_ready(self, instruments: Mapping[str, int | None]) -> None:
        """Prefetch tonight, at once and every 10 min; runs until cancelled.

        Tonight changes at HST noon (22:00 UT); what is cached costs nothing.
        """
        while True:
            await self.prefetch(instruments, night_of(utcnow() + timedelta(hours=2)))
            await asyncio.sleep(600)

    async def aclose(self) -> None:
        """End the lookups under way and close what the provider needed."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._on_close:
            await self._on_close()
