"""Many frames at once: groups that failed alike, lines of a list (pure functions)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..contracts import FrameView, Severity


def groups(frames: Sequence[FrameView]) -> list[dict[str, Any]]:
    """Return a row for each group of parked frames that failed alike, the largest first."""
    found = defaultdict[str, list[FrameView]](list)
    for frame in frames:
        found[frame.fingerprint or frame.step].append(frame)
    return [
        {
            "fingerprint": fingerprint, "count": len(alike), "first": min(map(_when, alike)),
            "last": max(map(_when, alike)), "example": alike[0].frame_id,
            "instrument": ",".join(sorted({frame.instrument for frame in alike})),
            "message": "".join(f"{f.code} {f.message}"[:120] for f in alike[0].findings[-1:]),
        }
        for fingerprint, alike in sorted(found.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip


def _when(frame: FrameView) -> str:
    at = frame.timeline.acquired or frame.timeline.detected
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "-"


def row(frame: FrameView) -> dict[str, Any]:
    """Return a frame as a line of a list."""
    links = [f"{link.level}:{link.status}" for link in frame.links if link.level]
    core, faults = frame.metadata, [f for f in frame.findings if f.severity != Severity.WARNING]
    return {
        "acquired": _when(frame), "koaid": frame.koaid or (frame.path or "").rpartition("/")[2],
        "instrument": frame.instrument, "level": frame.level or None,
        "type": core.get("koaimtyp"), "object": core.get("object"),
        "program": frame.program and frame.program.semid, "status": frame.status,
        "reduced": " ".join(links) or None,
        "latency": frame.latency_seconds, "code": faults[-1].code if faults else None,
    } | ({} if frame.koaid or frame.path else {"frame_id": frame.frame_id})  # fmt: skip
