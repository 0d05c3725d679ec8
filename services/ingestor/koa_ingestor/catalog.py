"""The one place that decides what a caller sees (design 10)."""

from datetime import datetime
from typing import Any

from koa_shared.contracts import Finding, FrameView, Timeline, utcnow
from koa_shared.web import Caller

PUBLIC = ("frame_id", "koaid", "instrument", "level", "version", "status", "step", "night")
FULL = ("generation", "origin", "path", "program", "attempt", "next_attempt_at")


def is_open_to(caller: Caller, semid: str | None, release: datetime | None) -> bool:
    """Tell whether the caller sees a frame whole; an unknown release date is closed."""
    released = release is not None and release <= utcnow()
    return caller.sees_all or released or (semid is not None and semid in caller.programs)


def view(row: dict[str, Any], caller: Caller) -> FrameView:
    """Return a frame as this caller may see it."""
    timeline = Timeline.model_validate(row["timeline"])
    findings = [Finding.model_validate(f) for f in row["findings"]]
    products = row.get("products") or []
    seen = {name: row[name] for name in PUBLIC}
    seen |= {"timeline": timeline, "latency_seconds": timeline.latency_seconds}
    if not is_open_to(caller, row.get("semid"), row.get("release_date")):
        seen["findings"] = [f.model_copy(update={"message": ""}) for f in findings]
        seen["products"] = [{"name": p["name"], "size": p["size"]} for p in products]
        return FrameView.model_validate(seen)
    seen |= {name: row[name] for name in FULL}
    seen |= {"findings": findings, "metadata": row.get("core") or {}}
    seen["products"] = [{k: v for k, v in p.items() if k != "key"} for p in products]
    return FrameView.model_validate(seen)
