"""What the monitor decides: values in, values out."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import PurePosixPath

from koa_shared.contracts import FileWritten, Origin, Trigger
from koa_shared.ids import frame_id, normal_path
from koa_shared.instruments import Instrument, Source

__all__ = [
    "Ignored",
    "Stat",
    "announced_path",
    "file_written",
    "frame_gaps",
    "instrument_of",
    "is_wanted",
    "look_again",
    "refusal",
]

LOOK_FIRST, LOOK_LONGEST = 0.01, 5.0  # seconds (design 5)


@dataclass(frozen=True, slots=True)
class Stat:
    """What identifies a written file: path as announced, bytes, ns since 1970."""

    path: str
    size: int
    mtime_ns: int


class Ignored(Exception):
    """A broadcast names no frame; the message says why."""


def announced_path(
    source: Source, instrument: Instrument, value: str, read: Mapping[str, str]
) -> str:
    """Return the path that a broadcast announces (facts 1.1, 1.2).

    Raises Ignored when it announces none, or one that is not archived.
    """
    if source.required is not None and value != source.required:
        raise Ignored(f"{source.keyword} is {value!r}, not {source.required!r}")
    missing = [k for k in source.path_keywords if not read.get(k, "").strip()]
    if missing:
        raise Ignored(f"{', '.join(missing)} could not be read; a rescan will find it")
    path = normal_path(source.build_path(value, read).strip())
    if reason := refusal(instrument, path):
        raise Ignored(reason)
    return path


def refusal(instrument: Instrument, path: str) -> str | None:
    """Return why a path is not looked at, None if it is."""
    if not path:
        return "the path is blank"
    if "\x00" in path:
        return "the path holds a NUL"
    return instrument.paths.refusal(path)


def file_written(  # noqa: PLR0913 (the fields of one message)
    stat: Stat,
    instrument: str,
    source: str,
    detected: datetime,
    origin: Origin,
    trigger: Trigger | None,
) -> FileWritten:
    """Return the message that announces a file."""
    return FileWritten(
        frame_id=frame_id(stat.path, stat.size, stat.mtime_ns), source=source,
        instrument=instrument, path=stat.path, size=stat.size, mtime_ns=stat.mtime_ns,
        detected=detected, origin=origin, trigger=trigger,
    )  # fmt: skip


def look_again(heard: datetime, now: datetime, limit: float) -> float | None:
    """Return the delay before a missing file is looked for again, None to give up.

    10 ms, doubling to 5 s: the delay is the time waited so far, within those bounds.
    """
    waited = (now - heard).total_seconds()
    if waited >= limit:
        return None
    return min(max(waited, LOOK_FIRST), LOOK_LONGEST)


def is_wanted(instrument: Instrument, path: str) -> bool:
    """Tell whether a rescan takes this file for one of the instrument's frames."""
    name = PurePosixPath(path).name
    return fnmatch(name, instrument.names) and refusal(instrument, path) is None


def instrument_of(instruments: Iterable[Instrument], path: str) -> Instrument | None:
    """Return the instrument whose data roots hold the path, if one does."""
    for instrument in instruments:
        for root in instrument.roots:
            if PurePosixPath(path).is_relative_to(root):
                return instrument
    return None


_FRAME = re.compile(r"^(.*?)(\d{3,6})\.fits$")


def frame_gaps(paths: Iterable[str]) -> list[str]:
    """Return the frame numbers that are missing between the first and the last.

    Files are grouped by directory and the name before their number; each gap is told
    as `prefix0012-0014`.
    """
    runs: dict[str, set[tuple[int, int]]] = {}
    for path in paths:
        if match := _FRAME.match(path):
            runs.setdefault(match[1], set()).add((int(match[2]), len(match[2])))
    gaps = []
    for prefix, numbers in sorted(runs.items()):
        ordered = sorted(numbers)
        for (before, _), (after, width) in zip(ordered, ordered[1:], strict=False):
            if after - before > 1:
                gaps.append(f"{prefix}{before + 1:0{width}}-{after - 1:0{width}}")
    return gaps[:100]
