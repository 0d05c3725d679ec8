"""`koa get`: which frames are open, a bar while files come, and what became of them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..client import Download, Koa, offered
from ..contracts import FrameView
from ..errors import KoaError, NotFound


class Get:
    """One command: products whose names match `pattern`, of some frames."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._skipped = pattern, Counter[str]()
        self._files, self._fetched, self._bytes = 0, 0, 0
        self._failed, self._kept = list[dict[str, str]](), list[str]()
        terminal = Console(stderr=True)
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=terminal, disable=not terminal.is_terminal)
        self._task = self._bar.add_task("", total=0)

    def open_ones(self, frames: Iterable[FrameView]) -> Iterator[FrameView]:
        """Leave out what can't be had of a selection, and count why."""
        for frame in frames:
            try:
                product, *_ = offered(frame, self._pattern)
            except NotFound:
                has = frame.version is not None
                self._skipped[f"without {self._pattern}" if has else frame.status] += 1
            else:
                if product.sha256:
                    yield frame
                else:
                    self._skipped["proprietary to your token"] += 1

    def run(
        self, archive: Koa, frames: Iterable[FrameView], into: Path, parallel: int
    ) -> dict[str, Any]:
        """Fetch; return what is told at the end."""
        moved = partial(self._bar.advance, self._task)
        options: dict[str, Any] = {"products": self._pattern, "parallel": parallel}
        try:
            with self._bar:
                for done in archive.download(self._counted(frames), into, moved=moved, **options):
                    moved(done.size - done.moved)
                    self._note(done)
        except OSError as error:
            again = "what has come is kept; repeat the command to go on"
            raise KoaError(f"{into}: {error.strerror}; {again}", code="disk_fault") from error
        return self._told()

    def _counted(self, frames: Iterable[FrameView]) -> Iterator[FrameView]:
        expected = 0
        for frame in frames:
            with suppress(NotFound):
                expected += sum(product.size for product in offered(frame, self._pattern))
            self._bar.update(self._task, total=expected)
            yield frame

    def _note(self, done: Download) -> None:
        self._bytes += done.moved
        if done.error:
            self._failed.append({"name": done.path.name, "reason": str(done.error)})
            typer.echo(f"koa: {done.error}", err=True)
            return
        self._files += 1
        self._fetched += done.moved > 0
        if done.kept:
            self._kept.append(str(done.kept))
            typer.echo(f"koa: {done.path} had other content, now {done.kept.name}", err=True)

    def _told(self) -> dict[str, Any]:
        here = f"{self._files} files are whole: {self._fetched} fetched ({decimal(self._bytes)})"
        text = f"{here}, {self._files - self._fetched} were here already"
        skipped = ", ".join(f"{count} {why}" for why, count in self._skipped.items())
        text += f"; frames left out: {skipped}" if skipped else ""
        text += f"; {len(self._failed)} failed" if self._failed else ""
        told = {"files": self._files, "fetched": self._fetched, "bytes": self._bytes}
        more = {"left_out": self._skipped, "kept": self._kept, "failed": self._failed}
        return {"summary": f"{text}.", **told} | {k: v for k, v in more.items() if v}
