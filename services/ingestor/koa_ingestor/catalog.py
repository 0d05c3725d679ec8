"""The one place that decides what a caller sees (design 10)."""

from datetime import datetime
from typing import Any

from koa_shared.contracts import (
    Finding,
    FrameView,
    Origin,
    Program,
    Status,
    Timeline,
    utcnow,
)
from koa_shared.web import Caller

__all__ = ["is_open_to", "view"]

OPEN_PRODUCT = ("name", "size")


def is_open_to(
    caller: Caller, semid: str | None, release: datetime | None, now: datetime
) -> bool:
    """Tell whether the caller sees a frame whole; an unknown release date is closed."""
    if caller.all_programs or caller.role == "operator":
        return True
    if release is not None and release <= now:
        return True
    return semid is not None and semid in caller.programs


def view(row: dict[str, Any], caller: Caller) -> FrameView:
    """Return a frame as this caller may see it."""
    release, semid = row.get("release_date"), row.get("semid")
    timeline = Timeline.model_validate(row["timeline"])
    findings = [Finding.model_validate(f) for f in row["findings"]]
    products = row.get("products") or []
    seen: dict[str, Any] = {
        key: row[key]
        for key in ("frame_id", "koaid", "instrument", "level", "version", "step", "night")
    }
    seen |= {
        "status": Status(row["status"]),
        "timeline": timeline,
        "latency_seconds": timeline.latency_seconds,
    }
    if not is_open_to(caller, semid, release, utcnow()):
        hidden = [f.model_copy(update={"message": ""}) for f in findings]
        names = [{k: p[k] for k in OPEN_PRODUCT} for p in products]
        return FrameView(**seen, findings=hidden, products=names)
    return FrameView(
        **seen,
        generation=row["generation"],
        origin=Origin(row["origin"]),
        path=row["path"],
        findings=findings,
        products=[{k: v for k, v in p.items() if k != "key"} for p in products],
        program=Program.model_validate(row["program"]) if row.get("program") else None,
        metadata=row.get("metadata") or {},
        attempt=row["attempt"],
        next_attempt_at=row["next_attempt_at"],
    )
