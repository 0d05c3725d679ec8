"""A night under fault: real processes, an observatory that writes, and its own ledger."""

import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from minio import Minio

from koa_shared.instruments import Source, load_instruments
from koa_shared.simulator.dome import Clock
from koa_shared.simulator.frames import Exposure, Request, build, templates
from koa_shared.simulator.stack import BIN, SERVICES, Stack

from ..live.conftest import free_offset
from . import checker
from .proxy import Proxy
from .watcher import Watcher

HERE = Path(__file__).parent
CAMERAS = {"nirc2": "NIRC2", "kcwi_blue": "KCWI", "nires_spec": "NIRES"}
SMALL, LARGE = 40_000, 38_000_000
SETTLE = 90.0  # s; the longest that anything may take to come to its end


@dataclass
class Shot:
    """A frame that was taken: what is written where, and what may become of it."""

    source: str
    exposure: Exposure
    file: Path
    data: bytes
    line: dict[str, Any]

    @property
    def path(self) -> str:
        return str(self.line["path"])


@dataclass
class Night:
    """One installation, one or two replicas of each service, and what happens to it."""

    var: Path
    seed: int
    db: str = ""
    replicas: int = 1
    s3: str = "seaweedfs"
    env: dict[str, str] = field(default_factory=dict)
    stacks: list[Stack] = field(default_factory=list)
    restored: bool = False
    notes: list[str] = field(default_factory=list)
    found: list[checker.Breach] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.var = self.var.resolve()
        self.var.mkdir(parents=True, exist_ok=True)
        self.chance = random.Random(self.seed)
        self.ledger, self.keywords = self.var / "ledger.jsonl", self.var / "keywords.jsonl"
        self.visits = self.var / "visits"
        for file in (self.ledger, self.keywords, self.visits):
            file.touch()
        self.sources: dict[str, Source] = {
            s.name: s for i in load_instruments().values() for s in i.sources
        }
        self._written = defaultdict[str, set[str]](set)
        self._clock, self._numbers = Clock(), itertools.count(1)
        self._lock, self._seen = threading.RLock(), set[tuple[str, int]]()
        for name in CAMERAS:
            self.broadcast(name, "")  # a keyword server always has some value

    # -- processes ----------------------------------------------------------------

    @contextlib.contextmanager
    def open(self) -> Iterator["Night"]:
        """Run it for the length of a `with` block."""
        first = Stack(self.var, free_offset(), sim=False, db=self.db)
        self.proxy = Proxy(first.port("s3") + 7, first.port("s3"))
        first.env = {
            "KOA_S3_ENDPOINT": f"http://127.0.0.1:{self.proxy.port}",
            "KOA_CONTROL": "ktl", "KOA_CHAOS_KEYWORDS": str(self.keywords),
            "PYTHONPATH": f"{HERE / 'keywords'}:{os.environ.get('PYTHONPATH', '')}",
            "KOA_SOURCES": ",".join(CAMERAS),
            "KOA_MISSING_SECONDS": "4", "KOA_RESCAN_SECONDS": "20", "KOA_LEASE_SECONDS": "3",
            "KOA_FAULT": str(self.visits), "KOA_STAGING_KEEP_SECONDS": "30",
        } | self.env  # fmt: skip
        self.stacks = [first]
        try:
            first.prepare()
            self.start_store()
            for _ in range(1, self.replicas):
                self.stacks.append(replace(first, offset=free_offset(), processes={}))
                self.stacks[-1].s3 = first.url("s3")
            for stack in self.stacks:
                for service in reversed(SERVICES):
                    stack.start(service)
            self.ready()
            self.watcher = Watcher(first.url("ingestor"), lambda path: self._written[path])
            self.watcher.start()
            yield self
            self.watcher.ended = True
        finally:
            for stack in reversed(self.stacks):
                stack.down()
            self.proxy.close()

    def start_store(self) -> None:
        """Start the object store and wait until it answers."""
        stack = self.stacks[0]
        if self.s3 == "seaweedfs":
            stack.start("s3")
            stack.wait_ready("s3")
            return
        keys = stack.environment()
        stack.env |= {
            "MINIO_ROOT_USER": keys["KOA_S3_ACCESS_KEY"],
            "MINIO_ROOT_PASSWORD": keys["KOA_S3_SECRET_KEY"],
        }
        meta, data = f"sqlite3://{self.var}/s3/meta.db", f"{self.var}/s3/data/"
        form = ["format", "--storage", "file", "--bucket", data, "--trash-days", "0", meta]
        if not (self.var / "s3" / "meta.db").exists():
            subprocess.run([BIN / "juicefs", *form, "chaos"], check=True, capture_output=True)
        serve = ["gateway", "--no-banner", "--multi-buckets", "--keep-etag", "--no-usage-report"]
        where = f"127.0.0.1:{stack.port('s3')}"
        stack.spawn("s3", [str(BIN / "juicefs"), *serve, meta, where])
        alive = f"{stack.url('s3')}/minio/health/live"

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(alive, trust_env=False).is_success
            return False

        if not wait(answers, 20):
            raise RuntimeError("juicefs does not answer")

    def ready(self) -> None:
        """Wait until every service answers."""
        for stack in self.stacks:
            for service in SERVICES:
                stack.wait_ready(service)

    def start(self, service: str, stack: Stack, fault: str = "", **env: str) -> None:
        """Start a service, with a planted fault if one is named."""
        planned = {"KOA_FAULT": f"{self.visits},{fault}"} if fault else {}
        # A stack of its own for this start: others may start services at the same time.
        replace(stack, env=stack.env | env | planned).start(service)

    def restart(self, service: str, stack: Stack, fault: str = "", **env: str) -> None:
        """Kill a service and start it again."""
        if service in stack.processes:
            stack.kill(service)
        self.start(service, stack, fault, **env)

    def fresh(self) -> None:
        """Restart everything without faults, and wait until it answers."""
        for stack in self.stacks:
            for service in SERVICES:
                self.restart(service, stack)
        self.ready()

    def signal(self, service: str, stack: Stack, what: signal.Signals) -> None:
        """Send a signal to a service (by its id)."""
        stack.processes[service].send_signal(what)

    def stopped(self, service: str, stack: Stack) -> bool:
        """Tell whether a service is stopped, as by SIGSTOP."""
        stat = Path(f"/proc/{stack.processes[service].pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def died(self, service: str, stack: Stack, seconds: float) -> bool:
        """Wait for a service to die by itself."""
        return wait(lambda: stack.processes[service].poll() is not None, seconds)

    # -- HTTP ---------------------------------------------------------------------

    def get(self, service: str, path: str, **params: Any) -> httpx.Response:
        url = self.stacks[0].url(service) + path
        return httpx.get(url, params=params, trust_env=False, timeout=20)

    def post(self, service: str, path: str, body: Any = None) -> httpx.Response:
        url = self.stacks[0].url(service) + path
        return httpx.post(url, json=body, trust_env=False, timeout=20)

    # -- the observatory ----------------------------------------------------------

    def local(self, path: str) -> Path:
        """Return where an announced path lies here."""
        return self.var / "summit" / path.lstrip("/")

    def take(
        self, source: str = "", size: int = SMALL, *, frameno: int = 0, at: datetime | None = None
    ) -> Shot:
        """Return a frame in memory; nothing is written yet."""
        name = source or self.chance.choice(list(CAMERAS))
        instrument = CAMERAS[name]
        with self._lock:
            at = at or self._clock.next(instrument, datetime.now(UTC))
            kind = next(iter(templates()[instrument].kinds(name)))
            number = frameno or next(self._numbers)
            request = Request(name, kind, number, at, size, self.seed)
        exposure = build(instrument, request)
        data = b"".join(exposure.parts)
        line = {"path": exposure.path, "sha256": sha256(data).hexdigest(), "size": len(data)}
        return Shot(name, exposure, self.local(exposure.path), data, line)

    def write(self, shot: Shot, *, mtime: float | None = None) -> None:
        """Write a frame whole and note it."""
        self._written[shot.path].add(str(shot.line["sha256"]))
        shot.file.parent.mkdir(parents=True, exist_ok=True)
        with shot.file.open("wb", buffering=0) as file:
            file.write(shot.data)
        if mtime:
            os.utime(shot.file, (mtime, mtime))
        self.note(shot, closed_at=now())

    def seen(self) -> list[checker.Breach]:
        """Return, once, what the watcher has found."""
        found, self.watcher.found = self.watcher.found, []
        return found

    def note(self, shot: Shot, **more: Any) -> None:
        """Append to the ledger."""
        shot.line |= more
        self._written[shot.path].add(str(shot.line["sha256"]))
        self._append(self.ledger, shot.line)

    def announce(self, shot: Shot, *, at: datetime | None = None) -> None:
        """Broadcast a frame's path and note it."""
        self.broadcast(shot.source, shot.exposure.announced, at)
        self.note(shot, broadcast_at=now())

    def broadcast(self, name: str, value: str, at: datetime | None = None) -> None:
        """Set a source's keyword."""
        source, stamp = self.sources[name], (at or datetime.now(UTC)).isoformat()
        names = {"service": source.service, "keyword": source.keyword}
        self._append(self.keywords, {"t": stamp, **names, "value": value})

    def _append(self, file: Path, line: dict[str, Any]) -> None:
        with self._lock, file.open("ab", buffering=0) as out:
            out.write(json.dumps(line).encode() + b"\n")

    def expose(self, n: int = 1, source: str = "", size: int = SMALL) -> list[Shot]:
        """Take, write and announce frames."""
        shots = []
        for _ in range(n):
            shots.append(self.take(source, size))
            self.write(shots[-1])
            self.announce(shots[-1])
        return shots

    @contextlib.contextmanager
    def exposing(self, rate: float = 4.0, large: int = 0) -> Iterator[None]:
        """Expose in the background at `rate` frames a second, and `large` big ones."""
        stop = threading.Event()

        def run() -> None:
            for number in itertools.count():
                self.expose(size=LARGE if number < large else SMALL)
                if stop.wait(self.chance.uniform(0.2, 1.8) / rate):
                    return

        with ThreadPoolExecutor(1) as pool:
            taking = pool.submit(run)
            try:
                yield
            finally:
                stop.set()
            taking.result()  # raises what ended it

    # -- judging ------------------------------------------------------------------

    def databases(self) -> dict[str, str]:
        """Return where the services' databases are."""
        stack = self.stacks[0]
        return {s: stack.database(s) or f"{self.var}/{s}.db" for s in SERVICES}

    def history(self) -> checker.History:
        """Read all that is known of this night so far."""
        return checker.History.read(self.ledger, self.databases())

    def bucket(self) -> checker.MinioBucket:
        """Return the archive bucket, past the proxy."""
        env = self.stacks[0].environment()
        keys = env["KOA_S3_ACCESS_KEY"], env["KOA_S3_SECRET_KEY"]
        where = self.stacks[0].url("s3").removeprefix("http://")
        return checker.MinioBucket(Minio(where, *keys, secure=False, region="us-east-1"))

    def settled(self) -> bool:
        """Tell whether everything has come to an end."""
        try:
            history = self.history()
        except Exception:  # noqa: BLE001 (a database that is away for a moment)
            return False
        rules = [checker.ended, checker.frames_end, checker.nothing_waits]
        rules += [] if self.restored else [checker.untold]
        return not any(next(rule(history), None) for rule in rules)

    def settle(self, seconds: float = SETTLE) -> float:
        """Wait for it; return how long that took."""
        begun = time.monotonic()
        wait(self.settled, seconds, 0.5)
        return time.monotonic() - begun

    def check(self, *, whole: bool = False) -> list[checker.Breach]:
        """Return the breaches; bytes that were read back before only if `whole`."""
        seen = set() if whole else self._seen
        return checker.check(self.history(), self.bucket(), seen, restored=self.restored)

    def passed(self) -> Counter[tuple[str, str, str]]:
        """Return the visits of each (service, point, detail)."""
        lines = self.visits.read_text(errors="replace").splitlines()
        split = (line.removeprefix("koa-").split(" ", 2) for line in lines)
        return Counter((s[0], s[1], s[2]) for s in split if len(s) == 3)

    def leased(self, service: str) -> list[tuple[Any, ...]]:
        """Return the jobs that a service's database says somebody works on."""
        query = "SELECT queue, key, owner FROM job WHERE state = 'leased'"
        rows = checker.Tables(self.databases()[service]).rows(query)
        return [tuple(row.values()) for row in rows]

    def backup(self, service: str, target: Path) -> None:
        """Copy a SQLite database as it is now."""
        with (
            contextlib.closing(sqlite3.connect(self.databases()[service])) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)


def now() -> str:
    """Return the time now as the ledger writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def beside(*calls: Callable[[], object]) -> None:
    """Run these in threads to their ends; raise what ended one of them."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for run in [pool.submit(call) for call in calls]:
            run.result()


def wait(ask: Any, seconds: float, pause: float = 0.05) -> bool:
    """Ask until it is true; tell whether it became so."""
    until = time.monotonic() + seconds
    while not (answer := bool(ask())) and time.monotonic() < until:
        time.sleep(pause)
    return answer
