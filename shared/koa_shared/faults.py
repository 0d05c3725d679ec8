"""Fault points, for tests: before and after each call that leaves the process or commits.

With `KOA_DEV=1`, `KOA_FAULT=FILE[,POINT/DETAIL:N=ACTION]` notes visits in FILE, and at the
N-th of that point does ACTION: kill, stop (SIGSTOP), raise, or a number of seconds to sleep.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

PLAN = os.environ.get("KOA_FAULT", "") if os.environ.get("KOA_DEV") == "1" else ""
_visits = Counter[str]()


@contextmanager
def around(call: str, detail: object) -> Iterator[None]:
    """Pass the two points of a call; `detail` is a function, or says what is called."""
    if PLAN:
        _visit(f"{call}:before", detail)
    yield
    if PLAN:
        _visit(f"{call}:after", detail)


def _visit(point: str, what: object) -> None:
    file, _, planned = PLAN.partition(",")
    called = what.func if isinstance(what, partial) else what
    detail = getattr(called, "__name__", called)
    with Path(file).open("ab", buffering=0) as visits:
        visits.write(f"{Path(sys.argv[0]).name} {point} {detail}\n".encode())
    where, _, action = planned.partition("=")
    name, _, number = where.rpartition(":")
    _visits.update((point, f"{point}/{detail}"))
    if name not in (point, f"{point}/{detail}") or _visits[name] != int(number):
        return
    match action:
        case "raise":
            raise RuntimeError("a planted fault")
        case "kill" | "stop":
            os.kill(os.getpid(), signal.Signals[f"SIG{action.upper()}"])
        case _:
            time.sleep(float(action))
