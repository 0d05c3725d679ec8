"""The one place that decides what a caller sees (design 10)."""

from datetime import datetime
from typing import Any

from koa_shared.contracts import FrameView, Link, Timeline, utcnow
from koa_shared.web import Caller

PUBLIC = {
    "frame_id", "koaid", "instrument", "level", "version", "status", "step", "night",
    "timeline", "latency_seconds",
}  # fmt: skip


def is_open_to(caller: Caller, semid: str | None, release: datetime | None) -> bool:
    """Tell whether the caller sees a frame whole; an unknown release date is closed."""
    released = release is not None and release <= utcnow()
    return caller.sees_all or released or (semid is not None and semid in caller.programs)


def pipeline_of(level: int, recipe: dict[str, Any] | None) -> str | None:
    """Return which pipeline reduced a frame, and its version; None of a raw one."""
    return recipe["software"] if level and recipe else None


def link(row: dict[str, Any]) -> Link:
    """Return what a frame is linked to, of that one's row."""
    told = {name: row[name] for name in Link.model_fields.keys() & row.keys()}
    return Link(**told, pipeline=pipeline_of(row["level"], row["recipe"]))


def view(row: dict[str, Any], caller: Caller) -> FrameView:
    """Return a frame as this caller may see it."""
    timeline = Timeline.model_validate(row["timeline"])
    products = [{k: v for k, v in p.items() if k != "key"} for p in row["products"]]
    more: dict[str, Any] = {"latency_seconds": timeline.latency_seconds, "timeline": timeline}
    more |= {"products": products, "metadata": row["core"] or {}}
    more["pipeline"] = pipeline_of(row["level"], row["recipe"])
    whole = FrameView.model_validate(row | more)
    if is_open_to(caller, row["semid"], row["release_date"]):
        return whole
    findings = [finding.model_copy(update={"message": ""}) for finding in whole.findings]
    products = [{"name": p["name"], "size": p["size"]} for p in products]
    seen = whole.model_dump(include=PUBLIC)
    return FrameView(**seen, findings=findings, products=products)
