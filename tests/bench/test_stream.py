"""`make bench`: 200 clients on the live stream of a real ingestor process.

Changes come ten a second.  The delay is from the moment a change is posted to the moment
the last client has it whole; the clients are bare sockets in this process, on the same
machine.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from koa_shared.contracts import Event, EventBatch
from koa_shared.ids import frame_id
from koa_shared.simulator.stack import Stack

from ..live.conftest import free_offset
from .report import percentile, save

CLIENTS, RATE, CHANGES = 200, 10, 150
HEADER = "GET /v1/stream HTTP/1.1\r\nHost: ingestor\r\n\r\n"


@pytest.fixture
def ingestor(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path, offset=free_offset())
    stack.prepare()
    stack.start("ingestor")
    try:
        stack.wait_ready("ingestor")
        yield stack
    finally:
        stack.kill("ingestor")


def cpu(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


async def client(port: int, heard: dict[str, list[float]], ready: asyncio.Semaphore) -> None:
    """Note when each frame's change is here."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(HEADER.encode())
    while line := await reader.readline():
        if line.startswith(b"id:") and ready is not None:
            ready.release()
            ready = None  # type: ignore[assignment]
        if line.startswith(b"data:") and (at := line.find(b'"frame_id":"')) > 0:
            heard[line[at + 12 : at + 48].decode()].append(time.perf_counter())


def change(n: int) -> Event:
    path, now = f"/s/sdata1400/kcwi1/2025dec08/kb{n:06}.fits", datetime.now(UTC)
    return Event.model_validate(
        {
            "frame_id": frame_id(path, 1, 1), "generation": 1, "seq": 1, "at": now,
            "service": "preparer", "status": "PROCESSING", "step": "read", "instrument": "KCWI",
            "source": "kcwi_blue", "path": path, "level": 0, "origin": "live",
        }
    )  # fmt: skip


async def run(stack: Stack, clients: int) -> tuple[list[float], float]:
    """Return the delays to the last client, and the processor time of a change in ms."""
    heard: dict[str, list[float]] = {}
    ready, port = asyncio.Semaphore(0), stack.port("ingestor")
    tasks = [asyncio.create_task(client(port, heard, ready)) for _ in range(clients)]
    for _ in range(clients):
        await asyncio.wait_for(ready.acquire(), 30)
    sent: dict[str, float] = {}
    pid = stack.processes["ingestor"].pid
    told = {"headers": {"Content-Type": "application/json"}, "base_url": stack.url("ingestor")}
    async with httpx.AsyncClient(**told, trust_env=False) as http:  # type: ignore[arg-type]
        before = cpu(pid)
        for n in range(CHANGES):
            event = change(clients * 1000 + n)
            body = EventBatch(events=[event]).model_dump_json()
            heard[event.frame_id], sent[event.frame_id] = [], time.perf_counter()
            answer = await http.post("/v1/events", content=body)
            assert answer.status_code == 200, answer.text
            await asyncio.sleep(max(0.0, sent[event.frame_id] + 1 / RATE - time.perf_counter()))
        async with asyncio.timeout(30):
            while any(len(times) < clients for times in heard.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        used = cpu(pid) - before
    for task in tasks:
        task.cancel()
    assert all(len(times) == clients for times in heard.values())
    return [max(heard[name]) - sent[name] for name in sent], used / CHANGES * 1000


def test_two_hundred_listeners(ingestor: Stack) -> None:
    print("\n\nlisteners to the stream, ten changes a second")
    print(f"{'clients':>8} {'p50 ms':>7} {'p99 ms':>7} {'CPU ms a change':>16}")
    rows = {}
    for clients in (1, 50, CLIENTS):
        delays, used = asyncio.run(run(ingestor, clients))
        row = [percentile(delays, 0.5) * 1000, percentile(delays, 0.99) * 1000, used]
        rows[str(clients)] = row
        print(f"{clients:8} {row[0]:7.1f} {row[1]:7.1f} {row[2]:16.1f}")
    save("stream", rows)
