"""Many frames at once: groups that failed alike, and what to prepare again (pure functions)."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ..contracts import FrameView, Severity, Status

SHOWN = 20  # frames of a dry run


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
    core, faults = frame.metadata, [f for f in frame.findings if f.severity != Severity.WARNING]
    return {
        "acquired": _when(frame), "koaid": frame.koaid or (frame.path or "").rpartition("/")[2],
        "instrument": frame.instrument, "type": core.get("koaimtyp"), "object": core.get("object"),
        "program": frame.program and frame.program.semid, "status": frame.status,
        "latency": frame.latency_seconds, "code": faults[-1].code if faults else None,
    } | ({} if frame.koaid or frame.path else {"frame_id": frame.frame_id})  # fmt: skip


def selection(instrument: str | None, night: str | None, where: Sequence[str]) -> dict[str, Any]:
    """Return the filters of `GET /v1/frames`; it takes one finding, `fits` looks at all."""
    codes = [word for word in where if word not in Status.__members__]
    states = [word for word in where if word in Status.__members__]
    told = {"instrument": instrument, "night": night, "finding": codes, "status": states}
    return {k: v[0] if isinstance(v, list) else v for k, v in told.items() if v}


def fits(frame: FrameView, where: Sequence[str]) -> bool:
    """Tell whether a frame has every finding and the status that are asked for."""
    return {*where} <= {frame.status, *(finding.code for finding in frame.findings)}


def plan(frame: FrameView) -> dict[str, Any]:
    """Return what becomes of a frame."""
    codes = ",".join(dict.fromkeys(finding.code for finding in frame.findings))
    row = {"frame_id": frame.frame_id, "koaid": frame.koaid, "status": frame.status, "code": codes}
    return row | {"decision": "reprocess" if frame.status.is_end else "on its way"}


def summary(rows: list[dict[str, Any]], *, dry_run: bool) -> dict[str, Any]:
    """Return how many frames which decision is of, and the frames that want a look."""
    counts = Counter(str(row["decision"]).partition(",")[0] for row in rows)
    shown = rows[:SHOWN] if dry_run else [r for r in rows if r["decision"] != "ordered"][:SHOWN]
    return {"selected": len(rows), **counts, "frames": shown}
