"""The facts of one frame, within the time it has.

No look-up stands in a frame's way: what is known is kept for the night, what comes late
is kept for the next who asks, and an upstream that fails is left alone for a while.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from koa_shared.client import open_http
from koa_shared.config import peer_url
from koa_shared.contracts import utcnow
from koa_shared.errors import DependencyDown
from koa_shared.metrics import Metrics
from koa_shared.retry import Circuits

from . import Facts, Night, Proposal, Weather, night_of, semester
from .http import ARCHIVER, HttpProvider
from .toml_file import TomlProvider

T = TypeVar("T")
KEEP, BRIEF = 12 * 3600.0, 60.0
MOST = 2048  # facts kept: some nights of every instrument and the weather of an hour
ROUNDS = 20  # of the event loop, within which cached facts and those of a file come
# Each telescope has an archiver of its own, hence a circuit of its own.
UPSTREAMS = ("schedule", "proposal", "weather1", "weather2")


class _Provider(Protocol):
    # None is the answer that there is no such thing; one that can't answer raises.
    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night: ...
    async def proposal(self, semid: str) -> Proposal | None: ...
    async def weather(self, telescope: int, at: datetime) -> Weather | None: ...
    def override(self, instrument: str, at: datetime) -> str | None: ...


def _has_gaps(fact: Any) -> bool:
    values = fact.values if isinstance(fact, Weather) else vars(fact)
    return any(value in (None, ()) for value in values.values())


class CachedProvider:
    """A provider that is asked once per night and fact, however many the frames.

    What is absent or has gaps is asked again after a minute; while that goes on, a known
    fact is given as it was (but for weather).  With `keep=0` nothing is kept.
    """

    def __init__(
        self, provider: _Provider, circuits: Circuits | None = None, *, keep: float = KEEP,
        clock: Callable[[], float] = time.monotonic,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self._provider, self._keep, self._clock, self._on_close = provider, keep, clock, on_close
        self.override = provider.override
        self.circuits = Circuits(Metrics("preparer")) if circuits is None else circuits
        self._cache: dict[Hashable, tuple[Any, float]] = {}
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}

    @property
    def down(self) -> tuple[str, ...]:
        """The upstreams whose circuit is open."""
        return tuple(name for name in UPSTREAMS if self.circuits.open([name]))

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night:
        """Return who observes with this instrument in this night."""
        return await self._get("schedule", self._provider.night, hst_date, telescope, instrument)

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal of a program, `YYYYS_PROG`."""
        return await self._get("proposal", self._provider.proposal, semid)

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the weather samples nearest to `at`."""
        return await self._get(f"weather{telescope}", self._provider.weather, telescope, at)

    async def _get(self, upstream: str, ask: Callable[..., Awaitable[T]], *key: Hashable) -> T:
        at = (upstream, *key)
        value: T
        value, until = self._cache.get(at, (None, 0.0))
        if self._clock() < until:
            self._cache[at] = self._cache.pop(at)  # the longest unused goes first
            return value
        if at not in self._flights:
            self._flights[at] = asyncio.create_task(self._fetch(upstream, ask, *key))
            self._flights[at].add_done_callback(partial(self._land, at))
        if value is None or isinstance(value, Weather):
            value = await asyncio.shield(self._flights[at])
        return value

    async def _fetch(self, upstream: str, ask: Callable[..., Awaitable[T]], *key: Hashable) -> T:
        circuit = self.circuits[upstream]
        if circuit.wait():
            raise DependencyDown(upstream, circuit.reason)
        try:
            value = await ask(*key)
        except Exception as error:
            circuit.failed(repr(error))
            raise DependencyDown(upstream, repr(error)) from error
        circuit.succeeded()
        if self._keep:
            lasts = BRIEF if value is None or _has_gaps(value) else self._keep
            self._cache[(upstream, *key)] = value, self._clock() + lasts
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
        for name, only in instruments.items():
            for telescope in (only,) if only else (1, 2):
                with suppress(DependencyDown):
                    found = await self.night(night, telescope, name)
                    for project in {slot.project for slot in found.slots}:
                        semid = project if "_" in project else f"{semester(night)}_{project}"
                        await self.proposal(semid)

    async def keep_ready(self, instruments: Mapping[str, int | None]) -> None:
        """Prefetch tonight, at once and every 10 min; runs until cancelled.

        Tonight changes at HST noon (22:00 UT); what is cached costs nothing.
        """
        while True:
            await self.prefetch(instruments, night_of(utcnow() + timedelta(hours=2)))
            await asyncio.sleep(600)

    async def aclose(self) -> None:
        """End the look-ups under way and close what the provider needed."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._on_close:
            await self._on_close()


def open_provider(
    schedule: str, archiver: str = "", ca_file: Path | None = None, circuits: Circuits | None = None
) -> CachedProvider:
    """Open what KOA_SCHEDULE names: a TOML file, the API's URL, or (empty) nothing.

    `archiver` is KOA_ARCHIVER, with {tel} where the telescope's number goes.
    Raises ScheduleError for a file, ValueError for a URL that can't be used.
    """
    if "://" not in schedule:
        # A file is as quick as a cache, and a change of it counts at once.
        return CachedProvider(TomlProvider(Path(schedule or os.devnull)), circuits, keep=0)
    base, client = peer_url(schedule), open_http(ca_file=ca_file)
    provider = HttpProvider(base, archiver or ARCHIVER, client)
    return CachedProvider(provider, circuits, on_close=client.aclose)


async def gather_facts(  # noqa: PLR0913 (keyword-only)
    provider: CachedProvider, *, instrument: str, telescope: int, ut: datetime,
    semid_of: Callable[[Night | None], str | None], wait: Awaitable[Any] | float,
) -> Facts:  # fmt: skip
    """Return what is known of a frame when `wait` is over; no provider makes it raise.

    `wait` is seconds, or what the frame waits for anyway (the pass over its file).
    What is not there by then is named in `missing`; its look-up goes on and fills the
    cache, so that asking again a moment later finds it.
    """
    night = asyncio.create_task(provider.night(night_of(ut), telescope, instrument))

    async def proposal() -> Proposal | None:
        # A header that names its program need not wait for a slow schedule.
        semid = semid_of(None) or semid_of(await night)
        return await provider.proposal(semid) if semid else None

    tasks: dict[str, asyncio.Task[Any]] = {
        "schedule": night,
        "proposal": asyncio.create_task(proposal()),
        "weather": asyncio.create_task(provider.weather(telescope, ut)),
    }
    lookups = asyncio.gather(*tasks.values(), return_exceptions=True)
    if isinstance(wait, int | float):
        await asyncio.wait([lookups], timeout=wait)
    else:
        over = asyncio.ensure_future(wait)
        await asyncio.wait([lookups, over], return_when=asyncio.FIRST_COMPLETED)
    for _ in range(ROUNDS):
        if lookups.done():
            break
        await asyncio.sleep(0)  # even a frame whose wait is over takes what is there
    found = {n: task.result() for n, task in tasks.items() if task.done() and not task.exception()}
    return Facts(
        prepared_at=utcnow(), missing=tuple(name for name in tasks if name not in found),
        night=found.get("schedule"), proposal=found.get("proposal"), weather=found.get("weather"),
        override=provider.override(instrument, ut),
    )  # fmt: skip
