"""File work on the instruments' disks: a few threads for each, with time limits.

A mount that hangs (NFS) keeps its own threads and pauses its own instruments; when
the stuck call returns, the mount is back.  Nothing else waits for it (design 5).
"""

import asyncio
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from . import faults
from .config import PathMap
from .errors import DependencyDown, FrameFault
from .retry import Circuits

T = TypeVar("T")

THREADS = 3
SILENT = 2.0  # s; a local disk answers in ms, NFS repeats a lost request after 0.7 s
# The mount of a data root is its first directories: /s/sdata1400, /sdata1400, /a/b.
_MOUNT = re.compile(r"/s/sdata\d+|/sdata\d+|/[^/]+(/[^/]+)?")
# Errors of a sick mount, not of the file: EIO, ESTALE, ENOTCONN, ETIMEDOUT.
SICK = frozenset({5, 116, 107, 110})


def contained(local: str, roots: Iterable[str]) -> str:
    """Return the real path; raises FrameFault when it lies outside all `roots`.

    Both sides are resolved, so that a link can't lead out (design 8).
    """
    real = os.path.realpath(local)
    for root in roots:
        if Path(real).is_relative_to(os.path.realpath(root)):
            return real
    raise FrameFault("FILEPATH_REJECT", f"the file lies outside the data roots: {real}", "path")


class Pulse:
    """When a call last showed a sign of life; until it begins it is not silent."""

    at, patience = math.inf, 0.0

    def beat(self) -> None:
        """Show one; from any thread."""
        self.at = time.monotonic()

    def is_silent(self, seconds: float) -> bool:
        """Tell whether there was none for so long."""
        return time.monotonic() - self.at > seconds


class Disks:
    """Runs functions that touch files, each data root in its own threads."""

    def __init__(self, circuits: Circuits, path_map: PathMap | None = None) -> None:
        self.map, self._circuits = path_map or PathMap(), circuits
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._groups = defaultdict[str, set[str]](set)
        self._calls = defaultdict[str, list[Pulse]](list)  # in the order of their beginning

    def paused(self) -> frozenset[str]:
        """Return the instruments whose disks don't answer."""
        return frozenset(
            group
            for disk, groups in list(self._groups.items())  # asked from any thread
            if self._silent(disk) or self._circuits[disk].wait() > 0
            for group in list(groups)
        )

    def _silent(self, disk: str) -> list[Pulse]:
        return [pulse for pulse in list(self._calls[disk]) if pulse.is_silent(pulse.patience)]

    async def run(
        self, path: str, group: str, function: Callable[[], T], limit: float = 10.0,
        pulse: Pulse | None = None,
    ) -> T:  # fmt: skip
        """Run `function`, which works on the announced `path`, in its disk's threads.

        Raises DependencyDown when it shows no sign of life (`pulse`) for `limit` seconds,
        or sooner when a call before it is silent: one is enough to see the mount return.
        Also when the mount is sick; errors of the file itself come through.
        """
        mount, pulse = _MOUNT.match(path), pulse or Pulse()
        disk = f"disk:{mount[0] if mount else '/'}"
        self._groups[disk].add(group)
        pool = self._pools.setdefault(disk, ThreadPoolExecutor(THREADS, disk))
        pulse.patience = min(limit, SILENT)

        def begin() -> T:
            pulse.beat()
            with faults.around("disk", function):
                return function()

        work = pool.submit(begin)
        answer = asyncio.wrap_future(work)
        self._calls[disk].append(pulse)
        answer.add_done_callback(lambda _: self._returned(disk, pulse))
        try:
            while not (await asyncio.wait([answer], timeout=min(limit, 0.5)))[0]:
                silent = self._silent(disk)
                idle = pulse in silent[1:] or (silent and pulse.at == math.inf)
                if idle or pulse.is_silent(limit):
                    work.cancel()
                    raise DependencyDown(disk, f"no answer in {limit:g} s")
            result = await answer
        except OSError as error:
            if error.errno in SICK:
                raise DependencyDown(disk, str(error)) from error
            raise
        self._circuits[disk].succeeded()
        return result

    def _returned(self, disk: str, pulse: Pulse) -> None:
        was_silent = self._silent(disk)
        self._calls[disk].remove(pulse)
        if was_silent == [pulse]:
            self._circuits[disk].succeeded()
