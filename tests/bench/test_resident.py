"""`make bench`: resident memory of each service over five thousand small frames."""

import asyncio
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from koa_shared.client import Koa
from koa_shared.config import Peers
from koa_shared.simulator.control import Shoot, shoot
from koa_shared.simulator.stack import SERVICES, Stack

from ..live.conftest import free_offset
from .report import save

FRAMES, STEP, WINDOW = 5000, 500, 24  # WINDOW: frames on their way at a time
SIZE = 60_000
CAMERAS = ("NIRES", "NIRC2", "ESI")

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="koa-bench-") as directory:
        made = Stack(Path(directory) / "var", offset=free_offset())
        made.sim_args = ["--cadence", "0"]
        with made.running():
            yield made
        shutil.rmtree(made.var, ignore_errors=True)


def resident(stack: Stack) -> list[float]:
    """Return the memory of each service now, in MB."""
    found = []
    for service in SERVICES:
        status = Path(f"/proc/{stack.processes[service].pid}/status").read_text()
        match = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert match is not None
        found.append(int(match[1]) * 1024 / 1e6)
    return found


async def run(stack: Stack) -> dict[int, list[float]]:
    """Take frames, a window of them at a time; return the memory by frames done."""
    done: set[str] = set()
    rows: dict[int, list[float]] = {}
    with Koa(Peers(ingestor_url=stack.url("ingestor"))) as koa:

        def follow() -> None:
            changes = (c for c in koa.stream("0") if c.frame and c.status == "COMPLETE")
            done.update(change.frame.frame_id for change in changes if change.frame)

        threading.Thread(target=follow, daemon=True).start()
        begin = time.monotonic()
        taken, control = 0, stack.var / "sim" / "control.json"
        while len(done) < FRAMES:
            while taken < FRAMES and taken - len(done) < WINDOW:
                camera = CAMERAS[taken // 4 % len(CAMERAS)]
                request = Shoot(instrument=camera, n=4, order={"size": SIZE})
                taken += len([entry async for entry in shoot(control, request)])
            await asyncio.sleep(0.05)
            if (step := len(done) // STEP * STEP) and step not in rows:
                rows[step] = resident(stack)
                took = time.monotonic() - begin
                memory = " ".join(f"{mb:8.1f}" for mb in rows[step])
                print(f"{step:7} {took:6.0f} {memory}", flush=True)
    return rows


def test_memory_does_not_grow(stack: Stack) -> None:
    print(f"\n\nresident MB, {WINDOW} small frames on their way at a time")
    print(f"{'frames':>7} {'s':>6} " + " ".join(f"{name:>8}" for name in SERVICES))
    rows = asyncio.run(run(stack))
    first, last = rows[STEP], rows[max(rows)]
    for name, before, after in zip(SERVICES, first, last, strict=True):
        print(f"{name:>9}: {after / before:.2f} times at {max(rows)} of what it was at {STEP}")
    save("resident", rows)
