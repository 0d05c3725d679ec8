"""`make bench`: live frames while a thousand others are taken on, and what workers bring.

The burst is what a monitor finds after an outage: files that nobody announced, taken on by
a rescan, with the origin `recovered`.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from koa_shared.simulator.control import Shoot, shoot
from koa_shared.simulator.stack import Stack

from ..live.conftest import free_offset
from .report import percentile, save

BACKLOG, LIVE, SIZE = 1000, 30, 4_000_000
MANY = 120  # frames for each number of workers
SETTLED = 15.0  # s until each broadcast's directory has been looked through
EVERY = 1.5  # s between live frames
SILENT, CAMERAS = "NIRC2", ("NIRES", "NIRC2")
Frame = dict[str, Any]

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def stack(request: Any) -> Iterator[Stack]:
    # Not pytest's directory, which is kept: this may be 12 GB.
    with tempfile.TemporaryDirectory(prefix="koa-bench-") as directory:
        made = Stack(
            Path(directory) / "var", offset=free_offset(), env=getattr(request, "param", {})
        )
        made.sim_args = ["--cadence", "0"]
        with made.running():
            yield made
        shutil.rmtree(made.var, ignore_errors=True)


async def expose(stack: Stack, instrument: str, n: int, interval: float, **order: Any) -> list[str]:
    """Take exposures; return their paths."""
    request = Shoot(instrument=instrument, n=n, interval=interval, order={"size": SIZE} | order)
    return [e.path async for e in shoot(stack.var / "sim" / "control.json", request)]


async def live(stack: Stack, n: int) -> list[str]:
    """Take live frames of two instruments, by turns."""
    each = [expose(stack, camera, n // 2, EVERY * 2) for camera in CAMERAS]
    return [path for paths in await asyncio.gather(*each) for path in paths]


def backlog(stack: Stack, n: int) -> list[str]:
    """Write files that nobody announces, half a minute old."""
    paths = asyncio.run(expose(stack, SILENT, n, 0, silent=True))
    for path in paths:
        local = stack.var / "summit" / path.lstrip("/")
        then = local.stat().st_mtime - 30
        os.utime(local, (then, then))
    return paths


def rescan(stack: Stack) -> None:
    since = {"since": "2020-01-01T00:00:00Z"}
    url = f"{stack.url('monitor')}/v1/sources/nirc2/rescan"
    answer = httpx.post(url, json=since, trust_env=False)
    assert answer.status_code == 202, answer.text


def count(stack: Stack, **filters: str) -> int:
    """Return how many frames there are, page by page."""
    seen, cursor = 0, dict[str, str]()
    with httpx.Client(base_url=stack.url("ingestor"), trust_env=False, timeout=30) as http:
        while True:
            page = http.get("/v1/frames", params=filters | {"limit": "1000"} | cursor).json()
            seen += len(page["items"])
            if page.get("next") is None:
                return seen
            cursor = {"cursor": page["next"]}


def await_frames(stack: Stack, n: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (have := count(stack, status="COMPLETE")) < n:
        assert time.monotonic() < until, f"{have} of {n} are available"
        time.sleep(0.5)


def latencies(stack: Stack, paths: list[str]) -> list[float]:
    """Return the latencies of these frames once all are available."""
    found: dict[str, float] = {}
    until = time.monotonic() + 240
    with httpx.Client(base_url=stack.url("ingestor"), trust_env=False, timeout=30) as http:
        while len(found) < len(paths):
            assert time.monotonic() < until, f"{len(found)} of {len(paths)} are available"
            time.sleep(1)
            for path in set(paths) - set(found):
                [frame] = http.get("/v1/frames", params={"path": path}).json()["items"]
                if frame["status"] == "COMPLETE":
                    found[path] = frame["latency_seconds"]
    return [found[path] for path in paths]


def test_live_frames_in_a_burst(stack: Stack) -> None:
    asyncio.run(live(stack, 4))  # warm
    quiet = latencies(stack, asyncio.run(live(stack, LIVE)))
    time.sleep(SETTLED)
    old = backlog(stack, BACKLOG)
    begin, known = time.monotonic(), count(stack)
    rescan(stack)
    while count(stack, origin="recovered") < 20:
        time.sleep(0.2)
    paths = asyncio.run(live(stack, LIVE))
    left = len(old) - count(stack, status="COMPLETE", origin="recovered")
    busy = latencies(stack, paths)
    print(f"\n\n{LIVE} live frames of {SIZE / 1e6:g} MB, alone and in a burst of {len(old)}")
    print(f"{'':>8} {'p50 s':>7} {'p99 s':>7}")
    rows = {"alone": quiet, "burst": busy}
    for name, values in rows.items():
        print(f"{name:>8} {percentile(values, 0.5):7.3f} {percentile(values, 0.99):7.3f}")
    print(f"ratio of the p99: {percentile(busy, 0.99) / percentile(quiet, 0.99):.2f}")
    print(f"{left} of the burst were still to do when the last live frame came", flush=True)
    assert left > 0
    save("burst", rows)
    await_frames(stack, known + len(old) + LIVE, 900)
    took = time.monotonic() - begin
    rate = (len(old) + LIVE) / took
    print(f"all of them in {took:.0f} s: {rate:.1f} frames/s, {rate * SIZE / 1e6:.0f} MB/s")
    save("burst", rows | {"frames_per_second": rate})


@pytest.mark.parametrize("stack", [{"KOA_WORKERS": n} for n in "124"], indirect=True)
def test_workers(stack: Stack) -> None:
    workers = stack.env["KOA_WORKERS"]
    backlog(stack, 4)  # to be warm; no live frame, as that would leave slots free
    rescan(stack)
    await_frames(stack, 4, 60)
    paths = backlog(stack, MANY)
    begin = time.monotonic()
    rescan(stack)
    await_frames(stack, 4 + len(paths), 240)
    rate = MANY / (time.monotonic() - begin)
    print(
        f"\n{workers} workers: {rate:.1f} frames/s, {rate * SIZE / 1e6:.0f} MB/s of {MANY} frames"
    )
    save(f"workers-{workers}", {"frames_per_second": rate})
