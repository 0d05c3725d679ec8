"""SIGKILL anywhere: nothing is lost, nothing is doubled (design 5).

The judge is the observatory's ledger: its digests are older than the files.
"""

import itertools
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from koa_shared.simulator.ledger import Entry

from .conftest import Site, running, sha256

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SERVICES = ("monitor", "preparer", "ingestor")
EACH = 50  # frames of each of the four instruments
LARGE = 140_000_000
STEPS, KILLS, MOST_KILLS = 8, 3, 8  # steps to hit; kills of each service
BURST_SECONDS = 120
BUSY_SECONDS = 4  # that a kill waits for something to interrupt


def rows(site: Site, service: str, query: str, *args: Any) -> list[tuple[Any, ...]]:
    """Ask a service's SQLite file, which its (stopped) owner has open."""
    path = site.stack.var / f"{service}.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as database:
        return database.execute(query, args).fetchall()


# What a kill interrupts, told by the ledger of the service that is stopped.


def steps(site: Site, service: str) -> set[str]:
    """Return the steps that are under way in a service."""
    leased = rows(site, service, "SELECT queue, key, token FROM job WHERE state = 'leased'")
    found = {DETAIL.get(queue, plain)(site, queue, key, n) for queue, key, n in leased}
    if service != "ingestor" and rows(site, service, "SELECT id FROM outbox LIMIT 1"):
        found.add("tell")
    return {f"{service} {step}" for step in found}


def plain(site: Site, queue: str, key: str, token: int) -> str:
    return queue


def prepare(site: Site, queue: str, key: str, token: int) -> str:
    """Tell reading from uploading, and how far that is."""
    frame, generation = key.split(":")
    query = "SELECT status, step FROM file WHERE frame_id = ?"
    [(status, step)] = rows(site, "preparer", query, frame)
    if status != "TRANSFERRING":
        return str(step)
    prefix = f"{frame}/{generation}/{token}/"
    stored = site.s3.list_objects("koa-staging", prefix, recursive=True)
    names = [str(o.object_name) for o in stored]
    if any(name.endswith("manifest.json") for name in names):
        return "uploaded"
    return "upload, some objects" if names else "upload, no object"


def ingest(site: Site, queue: str, key: str, token: int) -> str:
    """Tell a claim from copying, and how far that is."""
    frame, _ = key.split(":")
    query = "SELECT koaid, instrument, status FROM frame WHERE frame_id = ?"
    [(koaid, instrument, status)] = rows(site, "ingestor", query, frame)
    if status != "INGESTING":
        return "claim"
    prefix = f"{instrument}/{koaid.split('.')[1]}/lev0/{koaid}/v1/"
    copied = list(site.s3.list_objects("koa-archive", prefix, recursive=True))
    query = "SELECT body FROM prepared WHERE frame_id = ?"
    [(body,)] = rows(site, "ingestor", query, frame)
    whole = len(copied) == len(json.loads(body)["products"])
    return "read back" if whole else "copy, some" if copied else "copy, none"


DETAIL = {"prepare": prepare, "ingest": ingest}


