"""Keyword sources: one protocol, one module per control system (design 3)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from koa_shared.instruments import Source

from .base import (
    Broadcast,
    Hear,
    KeywordSource,
    OnConnect,
    SourceHealth,
    SourceUnavailable,
)
from .epics import EpicsSource
from .ktl import KtlSource
from .mktl import MktlSource
from .replay import open_replay

__all__ = [
    "Broadcast",
    "Hear",
    "KeywordSource",
    "OnConnect",
    "SourceHealth",
    "SourceUnavailable",
    "open_sources",
]


ADAPTERS: Mapping[str, Callable[[Source], KeywordSource]] = {
    "epics": EpicsSource,
    "ktl": KtlSource,
    "mktl": MktlSource,
}


def open_sources(control: str, sources: Sequence[Source]) -> list[KeywordSource]:
    """Return one keyword source for each of `sources`, not yet running.

    `control` is `epics`, `ktl`, `mktl` or `replay:PATH[@SPEED]` (speed 1 is real
    time, 0 as fast as possible).  Raises SourceUnavailable, with what to do about it.
    """
    kind, _, recording = control.partition(":")
    if kind == "replay" and recording:
        path, _, speed = recording.partition("@")
        return list(open_replay(Path(path), speed or "1", sources))
    if control not in ADAPTERS:
        raise SourceUnavailable(
            f"{control!r} is no control system; configure epics, ktl, mktl or replay:PATH[@SPEED]"
        )
    return [ADAPTERS[control](source) for source in sources]
