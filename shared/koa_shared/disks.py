"""File work on the instruments' disks: a few threads for each, with time limits.

A mount that hangs (NFS) keeps its own threads and pauses its own instruments; when
the stuck call returns, the mount is back.  Nothing else waits for it (design 5).
"""

import asyncio
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from .config import PathMap
from .errors import DependencyDown, FrameFault
from .retry import Circuits

T = TypeVar("T")

THREADS = 3
# The mount of a data root is its first directories: /s/sdata1400, /sdata1400, /a/b.
_ROOM = re.compile(r"^(/s/sdata\d+|/sdata\d+|/[^/]+(?:/[^/]+)?)")
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
        self.map = path_map or PathMap()
        self._circuits = circuits
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._groups: dict[str, set[str]] = {}
        self._stuck: dict[str, int] = {}

    def paused(self) -> frozenset[str]:
        """Return the instruments whose disks don't answer."""
        return frozenset(
            group
            for room, groups in self._groups.items()
            for group in groups
            if self._stuck.get(room) or self._circuits[f"disk:{room}"].wait() > 0
        )

    async def run(self, path: str, group: str, function: Callable[[], T], limit: float = 10.0) -> T:
        """Run `function`, which works on the announced `path`, in its disk's threads.

        Raises DependencyDown when it does not return within `limit` seconds or the
        mount is sick; errors of the file itself come through.
        """
        match = _ROOM.match(path)
        room = match.group(1) if match else "/"
        pool = self._pools.setdefault(room, ThreadPoolExecutor(THREADS, f"disk{room}"))
        self._groups.setdefault(room, set()).add(group)
        future = pool.submit(function)
        try:
            async with asyncio.timeout(limit):
                result = await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError as error:
            if not future.done() and not future.cancel():
                self._note_stuck(room, future)
            raise DependencyDown(f"disk:{room}", f"no answer in {limit:g} s") from error
        except OSError as error:
            if error.errno in SICK:
                raise DependencyDown(f"disk:{room}", str(error)) from error
            raise
        self._circuits[f"disk:{room}"].succeeded()
        return result

    def _note_stuck(self, room: str, future: "Future[T]") -> None:
        loop = asyncio.get_running_loop()
        self._stuck[room] = self._stuck.get(room, 0) + 1

        def back() -> None:
            self._stuck[room] -= 1
            if not self._stuck[room]:
                self._circuits[f"disk:{room}"].succeeded()

        future.add_done_callback(lambda _: loop.call_soon_threadsafe(back))
