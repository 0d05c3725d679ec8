"""Keyword sources: one class, and one module per control system (design 3)."""

import importlib
from collections.abc import Sequence

from koa_shared.instruments import Source

from .base import Broadcast as Broadcast
from .base import KeywordSource as KeywordSource
from .epics import EpicsSource
from .ktl import KtlSource
from .mktl import MktlSource
from .replay import open_replay

# Control systems whose Python modules no package index offers, and how to get these.
LIBRARIES = {
    "ktl": (KtlSource, "run the monitor with the observatory's KTL Python installed"),
    "mktl": (MktlSource, "install Keck's mKTL package from its repository"),
}


def open_sources(control: str, sources: Sequence[Source]) -> Sequence[KeywordSource]:
    """Return one keyword source for each of `sources`, not yet running.

    `control` is `epics`, `ktl`, `mktl` or `replay:PATH[@SPEED]` (speed 1 is real
    time, 0 as fast as possible).  Raises ValueError, with what to do about it.
    """
    if control.startswith("replay:"):
        return open_replay(control.removeprefix("replay:"), sources)
    if control == "epics":
        return [EpicsSource(source) for source in sources]
    adapter, remedy = LIBRARIES[control]
    try:
        module = importlib.import_module(control)
    except ImportError as error:
        why = f"the Python module {control!r} can't be imported ({error})"
        raise ValueError(f"{why}; {remedy}, or configure another control system") from error
    return [adapter(source, module) for source in sources]
