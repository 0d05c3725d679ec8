"""`koa get`: which frames are open, a bar while files come, and what became of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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

from ..client import Download, Koa
from ..contracts import FrameView
from ..download import offered
from ..errors import DependencyDown, NotFound


class Get:
    """One command: products whose names match `pattern`, of some frames, into a directory."""

    def __init__(self, archive: Koa, pattern: str, into: Path, parallel: int) -> None:
        self._archive, self._pattern, self._into = archive, pattern, into
        self._parallel, self._skipped = parallel, Counter[str]()
        self._files, self._fetched, self._bytes = 0, 0, 0
        self._failed, self._kept = list[dict[str, str]](), list[str]()
        terminal = Console(stderr=True)
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=terminal, disable=not terminal.is_terminal)
        self._task = self._bar.add_task("", total=0)

    def _open_ones(self, frames: Iterable[FrameView]) -> Iterator[FrameView]:
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
                    self._skipped["proprietary"] += 1

    def run(self, frames: Callable[[], Iterable[FrameView]], *, named: bool) -> dict[str, Any]:
        """Fetch frames that were named, or the open ones of a selection; return what became of it.

        For the bar they are asked for twice, as a list of all may not fit into memory.
        """
        moved = partial(self._bar.advance, self._task)
        options: dict[str, Any] = {"products": self._pattern, "parallel": self._parallel}
        try:
            with self._bar:
                if not self._bar.disable:
                    self._bar.update(self._task, total=self._size(frames()))
                chosen = frames() if named else self._open_ones(frames())
                for done in self._archive.download(chosen, self._into, moved=moved, **options):
                    moved(done.size - done.moved)
                    self._note(done)
        except (OSError, DependencyDown, KeyboardInterrupt):
            typer.echo("koa: what has come is kept; repeat the command to go on", err=True)
            raise
        return self._told()

    def _size(self, frames: Iterable[FrameView]) -> int:
        size = 0
        for frame in frames:
            with suppress(NotFound):
                size += sum(p.size for p in offered(frame, self._pattern) if p.sha256)
        return size

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
