"""The monitor's front door."""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from koa_shared import logs
from koa_shared.contracts import (
    Origin, Page, SourceState, Submission, Submitted, Time, Trigger, utcnow,
)  # fmt: skip
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


class TriggerView(Trigger):
    """One broadcast and what was decided about it."""

    id: int
    source: str
    heard: Time
    initial: bool
    decision: str | None
    reason: str
    frame_id: str | None
    path: str | None


def _context(request: Request) -> Any:
    return request.app.state.context


Ctx = Annotated[Any, Depends(_context)]


def _instrument(name: str, ctx: Ctx) -> Any:
    if name not in ctx.sources:
        raise UnknownSource(f"no source {name!r}; there are {', '.join(ctx.sources)}")
    return ctx.sources[name]


InstrumentOf = Annotated[Instrument, Depends(_instrument)]


@router.get("/sources", summary="The keyword sources and their state")
async def list_sources(ctx: Ctx) -> list[SourceState]:
    """Return every source this monitor hears."""
    states: list[SourceState] = await ctx.source_states()
    return states


@router.post("/sources/{name}/rescan", status_code=202, summary="Compare the disks with the ledger")
async def rescan(
    instrument: InstrumentOf, ctx: Ctx, _: Operator, order: Rescan | None = None
) -> dict[str, str]:
    """Look for files that nobody announced, as far back as `since`."""
    payload = (order or Rescan()).model_dump(mode="json")
    await ctx.db.write(ctx.store.plan_rescan, instrument.name, payload)
    ctx.wake("rescan")
    return {"instrument": instrument.name, "decision": "planned"}


@router.post("/sources/{name}/{verb}", summary="Hold a source's broadcasts back, or let them go on")
async def pause(
    name: str, verb: Literal["pause", "resume"], ctx: Ctx, _: Operator, __: InstrumentOf
) -> SourceState:
    """Broadcasts are still written down; what was held back is worked off, newest first."""
    await ctx.db.write(ctx.store.note_source, name, paused=verb == "pause")
    await ctx.refresh_paused()
    states: list[SourceState] = await ctx.source_states()
    return next(state for state in states if state.name == name)


@router.get("/triggers", summary="Every broadcast heard and what was decided")
async def triggers(
    ctx: Ctx, source: str | None = None, path: str | None = None, cursor: int | None = None
) -> Page[TriggerView]:
    """Return broadcasts, newest first, 100 a page."""
    rows = await ctx.db.read(ctx.store.triggers, source, path, cursor)
    items = [TriggerView(**row.model_dump(exclude={"read"})) for row in rows]
    return Page[TriggerView](items=items, next=str(items[-1].id) if len(items) == 100 else None)


@router.post("/files", status_code=202, summary="Name a file that should be archived")
async def submit(submission: Submission, ctx: Ctx, _: Producer, response: Response) -> Submitted:
    """Take a file on as if its instrument had announced it."""
    path = normal_path(submission.path)
    instrument = _named_instrument(ctx, submission, path)
    if reason := refusal(instrument, path):
        response.status_code = 200
        return Submitted(frame_id=None, decision="ignored", reason=reason)
    try:
        look = Path(ctx.disks.map.local(path)).stat
        found = await ctx.disks.run(path, instrument.name, look)
    except (OSError, ValueError) as error:
        raise FileMissing(f"{path}: {error}") from error
    stat = Stat(path, found.st_size, found.st_mtime_ns)
    where = (instrument.name, submission.source or "manual")
    file = file_written(stat, where, utcnow(), Origin.MANUAL)
    decision, reason = await ctx.db.write(ctx.store.accept, file, None, logs.traceparent())
    ctx.wake("announce")
    response.status_code = 202 if decision == "accepted" else 200
    return Submitted(frame_id=file.frame_id, decision=decision, reason=reason)


def _named_instrument(ctx: Any, submission: Submission, path: str) -> Any:
    if submission.source:
        return _instrument(submission.source, ctx)
    known, name = ctx.instruments, submission.instrument
    found = known.get(name.upper()) if name else instrument_of(known.values(), path)
    if found is None:
        which = f"is named {name!r}" if name else f"has a data root that holds {path}"
        raise UnknownInstrument(f"no instrument {which}; name one of {', '.join(sorted(known))}")
    return found
