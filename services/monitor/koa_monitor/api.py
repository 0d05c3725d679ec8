"""The monitor's front door."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from koa_shared import logs
from koa_shared.contracts import Origin, Page, SourceState, Submission, Submitted, Time, utcnow
from koa_shared.ids import normal_path
from koa_shared.instruments import Instrument
from koa_shared.web import Operator, Producer

from .errors import FileMissing, UnknownInstrument, UnknownSource
from .pipeline import Stat, file_written, instrument_of, refusal

router = APIRouter(prefix="/v1")


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


def _instrument_of(ctx: Any, source: str) -> Instrument:
    if source not in ctx.sources:
        raise UnknownSource(f"no source {source!r}; there are {', '.join(ctx.sources)}")
    instrument: Instrument = ctx.sources[source][1]
    return instrument


async def _pause(ctx: Any, name: str, *, paused: bool) -> SourceState:
    _instrument_of(ctx, name)
    await ctx.db.write(ctx.store.note_source, name, paused=paused)
    await ctx.refresh_paused()
    states: list[SourceState] = await ctx.source_states()
    return next(state for state in states if state.name == name)


@router.post("/sources/{name}/pause", summary="Hold a source's broadcasts back")
async def pause(name: str, ctx: Ctx, _: Operator) -> SourceState:
    """Broadcasts are still written down; nothing is done about them."""
    return await _pause(ctx, name, paused=True)


@router.post("/sources/{name}/resume", summary="Let a source's broadcasts go on")
async def resume(name: str, ctx: Ctx, _: Operator) -> SourceState:
    """What was held back is worked off, newest first."""
    return await _pause(ctx, name, paused=False)


@router.post("/sources/{name}/rescan", status_code=202, summary="Compare the disks with the ledger")
async def rescan(name: str, ctx: Ctx, _: Operator, order: Rescan | None = None) -> dict[str, str]:
    """Look for files that nobody announced, as far back as `since`."""
    instrument = _instrument_of(ctx, name).name
    payload = (order or Rescan()).model_dump(mode="json")
    await ctx.db.write(ctx.store.plan_rescan, instrument, payload)
    ctx.wake("rescan")
    return {"instrument": instrument, "decision": "planned"}


@router.get("/triggers", summary="Every broadcast heard and what was decided")
async def triggers(
    ctx: Ctx, source: str | None = None, path: str | None = None, cursor: int | None = None
) -> Page[TriggerView]:
    """Return broadcasts, newest first, 100 a page."""
    rows = await ctx.db.read(ctx.store.triggers, source, path, cursor)
    items = [TriggerView.model_validate(row.model_dump()) for row in rows]
    return Page[TriggerView](items=items, next=str(items[-1].id) if len(items) == 100 else None)


@router.post("/files", status_code=202, summary="Name a file that should be archived")
async def submit(submission: Submission, ctx: Ctx, _: Producer, response: Response) -> Submitted:
    """Take a file on as if its instrument had announced it."""
    path = normal_path(submission.path)
    instrument = _named_instrument(ctx, submission, path)
    if reason := refusal(instrument, path):
        response.status_code = 200
        return Submitted(frame_id=None, decision="ignored", reason=reason)
    local = ctx.disks.map.local(path)
    try:
        found = await ctx.disks.run(path, instrument.name, Path(local).stat)
    except (OSError, ValueError) as error:
        raise FileMissing(f"{path}: {error}") from error
    stat = Stat(path, found.st_size, found.st_mtime_ns)
    where = (instrument.name, submission.source or "manual")
    file = file_written(stat, where, utcnow(), Origin.MANUAL)
    accept = (ctx.store.accept, file, None, logs.traceparent())
    decision, reason = await ctx.db.write(*accept)
    ctx.wake("announce")
    response.status_code = 202 if decision == "accepted" else 200
    return Submitted(frame_id=file.frame_id, decision=decision, reason=reason)


def _named_instrument(ctx: Any, submission: Submission, path: str) -> Instrument:
    if submission.source:
        return _instrument_of(ctx, submission.source)
    if name := submission.instrument:
        found = ctx.instruments.get(name.upper())
        why = f"{name!r} is none of {', '.join(sorted(ctx.instruments))}"
    else:
        found = instrument_of(ctx.instruments.values(), path)
        why = f"no instrument's data root holds {path}; name one"
    if found is None:
        raise UnknownInstrument(why)
    instrument: Instrument = found
    return instrument
