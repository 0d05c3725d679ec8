"""The facts of one frame, within the time it has.

No look-up stands in a frame's way: what is known is kept for the night, what comes late
is kept for the next who asks, and an upstream that fails is left alone for a while.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Hashable
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from koa_shared.client import open_http
from koa_shared.config import peer_url
from koa_shared.contracts import utcnow
from koa_shared.errors import DependencyDown
from koa_shared.retry import Circuits

from ..config import Config
from . import Facts, Night, Proposal, Weather
from .http import HttpProvider
from .toml_file import TomlProvider

T = TypeVar("T")
KEEP, BRIEF = 12 * 3600.0, 60.0
MOST = 2048  # nights and programs kept: weeks of every instrument
ROUNDS = 20  # of the event loop, within which cached facts and those of a file come


class CachedProvider:
    """A provider that is asked once per night and fact, however many the frames.

    None is its answer that there is no such thing; when it can't answer, it raises.
    What is absent or has gaps is asked again after a minute; while that goes on, a known
    fact is given as it was.  With `keep=0` nothing is kept; weather never is.
    """

    def __init__(
        self, provider: HttpProvider | TomlProvider, circuits: Circuits, *,
        keep: float = KEEP, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._provider, self._circuits, self._keep, self._clock = provider, circuits, keep, clock
        self.override = provider.override
        self._known: dict[Hashable, tuple[Any, float]] = {}
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}

    async def night(self, hst_date: date, telescope: int, instrument: str) -> Night:
        """Return who observes with this instrument in this night."""
        return await self._get("schedule", self._provider.night, hst_date, telescope, instrument)

    async def proposal(self, semid: str) -> Proposal | None:
        """Return the proposal of a program, `YYYYS_PROG`."""
        return await self._get("proposal", self._provider.proposal, semid)

    async def weather(self, telescope: int, at: datetime) -> Weather | None:
        """Return the weather samples nearest to `at`."""
        # Each telescope has an archiver of its own, hence a circuit of its own.
        return await self._ask(f"weather{telescope}", self._provider.weather, telescope, at)

    async def _get(self, upstream: str, ask: Callable[..., Awaitable[T]], *key: Hashable) -> T:
        at = (upstream, *key)
        value: T
        value, until = self._known.get(at, (None, 0.0))
        if self._clock() < until:
            return value
        if at not in self._flights:
            self._flights[at] = asyncio.create_task(self._ask(upstream, ask, *key))
            self._flights[at].add_done_callback(partial(self._land, at))
        return await asyncio.shield(self._flights[at]) if value is None else value

    async def _ask(self, upstream: str, ask: Callable[..., Awaitable[T]], *key: Hashable) -> T:
        circuit = self._circuits[upstream]
        if circuit.wait():
            raise DependencyDown(upstream, circuit.reason)
        try:
            value = await ask(*key)
        except Exception as error:
            circuit.failed(repr(error))
            raise DependencyDown(upstream, repr(error)) from error
        circuit.succeeded()
        return value

    def _land(self, at: Hashable, flight: asyncio.Task[Any]) -> None:
        del self._flights[at]
        if flight.cancelled() or flight.exception() or not self._keep:
            return
        value = flight.result()
        has_gaps = value is None or any(part in (None, ()) for part in vars(value).values())
        self._known[at] = value, self._clock() + (BRIEF if has_gaps else self._keep)
        if len(self._known) > MOST:
            del self._known[next(iter(self._known))]


def open_provider(config: Config, circuits: Circuits) -> CachedProvider:
    """Open what KOA_SCHEDULE names: a TOML file, the API's URL, or (empty) nothing.

    Raises ValueError for a file or a URL that can't be used.
    """
    if "://" not in config.schedule:
        # A file is as quick as a cache, and a change of it counts at once.
        return CachedProvider(TomlProvider(Path(config.schedule or os.devnull)), circuits, keep=0)
    client = open_http(ca_file=config.ca_file)  # our token is not for the observatory
    client.base_url = peer_url(config.schedule)
    return CachedProvider(HttpProvider(client, config.archiver), circuits)


async def gather_facts(  # noqa: PLR0913 (keyword-only)
    provider: CachedProvider, *, instrument: str, telescope: int, ut: datetime, schedule: str = "",
    semid_of: Callable[[Night | None], str | None], wait: Awaitable[Any] | float,
) -> Facts:  # fmt: skip
    """Return what is known of a frame when `wait` is over; no provider makes it raise.

    `wait` is seconds, or what the frame waits for anyway (the pass over its file).
    What is not there by then is named in `missing`; its look-up goes on and fills the
    cache, so that asking again a moment later finds it.  `schedule` names the instrument
    whose night it is, if that is another (guiders).
    """
    hst_date = ut.date() - timedelta(days=1)  # after HST noon too (facts 3.1 #7)
    night = asyncio.create_task(provider.night(hst_date, telescope, schedule or instrument))

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
    over = asyncio.ensure_future(asyncio.sleep(wait) if isinstance(wait, int | float) else wait)
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
