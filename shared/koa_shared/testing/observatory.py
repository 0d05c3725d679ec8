"""The simulated observatory as a process of its own, for tests.

    async with Observatory(tmp_path) as observatory:
        [entry] = await observatory.shoot("KCWI", size=400_000)

A process's EPICS port is chosen once (`use_loopback`), so one runs at a time.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from ..simulator.control import Shoot, shoot
from ..simulator.ledger import Entry, read_ledger
from .ioc import use_loopback

__all__ = ["Observatory"]

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class Observatory:
    """`koa-sim run` under `directory`; it exposes on demand unless told otherwise.

    `options` are those of the command line: `"--cadence", "2"`.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        use_loopback()
        self.root = directory / "summit"
        self.var = directory / "sim"
        self.log = directory / "sim.log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def path_map(self) -> str:
        """KOA_PATH_MAP for whoever reads the files."""
        return f"/s/={self.root}/s/"

    @property
    def control(self) -> Path:
        """The file that tells the port of the running process."""
        return self.var / "control.json"

    def local(self, entry: Entry) -> Path:
        """Return where an exposure's file is."""
        return self.root / entry.path.lstrip("/")

    def ledger(self) -> list[Entry]:
        """Return what the observatory did, all its lives together."""
        return read_ledger(self.var / "ledger.jsonl")

    async def start(self) -> None:
        """Start it, and return when it obeys."""
        process = self._process = self._spawn()
        until = time.monotonic() + START_SECONDS
        while not self.control.exists():
            if process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(self.log.read_text()[-2000:])
            await asyncio.sleep(0.02)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.control.unlink(missing_ok=True)
        self.var.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "koa_shared.simulator", "run", "--cadence=0"]
        places = [f"--data-root={self.root}", f"--var={self.var}"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*command, *places, *self._options],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def shoot(
        self,
        instrument: str,
        n: int = 1,
        *,
        source: str | None = None,
        interval: float = 0,
        **order: Any,
    ) -> list[Entry]:
        """Take exposures; `order` is what `Order` has: kind, size, late, fault, ..."""
        request = Shoot(instrument=instrument, source=source, n=n, interval=interval, order=order)
        return [entry async for entry in shoot(self.control, request)]

    async def stop(self) -> int:
        """End it as an operator does; return its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        self._process = None
        return code

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def __aenter__(self) -> Self:
        """Return it, running."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill what still runs."""
        self.kill()
