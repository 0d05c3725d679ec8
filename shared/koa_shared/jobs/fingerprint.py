"""Which failures are alike: same cause, same fingerprint (pure functions)."""

import hashlib
import re
import traceback

from ..errors import WorkerDied

DIED = WorkerDied.__name__
# What differs from frame to frame: paths and file names, and every word with a digit
# (numbers, times, digests, frame_ids, KOAIDs).
_VARIES = re.compile(r"[^\s'\"(),:;=]*(?:[/\d]|\.fits)[^\s'\"(),:;=]*")
_LOOPS = ("koa_shared.jobs.", "koa_shared.db")  # whatever fails, they have called it


def mark(name: str, step: str, cause: str) -> str:
    """Return the fingerprint of a cause, without what is only of one frame."""
    what = " ".join(_VARIES.sub("#", cause).split())
    return f"{name[:40]}-{hashlib.sha256(f'{name} {step} {what}'.encode()).hexdigest()[:8]}"


def fingerprint(error: BaseException, step: str) -> str:
    """Return an exception's: class, step, and the innermost place of ours, else the message."""
    places = [
        f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith("koa_")
    ]
    ours = [place for place in places if not place.startswith(_LOOPS)]
    return mark(type(error).__name__, step, ours[-1] if ours else str(error))
