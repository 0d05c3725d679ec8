"""The live stream on both engines: read once for all who listen, and no gap for anyone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from koa_ingestor.api import _entries
from koa_ingestor.app import Ingestor
from koa_ingestor.config import Config
from koa_shared.contracts import Event, EventBatch, FileWritten
from koa_shared.db import Database
from koa_shared.web import Caller

OPERATOR = Caller(name="sre", role="operator")
OpenDatabase = Callable[..., Database]
Tell = Callable[[int], Any]


@pytest.fixture
async def site(database: OpenDatabase, tmp_path: Path) -> AsyncIterator[Ingestor]:
    config = Config(dev=True, var=tmp_path, database_url=database("ingestor").url)
    context = Ingestor(config)
    yield context
    await context.http.aclose()
    context.db.close()


@pytest.fixture
def tell(
    site: Ingestor, new_file: Callable[..., FileWritten], new_event: Callable[..., Event]
) -> Tell:
    """Make this many frames known, each with a change of its own."""
    names = iter(range(10_000))

    async def some(count: int) -> None:
        files = [new_file(f"kb{next(names):04}.fits") for _ in range(count)]
        events = [new_event(file, "PROCESSING") for file in files]
        await site.db.write(site.store.apply, EventBatch(events=events))

    return some


async def listen(
    site: Ingestor, seen: list[int], last: int | None = None, caller: Caller = OPERATOR
) -> None:
    """Note the ids of events as they come."""
    async for text in _entries(site, lambda: caller, last):
        lines = text.splitlines()
        at = [n for n, line in enumerate(lines) if line.startswith("event:")]
        seen += [int(lines[n - 1].removeprefix("id: ")) for n in at]


async def until(seen: list[list[int]], count: int) -> None:
    async with asyncio.timeout(20):
        while any(len(ids) < count for ids in seen):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_who_is_ahead_of_a_catalogue_from_a_backup_is_told(
    site: Ingestor, tell: Tell
) -> None:
    await tell(3)
    end = await site.db.read(site.store.stream_end)
    entries, text = _entries(site, lambda: OPERATOR, end + 50), ""
    text = await anext(entries)
    assert text == f"event: reset\nid: {end}\ndata: {{}}\n\n"
    await tell(1)
    while "event: PROCESSING" not in text:
        text = await asyncio.wait_for(anext(entries), 20)
    assert f"id: {end + 1}\n" in text
    await entries.aclose()  # type: ignore[attr-defined]


async def test_many_listeners_cost_few_reads(
    site: Ingestor, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    kind = type(site.store)
    plain = kind.stream_after

    def counted(self: Any, session: Any, last: int) -> Any:
        asked.append(last)
        return plain(self, session, last)

    monkeypatch.setattr(
        next(k for k in kind.__mro__ if "stream_after" in vars(k)), "stream_after", counted
    )
    seen: list[list[int]] = [[] for _ in range(50)]
    tasks = [asyncio.create_task(listen(site, ids)) for ids in seen]
    await asyncio.sleep(0.2)
    for n in range(5):
        await tell(3)
        await until(seen, 3 * (n + 1))
    assert seen == [[*range(1, 16)]] * 50
    assert 5 <= len(asked) < 50  # not several for each listener and change
    for task in tasks:
        task.cancel()


async def test_who_is_behind_catches_up_without_a_gap(site: Ingestor, tell: Tell) -> None:
    live: list[int] = []
    tasks = [asyncio.create_task(listen(site, live, 0))]
    for _ in range(8):
        await tell(5)
    await until([live], 40)
    seen: list[list[int]] = [[], [], [], []]
    starts = (0, 29, 30, 35)
    tasks += [
        asyncio.create_task(listen(site, ids, start))
        for ids, start in zip(seen, starts, strict=True)
    ]
    await tell(7)
    await until([live], 47)
    await until([seen[0]], 47)
    await until([seen[3]], 12)
    await until(seen[1:3], 17)
    for ids, start in zip([live, *seen], (0, *starts), strict=True):
        assert ids == [*range(start + 1, 48)]
    for task in tasks:
        task.cancel()


async def test_each_listener_has_the_view_of_its_own(site: Ingestor, tell: Tell) -> None:
    texts: dict[str, str] = {}

    async def one(caller: Caller) -> None:
        async for text in _entries(site, lambda: caller, 0):
            texts[caller.role] = texts.get(caller.role, "") + text

    tasks = [asyncio.create_task(one(caller)) for caller in (OPERATOR, Caller(), OPERATOR)]
    await tell(1)
    async with asyncio.timeout(10):
        while not all("data:" in texts.get(role, "") for role in ("operator", "public")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "/s/sdata1400/kcwi1" in texts["operator"]
    assert "/s/sdata1400/kcwi1" not in texts["public"]
    for task in tasks:
        task.cancel()
