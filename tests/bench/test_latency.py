"""`make bench`: acquisition to availability, beside a serial script (design 9).

A benchmark, not a timed test: it prints figures and asserts only that every frame
became available.  The serial script does for one file what must be done at least, with
the same client on the same store in the same run: read, hash, PUT, GET, hash, copy.
"""

import asyncio
import hashlib
import statistics
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from koa_ingestor.metrics import HOPS
from koa_shared.config import S3Config
from koa_shared.objects import ObjectStore
from koa_shared.simulator.control import Shoot, shoot
from koa_shared.simulator.stack import SERVICES, Stack

from ..live.conftest import free_offset
from .report import percentile

SIZES = {"4 MB": 4_000_000, "17 MB": 17_000_000, "38 MB": 38_000_000, "140 MB": 140_000_000}
SINGLE = {"4 MB": 30, "17 MB": 20, "38 MB": 15, "140 MB": 6}
TOGETHER = 10


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("bench"), offset=free_offset())
    made.sim_args = ["--cadence", "0"]
    with made.running() as running:
        expose(running, 3, SIZES["4 MB"], wait_each=True)  # warm
        yield running


def expose(stack: Stack, n: int, size: int, *, wait_each: bool) -> list[dict[str, Any]]:
    """Take exposures and return the frames once all are available."""
    control = stack.var / "sim" / "control.json"

    async def take(count: int) -> list[str]:
        order = Shoot(instrument="NIRC2", n=count, order={"size": size})
        return [entry.path async for entry in shoot(control, order)]

    frames: list[dict[str, Any]] = []
    if wait_each:
        for _ in range(n):
            frames += wait_for(stack, asyncio.run(take(1)))
        return frames
    return wait_for(stack, asyncio.run(take(n)))


def wait_for(stack: Stack, paths: list[str]) -> list[dict[str, Any]]:
    """Return the frames of these paths once they are COMPLETE."""
    until = time.monotonic() + 300
    found: dict[str, dict[str, Any]] = {}
    with httpx.Client(base_url=stack.url("ingestor"), trust_env=False) as http:
        while len(found) < len(paths) and time.monotonic() < until:
            time.sleep(0.5)  # what looks on takes time from what is looked at
            for path in set(paths) - set(found):
                items = http.get("/v1/frames", params={"path": path}).json()["items"]
                if items and items[0]["status"] == "COMPLETE":
                    found[path] = items[0]
                assert not items or items[0]["status"] not in ("INVALID", "ERROR"), items
    assert len(found) == len(paths), f"{len(found)} of {len(paths)} became available"
    return [found[path] for path in paths]


def serial(stack: Stack, path: str) -> float:
    """Do the least for one file, one thing after the other; return the seconds."""
    env = stack.environment("ingestor")
    config = S3Config(
        s3_endpoint=stack.url("s3"),
        s3_access_key=SecretStr(env["KOA_S3_ACCESS_KEY"]),
        s3_secret_key=SecretStr(env["KOA_S3_SECRET_KEY"]),
    )
    objects = ObjectStore(config)

    async def steps() -> float:
        begin = time.perf_counter()
        data = Path(path).read_bytes()  # noqa: ASYNC240 (nothing else runs)
        hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest()
        key = f"serial/{time.time_ns()}"
        await objects.put("koa-staging", key, data)
        back = await objects.get("koa-staging", key)
        hashlib.sha256(back).hexdigest(), hashlib.md5(back, usedforsecurity=False).hexdigest()
        await objects.copy(("koa-staging", key), ("koa-archive", key))
        return time.perf_counter() - begin

    return asyncio.run(steps())


def seconds(frames: list[dict[str, Any]]) -> list[float]:
    return [frame["latency_seconds"] for frame in frames]


def test_one_at_a_time(stack: Stack) -> None:
    print("\n\none at a time, beside the serial script in the same run")
    print(f"{'size':>7} {'n':>3} {'p50':>7} {'p99':>7} {'MB/s':>6} {'serial':>7} {'ratio':>6}")
    for name, size in SIZES.items():
        ours: list[float] = []
        least: list[float] = []
        for _ in range(SINGLE[name]):
            (frame,) = expose(stack, 1, size, wait_each=True)
            ours.append(frame["latency_seconds"])
            least.append(serial(stack, str(stack.var / "summit") + frame["path"]))
        p50, base = statistics.median(ours), statistics.median(least)
        rate = size / 1e6 / p50
        print(
            f"{name:>7} {len(ours):3} {p50:7.3f} {percentile(ours, 0.99):7.3f} "
            f"{rate:6.1f} {base:7.3f} {p50 / base:6.2f}"
        )


def test_where_the_time_goes(stack: Stack) -> None:
    print("\n\nhops of one frame at a time, median ms")
    for name in ("4 MB", "38 MB"):
        frames = expose(stack, 8, SIZES[name], wait_each=True)
        line = [
            f"{hop} {statistics.median(gap(f['timeline'], start, end) for f in frames):.0f}"
            for hop, start, end in HOPS
        ]
        print(f"{name:>7}: " + ", ".join(line))


def gap(timeline: dict[str, str], start: str, end: str) -> float:
    times = [datetime.fromisoformat(timeline[key]) for key in (start, end)]
    return (times[1] - times[0]).total_seconds() * 1000


def test_ten_in_flight(stack: Stack) -> None:
    print(f"\n\n{TOGETHER} in flight")
    print(f"{'size':>7} {'p50':>7} {'p99':>7} {'MB/s':>6}")
    for name, size in SIZES.items():
        frames = expose(stack, TOGETHER, size, wait_each=False)
        took = seconds(frames)
        first = min(f["timeline"]["acquired"] for f in frames)
        last = max(f["timeline"]["available"] for f in frames)
        whole = gap({"a": first, "b": last}, "a", "b") / 1000
        rate = TOGETHER * size / 1e6 / whole
        p50 = statistics.median(took)
        print(f"{name:>7} {p50:7.3f} {percentile(took, 0.99):7.3f} {rate:6.1f}")
    print("\npeak memory after ten 140 MB frames at once")
    for service in SERVICES:
        status = Path(f"/proc/{stack.processes[service].pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        megabytes = int(peak.split()[1]) / 1024
        print(f"{service:>9} {megabytes:6.0f} MB")
        assert megabytes < 400, service
