"""What the monitor decides: values in, values out."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import PurePosixPath
from typing import NamedTuple

from koa_shared.contracts import MAX_PATH, FileWritten, Origin, Trigger
from koa_shared.ids import frame_id, normal_path
from koa_shared.instruments import Instrument, Source

LOOK_FIRST, LOOK_LONGEST = 0.01, 5.0  # seconds (design 5)
FRAME_NAME = re.compile(r"^(.*?)(\d{3,6})\.fits$")


class Stat(NamedTuple):
    """What identifies a written file: path as announced, bytes, ns since 1970."""

    path: str
    size: int
    mtime_ns: int

    @property
    def frame_id(self) -> str:
        """The identity of the frame."""
        return frame_id(*self)


class Ignored(Exception):
    """A broadcast names no frame; the message says why."""


def announced_path(
    source: Source, instrument: Instrument, value: str, read: Mapping[str, str]
) -> str:
    """Return the path that a broadcast announces (facts 1.1, 1.2), or raise Ignored."""
    if source.required is not None and value != source.required:
        raise Ignored(f"{source.keyword} is {value!r}, not {source.required!r}")
    if missing := [k for k in source.path_keywords if not read.get(k, "").strip()]:
        raise Ignored(f"{', '.join(missing)} could not be read; a rescan will find it")
    path = normal_path(source.build_path(value, read).strip())
    if reason := refusal(instrument, path):
        raise Ignored(reason)
    return path


def refusal(instrument: Instrument, path: str) -> str | None:
    """Return why a path is not looked at, None if it is."""
    if not path or "\x00" in path:
        return "the path holds a NUL" if path else "the path is blank"
    if len(path.encode(errors="replace")) > MAX_PATH:
        return f"the path is longer than {MAX_PATH} bytes"
    return instrument.paths.refusal(path)


def file_written(
    stat: Stat, where: tuple[str, str], detected: datetime, origin: Origin,
    trigger: Trigger | None = None,
) -> FileWritten:  # fmt: skip
    """Return the message that announces a file; `where` is (instrument, source)."""
    return FileWritten(
        **stat._asdict(), frame_id=stat.frame_id, instrument=where[0], source=where[1],
        detected=detected, origin=origin, trigger=trigger,
    )  # fmt: skip


def look_again(heard: datetime, now: datetime, limit: float) -> float | None:
    """Return the delay before a missing file is looked for again, None to give up.

    10 ms, doubling to 5 s: the delay is the time waited so far, within those bounds.
    """
    waited = (now - heard).total_seconds()
    return None if waited >= limit else min(max(waited, LOOK_FIRST), LOOK_LONGEST)


def is_wanted(instrument: Instrument, path: str) -> bool:
    """Tell whether a rescan takes this file for one of the instrument's frames."""
    named = fnmatch(PurePosixPath(path).name, instrument.names)
    return named and refusal(instrument, path) is None


def instrument_of(instruments: Iterable[Instrument], path: str) -> Instrument | None:
    """Return the instrument whose data roots hold the path, if one does."""
    lies = PurePosixPath(path).is_relative_to
    return next((i for i in instruments if any(map(lies, i.roots))), None)


def canary_frame(name: str, at: datetime) -> bytes:
    """Return a FITS file of the CANARY, 256 x 256 pixels of 16 bits, taken at a UTC time."""
    cards = {
        "SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 256, "NAXIS2": 256,
        "INSTRUME": "'CANARY'", "DATE-OBS": f"'{at:%Y-%m-%d}'", "UTC": f"'{at:%H:%M:%S.%f}'",
        "OFNAME": f"'{name}'",
    }  # fmt: skip
    text = "".join(f"{keyword:8}= {value:>20}".ljust(80) for keyword, value in cards.items())
    pixels = bytes(range(256)) * 512
    return f"{text}END".ljust(2880).encode() + pixels.ljust(-(-len(pixels) // 2880) * 2880, b"\0")


def frame_gaps(paths: Iterable[str]) -> list[str]:
    """Return the frame numbers that are missing, as `prefix0012-0014`, at most 100.

    Files belong together by directory and the name before their number.
    """
    runs = defaultdict[str, set[str]](set)
    for match in filter(None, map(FRAME_NAME.match, paths)):
        runs[match[1]].add(match[2])
    return [
        f"{prefix}{int(before) + 1:0{len(after)}}-{int(after) - 1:0{len(after)}}"
        for prefix, numbers in sorted(runs.items())
        for before, after in pairwise(sorted(numbers, key=int))
        if int(after) - int(before) > 1
    ][:100]