class Killer:
    """Kills services at random moments and starts them again."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site, self.chance = site, random.Random(seed)
        self.kills = dict.fromkeys(SERVICES, 0)
        self.hit: dict[str, int] = {}

    def enough(self) -> bool:
        """Tell whether each service was hit at work, in steps enough in all."""
        worked = {step.split()[0] for step in self.hit}
        return (
            min(self.kills.values()) >= KILLS and len(self.hit) >= STEPS and worked == set(SERVICES)
        )

    def run(self) -> None:
        """Kill until it is enough, in rounds over all services."""
        for _ in range(MOST_KILLS):
            for service in self.chance.sample(SERVICES, len(SERVICES)):
                self.site.stack.wait_ready(service)
                time.sleep(self.chance.uniform(0, 1))
                self.wait_busy(service)
                self.strike(service)
            if self.enough():
                return

    def wait_busy(self, service: str) -> None:
        """Wait for work, a few seconds, and let a random part of it be done."""
        until = time.monotonic() + BUSY_SECONDS
        while not steps(self.site, service) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(self.chance.uniform(0, 0.1))

    def strike(self, service: str) -> None:
        """Stop it, look what it is doing, kill it, start it again."""
        process = self.site.stack.processes[service]
        process.send_signal(signal.SIGSTOP)
        found = steps(self.site, service)
        self.site.stack.kill(service)
        self.site.stack.start(service)
        self.kills[service] += 1
        for step in found:
            self.hit[step] = self.hit.get(step, 0) + 1
        what = ", ".join(sorted(found)) or f"{service} idle"
        print(f"kill {sum(self.kills.values())}: {what}")


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var) as site:
        yield site


def burst(site: Site, chance: random.Random) -> list[threading.Thread]:
    """Have all instruments expose at once, each in a thread of its own."""

    def expose(instrument: str, large: int | None, pause: float, sizes: list[int]) -> None:
        for number, size in enumerate(sizes):
            if number == large:
                site.shoot(instrument, size=LARGE)
            site.shoot(instrument, size=size)
            time.sleep(pause)

    threads = []
    for instrument in ("NIRC2", "KCWI", "ESI", "NIRES"):
        sizes = [chance.randint(300_000, 1_000_000) for _ in range(EACH)]
        large = chance.randrange(EACH) if instrument in ("KCWI", "NIRES") else None
        pause = chance.uniform(0.6, 0.9)
        args = (instrument, large, pause, sizes)
        threads.append(threading.Thread(target=expose, args=args, daemon=True))
        threads[-1].start()
    return threads


def test_a_burst_under_sigkill_is_archived_exactly_once(site: Site) -> None:
    seed = int(os.environ.get("KOA_TEST_SEED") or time.time())
    print(f"seed {seed}: KOA_TEST_SEED repeats the moments")
    killer = Killer(site, seed)
    threads = burst(site, random.Random(seed))
    killer.run()
    during = sum(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join(BURST_SECONDS)
    print("steps hit:", *(f"{s} ({n})" for s, n in sorted(killer.hit.items())), sep="\n  ")
    entries = site.ledger()
    check_burst(entries)
    assert killer.enough(), (killer.kills, killer.hit, during)
    started = time.monotonic()
    frames = site.ended([e.path for e in entries], 120)
    print(f"all at an end {time.monotonic() - started:.1f} s after the last kill")
    bad = [f for f in frames.values() if f["status"] != "COMPLETE"]
    assert bad == []
    check_catalogue(site, entries)
    check_bucket(site, entries)
    check_bytes(site, entries, random.Random(seed))


def check_burst(entries: list[Entry]) -> None:
    """It is the burst that was asked for."""
    small = [e for e in entries if e.size < 2_000_000]
    large = [e for e in entries if e.size > 0.99 * LARGE]
    assert (len(small), len(large)) == (4 * EACH, 2)
    closed = [e.closed_at for e in entries if e.closed_at]
    assert len(closed) == len(entries)
    seconds = (max(closed) - min(e.begun_at for e in entries)).total_seconds()
    print(f"{len(entries)} frames in {seconds:.0f} s")
    assert seconds < BURST_SECONDS


def check_catalogue(site: Site, entries: list[Entry]) -> None:
    """One frame for each file, one committed version for each KOAID, the digests."""
    seen = rows(site, "ingestor", "SELECT path, koaid, version FROM frame")
    assert sorted(seen) == sorted((e.path, str(e.koaid), 1) for e in entries)
    query = "SELECT koaid, version, raw_sha256, committed_at IS NULL FROM version"
    kept = rows(site, "ingestor", query)
    assert sorted(kept) == sorted((str(e.koaid), 1, e.sha256, 0) for e in entries)
    waiting = {
        service: rows(
            site, service, "SELECT queue, key, state, error FROM job"
            " WHERE queue NOT IN ('sweep', 'rescan', 'enrich', 'scrub')",
        )
        for service in SERVICES
    }  # fmt: skip
    assert [jobs for jobs in waiting.values() if jobs] == []


def check_bucket(site: Site, entries: list[Entry]) -> None:
    """The bucket holds what the catalogue names and nothing else."""
    query = "SELECT koaid, version, products FROM version"
    instrument = {str(e.koaid): e.instrument for e in entries}
    known = {
        f"{instrument[koaid]}/{koaid.split('.')[1]}/lev0/{koaid}/v{version}/{p['name']}"
        for koaid, version, products in rows(site, "ingestor", query)
        for p in json.loads(products)
    }
    assert set(site.archived()) == known


def check_bytes(site: Site, entries: list[Entry], chance: random.Random) -> None:
    """What is archived is what was written: the large ones, and a sample."""
    for entry in entries:
        manifest = site.file(str(entry.koaid), f"products/{entry.koaid}.manifest.json")
        assert json.loads(manifest)["raw"]["sha256"] == entry.sha256, entry
    large = [e for e in entries if e.size > 2_000_000]
    for entry in itertools.chain(large, chance.sample(entries, 20)):
        assert sha256(site.raw(str(entry.koaid))) == entry.sha256, entry
