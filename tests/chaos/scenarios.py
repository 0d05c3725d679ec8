"""The faults of processes, broadcasts and files.

Each is one function of a night that injects it and returns how many times.
"""

import json
import os
import random
import signal
import time
from datetime import UTC, datetime, timedelta
from functools import partial

from koa_shared.simulator.stack import SERVICES

from .checker import Breach
from .night import Night, Shot, beside, now, wait

# That a point is waited for, times the replicas; some are passed only now and then.
UNREACHED_SECONDS = 7.0
TRIES = 3  # of a point
OFTEN = 60  # visits of a point that is passed again and again
SWEEP_SECONDS = float(os.environ.get("KOA_CHAOS_SWEEP") or 420)


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
        tried = chance.sample(points, len(points))
        for point, detail in tried:  # which grows by what was not passed this time
            if time.monotonic() > until:
                return
            stack, at = chance.choice(night.stacks), f"{point}/{detail}"
            often = passed[service, point, detail] > OFTEN
            night.restart(service, stack, f"{at}:{chance.randint(1, 3 if often else 1)}=kill")
            died = night.died(service, stack, UNREACHED_SECONDS * night.replicas)
            (killed if died else missed).append(f"{service} {at}")
            if not died and missed.count(f"{service} {at}") < TRIES:
                tried.append((point, detail))
            if len(night.stacks) > 1 or not died:
                night.restart(service, stack)

    with night.exposing(rate=2 * night.replicas):
        beside(*(partial(sweep, s, random.Random(f"{night.seed} {s}")) for s in SERVICES))
    night.fresh()
    done = len(set(killed) | set(missed))
    night.notes.append(f"killed at {len(set(killed))} of {len(passed)} points, tried {done}")
    night.notes += [f"not reached again: {at}" for at in sorted(set(missed) - set(killed))]
    return len(killed)


def kill_at_some_points(night: Night) -> int:
    """Some of the same, for the tests."""
    return kill_at_every_point(night, 10)


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
    count, until = 0, time.monotonic() + SWEEP_SECONDS
    for service, point in night.chance.sample(points, len(points)):
        if time.monotonic() > until:
            break
        stack = night.chance.choice(night.stacks)
        night.restart(service, stack, f"{point}:2=stop")
        with night.exposing(rate=6):
            # Its peers' circuits must close again before it is given work.
            stopped = wait(lambda stack=stack, name=service: night.stopped(name, stack), 20)
            count += stopped
            if not stopped:
                night.notes.append(f"{service} did not come to {point}")
            time.sleep(11)  # the lease, and the five seconds after which a replica looks
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
