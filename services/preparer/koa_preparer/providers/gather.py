"""The facts of one frame, within the time it has."""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from koa_shared.config import peer_url
from koa_shared.contracts import utcnow

from . import Facts, Night, Proposal, Provider, night_of
from .cache import CachedProvider
from .http import ARCHIVER, HttpProvider
from .toml_file import TomlProvider

SemidOf = Callable[[Night | None], str | None]
# A frame whose wait is over still takes what is there: cached facts, and those of a
# file, come within this many rounds of the event loop.
ROUNDS = 20


def open_provider(schedule: str, archiver: str = "", ca_file: Path | None = None) -> CachedProvider:
    """Open what KOA_SCHEDULE names: a TOML file, the API's URL, or (empty) nothing.

    `archiver` is KOA_ARCHIVER, with {tel} where the telescope's number goes.
    Raises ScheduleError for a file, ValueError for a URL that can't be used.
    """
    if "://" not in schedule:
        # A file is as quick as a cache, and a change of it counts at once.
        path = Path(schedule or os.devnull)
        return CachedProvider(TomlProvider(path), keep=0, brief=0)
    tls = ssl.create_default_context(cafile=ca_file)
    client = httpx.AsyncClient(verify=tls, trust_env=False)
    provider = HttpProvider(peer_url(schedule), archiver or ARCHIVER, client)
    return CachedProvider(provider, on_close=client.aclose)


async def _proposal(
    provider: Provider, night: Awaitable[Night | None], semid_of: SemidOf
) -> Proposal | None:
    try:
        semid = semid_of(await night)
    except Exception:
        # Without a schedule the header may still name the program.
        if (semid := semid_of(None)) is None:
            raise
    return await provider.proposal(semid) if semid else None


async def gather_facts(  # noqa: PLR0913 (keyword-only)
    provider: Provider,
    *,
    instrument: str,
    telescope: int,
    ut: datetime,
    semid_of: SemidOf,
    wait: Awaitable[Any] | float,
) -> Facts:
    """Return what is known of a frame when `wait` is over; no provider makes it raise.

    `wait` is seconds, or what the frame waits for anyway (the pass over its file).
    What is not there by then is named in `missing`; its lookup goes on and fills the
    cache, so that asking again a moment later finds it.
    """
    now, hint = utcnow(), semid_of(None)
    night = asyncio.create_task(provider.night(night_of(ut), telescope, instrument))
    tasks: dict[str, asyncio.Task[Any]] = {
        "schedule": night,
        "proposal": asyncio.create_task(_proposal(provider, night, semid_of)),
        "weather": asyncio.create_task(provider.weather(telescope, ut)),
    }
    # A header that names its program need not wait for a slow schedule.
    early = asyncio.create_task(provider.proposal(hint)) if hint else tasks["proposal"]
    lookups = asyncio.gather(*tasks.values(), early, return_exceptions=True)
    await _while(lookups, wait)
    if not night.done():
        tasks["proposal"] = early
    found = {
        name: task.result() for name, task in tasks.items() if task.done() and not task.exception()
    }
    return Facts(
        prepared_at=now,
        night=found.get("schedule"),
        proposal=found.get("proposal"),
        weather=found.get("weather"),
        override=provider.override(instrument, ut),
        missing=tuple(name for name in tasks if name not in found),
    )


async def _while(lookups: asyncio.Future[Any], wait: Awaitable[Any] | float) -> None:
    if isinstance(wait, int | float):
        await asyncio.wait([lookups], timeout=wait)
    else:
        over = asyncio.ensure_future(wait)
        await asyncio.wait([lookups, over], return_when=asyncio.FIRST_COMPLETED)
    for _ in range(ROUNDS):
        if lookups.done():
            break
        await asyncio.sleep(0)
