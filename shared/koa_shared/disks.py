"""File work on the instruments' disks: a few threads for each, with time limits.

A mount that hangs (NFS) keeps its own threads and pauses its own instruments; when
the stuck call returns, the mount is back.  Nothing else waits for it (design 5).
"""

import asyncio
import os
import re
from collections import Counter, defaultdict
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


class Disks:
    """Runs functions that touch files, each data root in its own threads."""

    def __init__(self, circuits: Circuits, path_map: PathMap | None = None) -> None:
        self.map, self._circuits = path_map or PathMap(), circuits
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._groups = defaultdict[str, set[str]](set)
        self._stuck = Counter[str]()  # calls that run longer than they may

    def paused(self) -> frozenset[str]:
        """Return the instruments whose disks don't answer."""
        return frozenset(
            group
            for disk, groups in list(self._groups.items())  # asked from any thread
            if self._stuck[disk] or self._circuits[disk].wait() > 0
            for group in list(groups)
        )

    async def run(self, path: str, group: str, function: Callable[[], T], limit: float = 10.0) -> T:
        """Run `function`, which works on the announced `path`, in its disk's threads.

        Raises DependencyDown when it does not return within `limit` seconds or the
        mount is sick; errors of the file itself come through.
        """
        mount = _MOUNT.match(path)
        disk = f"disk:{mount[0] if mount else '/'}"
        self._groups[disk].add(group)
        pool = self._pools.setdefault(disk, ThreadPoolExecutor(THREADS, disk))

        def call() -> T:
            with faults.around("disk", function):
                return function()

        work = pool.submit(call)
        answer = asyncio.wrap_future(work)
        try:
            async with asyncio.timeout(limit):
                result = await asyncio.shield(answer)
        except TimeoutError as error:
            if not work.done() and not work.cancel():
                self._stuck[disk] += 1
                answer.add_done_callback(lambda _: self._returned(disk))
            raise DependencyDown(disk, f"no answer in {limit:g} s") from error
        except OSError as error:
            if error.errno in SICK:
                raise DependencyDown(disk, str(error)) from error
            raise
        self._circuits[disk].succeeded()
        return result

    def _returned(self, disk: str) -> None:
        self._stuck[disk] -= 1
        if not self._stuck[disk]:
            self._circuits[disk].succeeded()
