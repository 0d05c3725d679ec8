"""`make bench`: pages of `GET /v1/frames` over ten thousand and over a million frames.

The whole request but the socket is measured: token, query, public view, JSON.  Rows are
made by the database itself, in bulk; pages have the usual 100 frames.
"""

import asyncio
import gc
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from koa_ingestor.app import Ingestor, create_app
from koa_ingestor.config import Config

from .catalogue import fill
from .report import percentile, save

SMALL, LARGE = 10_000, 1_000_000
REPEAT = 12
LIMIT = 0.050  # s, of p99
# Of each filter a value that many frames have, one that few have, one that none has.
FILTERS: dict[str, tuple[str, ...]] = {
    "none": ("",),
    "instrument": ("KCWI", "ESI", "HISPEC"),
    "night": ("2026-10-31", "2026-11-01", "1999-01-01"),
    "status": ("COMPLETE", "ERROR", "QUEUED"),
    "program": ("2026A_U007", "2026A_U023", "2020A_N001"),
    "level": ("0", "1", "2"),
    "type": ("object", "dark", "focus"),
    "origin": ("live", "manual", "canary"),
    "path": ("/s/sdata1400/kcwi1/kb9990.fits", "/s/sdata1400/kcwi1/kb17.fits", "/s/nothing"),
    "name": ("kb9990.fits", "kb17.fits", "nothing"),
    "koaid": ("KB.9990", "KB.17", "KB.nothing"),
    "since": ("2026-10-30T00:00:00Z", "2026-11-01T11:00:00Z", "2026-12-01T00:00:00Z"),
}  # fmt: skip
TOKENS = {"operator": [], "observer": ["2026A_U007", "2026A_U014", "2026A_U023"]}


class Site:
    """An ingestor in this process; no lane runs."""

    def __init__(self, url: str, var: Path) -> None:
        tokens = var / "tokens.toml"
        tokens.write_text(
            "".join(
                f'[[token]]\nname = "{name}"\nrole = "{name}"\nprograms = {programs}\n'
                f'sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
                for name, programs in TOKENS.items()
            )
        )
        self.config = Config(tokens_file=tokens, database_url=url)
        self.app, self.context = create_app(self.config), Ingestor(self.config)
        self.app.state.context = self.context
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://ingestor", timeout=60)

    async def page(self, token: str, **query: str) -> tuple[float, dict[str, Any]]:
        """Return how long one page takes, and the page."""
        begin = time.perf_counter()
        headers = {"Authorization": f"Bearer {token}"}
        answer = await self.http.get("/v1/frames", params=query, headers=headers)
        took = time.perf_counter() - begin
        assert answer.status_code == 200, answer.text
        return took, answer.json()

    async def close(self) -> None:
        await self.http.aclose()
        await self.context.http.aclose()
        self.context.db.close()


async def measure(site: Site, size: int, deep: list[str]) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each filter's pages, by caller."""
    found: dict[tuple[str, str], list[float]] = {}
    for caller in TOKENS:
        for name, values in FILTERS.items():
            queries = [{name: value} if value else {} for value in values]
            queries += [query | {"cursor": place} for query in queries for place in deep]
            times = found.setdefault((name, caller), [])
            for query in queries:
                await site.page(caller, **query)  # what is asked first opens files
                got = [(await site.page(caller, **query))[0] for _ in range(REPEAT)]
                times += got
                if (worst := max(got)) > LIMIT:
                    print(f"  {size}: {caller} {query}: up to {worst * 1000:.0f} ms")
    return found


async def places(site: Site, size: int) -> list[str]:
    """Return cursors in the middle of the catalogue and near its end."""
    _, newest = await site.page("operator", limit="1")
    stamp = float(newest["next"].partition("_")[0])
    return [f"{stamp - 63 * size * share}_8" for share in (0.5, 0.97)]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_pages_are_as_fast_of_a_million_frames(
    engine: str, tmp_path: Path, migrated: Callable[[str, str], str], request: Any
) -> None:
    def fresh(size: int) -> str:
        source = migrated(engine, "ingestor")
        if engine == "postgresql":
            return str(request.getfixturevalue("postgresql")(source))
        shutil.copy(source.removeprefix("sqlite:///"), tmp_path / f"{size}.db")
        return f"sqlite:///{tmp_path}/{size}.db"

    async def run(size: int) -> dict[tuple[str, str], list[float]]:
        site, begin = Site(fresh(size), tmp_path), time.monotonic()
        fill(site.context.db, engine, size)
        print(f"  {size} rows made in {time.monotonic() - begin:.0f} s", flush=True)
        gc.collect()
        gc.freeze()
        found = await measure(site, size, await places(site, size))
        await site.close()
        return found

    print(f"\n\n{engine}")
    found = {size: asyncio.run(run(size)) for size in (SMALL, LARGE)}
    (tmp_path / f"{LARGE}.db").unlink(missing_ok=True)
    print(f"{'filter':>10} {'caller':>9} {'p50 10k':>8} {'p99 10k':>8} {'p50 1M':>8} {'p99 1M':>8}")
    rows = {}
    for key in found[SMALL]:
        four = [
            percentile(found[size][key], share) * 1000
            for size in (SMALL, LARGE)
            for share in (0.5, 0.99)
        ]
        rows[" ".join(key)] = four
        print(f"{key[0]:>10} {key[1]:>9} " + " ".join(f"{value:8.1f}" for value in four))
    save(f"catalogue-{engine}", rows)
    assert all(four[0] > 0 for four in rows.values())
