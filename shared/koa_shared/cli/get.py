"""`koa get`: which frames are open, a bar while files come, and what became of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich import progress as bar
from rich.console import Console
from rich.filesize import decimal

from ..client import Download, Koa
from ..contracts import FrameView
from ..download import offered
from ..errors import DependencyDown, NotFound

Frames = Iterable[FrameView]


class Get:
    """One command: products whose names match `pattern`, of some frames, into a directory."""

    def __init__(self, archive: Koa, pattern: str | None, into: Path, parallel: int) -> None:
        options: dict[str, Any] = {"directory": into, "products": pattern, "parallel": parallel}
        self._download: Callable[..., Iterator[Download]] = partial(archive.download, **options)
        self._pattern, self._left_out, self._done = pattern, Counter[str](), Counter[str]()
        self._failed, self._kept = list[dict[str, str]](), list[str]()
        terminal = Console(stderr=True)
        kinds = bar.BarColumn, bar.DownloadColumn, bar.TransferSpeedColumn, bar.TimeRemainingColumn
        columns = (kind() for kind in kinds)
        self._bar = bar.Progress(*columns, console=terminal, disable=not terminal.is_terminal)
        self._moved = partial(self._bar.advance, self._bar.add_task("", total=0))

    def run(self, frames: Callable[[], Frames], *, named: bool) -> dict[str, Any]:
        """Fetch frames that were named, or the open ones of a selection; tell what became of it."""
        try:
            with self._bar:
                if not self._bar.disable:  # asked for twice: all may not fit into memory
                    total = sum(size for _, size in self._open_ones(frames()))
                    self._bar.update(self._bar.task_ids[0], total=total)
                self._left_out.clear()
                chosen = frames() if named else (frame for frame, _ in self._open_ones(frames()))
                for done in self._download(chosen, moved=self._moved):
                    self._moved(done.size - done.moved)
                    if not named and getattr(done.error, "code", "") == "superseded":
                        self._left_out["superseded"] += 1
                    else:
                        self._note(done)
        except (OSError, DependencyDown, KeyboardInterrupt):
            typer.echo("koa: what has come is kept; repeat the command to go on", err=True)
            raise
        return self._told()

    def _open_ones(self, frames: Frames) -> Iterator[tuple[FrameView, int]]:
        """Yield what can be had, with its bytes; count what can't, and why."""
        for frame in frames:
            try:
                products = offered(frame, self._pattern)
            except NotFound:
                without = f"without {self._pattern or '*.fits'}"
                self._left_out[frame.status if frame.version is None else without] += 1
                continue
            if products[0].sha256:
                yield frame, sum(product.size for product in products)
            else:
                self._left_out["proprietary"] += 1

    def _note(self, done: Download) -> None:
        self._done["bytes"] += done.moved
        if done.error:
            self._failed.append({"name": done.path.name, "reason": str(done.error)})
            typer.echo(f"koa: {done.error}", err=True)
            return
        self._done += Counter(files=1, fetched=int(done.moved > 0))
        if done.kept:
            self._kept.append(str(done.kept))
            typer.echo(f"koa: {done.path} had other content, now {done.kept.name}", err=True)

    def _told(self) -> dict[str, Any]:
        told = {name: self._done[name] for name in ("files", "fetched", "bytes")}
        text = f"{told['files']} files are whole: {told['fetched']} fetched"
        text += f" ({decimal(told['bytes'])}), {told['files'] - told['fetched']} were here already"
        left = ", ".join(f"{count} {why}" for why, count in self._left_out.items())
        text += f"; frames left out: {left}" if left else ""
        text += f"; {len(self._failed)} failed" if self._failed else ""
        more = {"left_out": self._left_out, "kept": self._kept, "failed": self._failed}
        return {"summary": f"{text}.", **told} | {k: v for k, v in more.items() if v}
