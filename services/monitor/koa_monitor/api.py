"""The monitor's front door."""

import os
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from koa_shared import logs
from koa_shared.contracts import (
    Origin,
    Origin,
    Page,
    SourceState,
    Submission,
    Submitted,
    Time,
    utcnow,
)
from koa_shared.ids import normal_path
from koa_shared.web import Caller, needs

from .errors import FileMissing, UnknownInstrument, UnknownSource
from .pipeline import Stat, file_written, instrument_of, refusal

router = APIRouter(prefix="/v1")
Operator = Annotated[Caller, Depends(needs("operator"))]
AnyToken = Annotated[Caller, Depends(needs("producer"))]


class Rescan(BaseModel):
    """How far back to look, and whether to announce known files again."""

    since: Time | None = None
    resend: bool = False


class TriggerView(BaseModel):
    """One broadcast and what was decided about it."""

    id: int
    source: str
    service: str
    keyword: str
    value: str
    time: Time
    heard: Time
    initial: bool
    decision: str | None
    reason: str
    frame_id: str | None
    path: str | None


def _context(request: Request) -> Any:
    return request.app.state.context


Ctx = Annotated[Any, Depends(_context)]


@router.get("/sources", summary="The keyword sources and their state")
async def list_sources(ctx: Ctx) -> list[SourceState]:
    """Return every source this monitor hears."""
    states: list[SourceState] = await ctx.source_states()
    return states


async def _set_paused(ctx: Any, name: str, *, paused: bool) -> SourceState:
    if name not in ctx.names:
        raise UnknownSource(f"no source {name!r}; there are {', '.join(ctx.names)}")
    await ctx.db.write(ctx.store.pause, name, paused=paused)
    await ctx.refresh_paused()
    states: list[SourceState] = await ctx.source_states()
    return next(state for state in states if state.name == name)


@router.post("/sources/{name}/pause", summary="Hold a source's broadcasts back")
async def pause(name: str, ctx: Ctx, _: Operator) -> SourceState:
    """Broadcasts are still written down; nothing is done about them."""
    return await _set_paused(ctx, name, paused=True)


@router.post("/sources/{name}/resume", summary="Let a source's broadcasts go on")
async def resume(name: str, ctx: Ctx, _: Operator) -> SourceState:
    """What was held back is worked off, newest first."""
    return await _set_paused(ctx, name, paused=False)


@router.post("/sources/{name}/rescan", summary="Compare the disks with the ledger")
async def rescan(
    name: str, ctx: Ctx, _: Operator, response: Response, order: Rescan | None = None
) -> dict[str, str]:
    """Look for files that nobody announced, as far back as `since`."""
    if name not in ctx.names:
        raise UnknownSource(f"no source {name!r}; there are {', '.join(ctx.names)}")
    order = order or Rescan()
    since: datetime | None = order.since
    payload = {"since": since.isoformat() if since else None, "resend": order.resend}
    instrument = ctx.instrument_of_source(name)
    await ctx.db.write(ctx.store.plan_rescan, instrument, payload, 0.0)
    ctx.wake("rescan")
    response.status_code = 202
    return {"instrument": instrument, "decision": "planned"}


@router.get("/triggers", summary="Every broadcast heard and what was decided")
async def triggers(
    ctx: Ctx, source: str | None = None, path: str | None = None,
    cursor: int | None = None,
) -> Page[TriggerView]:  # fmt: skip
    """Return broadcasts, newest first, 100 a page."""
    rows = await ctx.db.read(ctx.store.triggers, source, path, cursor)
    items = [TriggerView.model_validate(row.model_dump()) for row in rows]
    more = str(items[-1].id) if len(items) == 100 else None  # noqa: PLR2004
    return Page[TriggerView](items=items, next=more)


@router.post("/files", summary="Name a file that should be archived")
async def submit(
    submission: Submission, ctx: Ctx, _: AnyToken, response: Response
) -> Submitted:
    """Take a file on as if its instrument had announced it."""
    path = normal_path(submission.path)
    instrument = _instrument(ctx, submission, path)
    if reason := refusal(instrument, path):
        return Submitted(frame_id=None, decision="ignored", reason=reason)
    local = ctx.disks.map.local(path)
    try:
        found = await ctx.disks.run(path, instrument.name, lambda: os.stat(local))
    except (OSError, ValueError) as error:
        raise FileMissing(f"{path}: {error}") from error
    stat = Stat(path, found.st_size, found.st_mtime_ns)
    file = file_written(
        stat, instrument.name, submission.source or "manual", utcnow(), Origin.MANUAL, None
    )
    decision, reason = await ctx.db.write(
        ctx.store.accept, stat, file, None, logs.traceparent() or ""
    )
    ctx.wake("announce")
    response.status_code = 202 if decision == "accepted" else 200
    return Submitted(frame_id=file.frame_id, decision=decision, reason=reason)


def _instrument(ctx: Any, submission: Submission, path: str) -> Any:
    if submission.source:
        if submission.source not in ctx.names:
            raise UnknownSource(f"no source {submission.source!r}")
        return ctx.instruments[ctx.instrument_of_source(submission.source)]
    if submission.instrument:
        if submission.instrument.upper() not in ctx.instruments:
            known = ", ".join(sorted(ctx.instruments))
            raise UnknownInstrument(f"{submission.instrument!r} is none of {known}")
        return ctx.instruments[submission.instrument.upper()]
    found = instrument_of(ctx.instruments.values(), path)
    if found is None:
        raise UnknownInstrument(f"no instrument's data root holds {path}; name one")
    return found
