"""The monitor's front door."""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from koa_shared import contracts as c
from koa_shared import logs
from koa_shared.ids import normal_path
from koa_shared.instruments import Instrument
from koa_shared.web import Ctx, Operator, Producer, Why

from .errors import FileMissing, UnknownInstrument, UnknownSource
from .pipeline import Stat, file_written, instrument_of, refusal

router = APIRouter(prefix="/v1")


class Rescan(BaseModel, extra="forbid"):
    """How far back, and the reason."""

    since: c.Time | None = None
    resend: bool = Field(default=False, strict=True)
    why: str = ""


class TriggerView(c.Trigger):
    """One broadcast and what was decided about it."""

    id: int
    source: str
    heard: c.Time
    initial: bool
    decision: str | None
    reason: str
    frame_id: str | None
    path: str | None


def _instrument(name: str, ctx: Ctx) -> Any:
    if name not in ctx.sources:
        raise UnknownSource(f"no source {name!r}; there are {', '.join(ctx.sources)}")
    return ctx.sources[name]


InstrumentOf = Annotated[Instrument, Depends(_instrument)]


@router.get("/sources", response_model=list[c.SourceState], summary="The sources and their state")
async def list_sources(ctx: Ctx, _: Operator) -> Any:
    """Return every source this monitor hears."""
    return await ctx.source_states()


@router.post("/sources/{name}/rescan", status_code=202, summary="Compare the disks with the ledger")
async def rescan(
    who: Operator, instrument: InstrumentOf, ctx: Ctx, name: str, order: Rescan | None = None
) -> dict[str, str]:
    """Look for files that nobody announced since then; `resend`: announce known ones again."""
    order = order or Rescan()
    deed, options = (who.name, order.why), order.model_dump(mode="json", exclude={"why"})
    await ctx.db.write(ctx.store.order_rescan, name, instrument.name, options, deed)
    return {"instrument": instrument.name, "decision": "planned"}


@router.post("/sources/{name}/{verb}", summary="Hold a source's broadcasts back, or let them go on")
async def pause(
    who: Operator, _: InstrumentOf, name: str, verb: Literal["pause", "resume"], ctx: Ctx,
    why: Why = "",
) -> c.SourceState:  # fmt: skip
    """Broadcasts are still written down; what was held back is worked off, newest first."""
    await ctx.db.write(ctx.store.hold, verb, name, (who.name, why))
    states: dict[str, c.SourceState] = {s.name: s for s in await ctx.source_states()}
    return states[name]


@router.get("/triggers", summary="Every broadcast heard and what was decided")
async def triggers(
    ctx: Ctx, _: Operator, source: str | None = None, path: str | None = None,
    cursor: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
) -> c.Page[TriggerView]:  # fmt: skip
    """Return broadcasts, newest first, 100 a page."""
    rows = await ctx.db.read(ctx.store.triggers, source, path, cursor)
    items = [TriggerView.model_validate(row, from_attributes=True) for row in rows]
    return c.Page[TriggerView](items=items, next=str(items[-1].id) if len(items) == 100 else None)


@router.post(
    "/files", status_code=202, summary="Name a file that should be archived",
    responses={200: {"model": c.Submitted, "description": "Known already, or ignored"}},
)  # fmt: skip
async def submit(
    submission: c.Submission, ctx: Ctx, who: Producer, response: Response
) -> c.Submitted:
    """Take a file on as if its instrument had announced it."""
    path = normal_path(submission.path)
    instrument = _named_instrument(ctx, submission, path)
    if reason := refusal(instrument, path):
        response.status_code = 200
        return c.Submitted(frame_id=None, decision="ignored", reason=reason)
    try:
        look = Path(ctx.disks.map.local(path)).stat
        found = await ctx.disks.run(path, instrument.name, look)
    except (OSError, ValueError) as error:
        raise FileMissing(f"{path}: {error}") from error
    stat = Stat(path, found.st_size, found.st_mtime_ns)
    where = (instrument.name, submission.source or "manual")
    file = file_written(stat, where, c.utcnow(), c.Origin.MANUAL)
    deed = (who.name, submission.why)
    decision, reason = await ctx.db.write(ctx.store.submit, file, logs.traceparent(), deed)
    response.status_code = 202 if decision == "accepted" else 200
    return c.Submitted(frame_id=file.frame_id, decision=decision, reason=reason)


@router.post("/canary", status_code=202, summary="Send a frame of our own through the system")
async def canary(ctx: Ctx, _: Operator) -> c.Submitted:
    """It takes the true path, stands in no list, and is removed again after a while."""
    frame_id = await ctx.worker.canary()
    return c.Submitted(frame_id=frame_id, decision="accepted", reason="a canary")


def _named_instrument(ctx: Any, submission: c.Submission, path: str) -> Any:
    if submission.source:
        return _instrument(submission.source, ctx)
    known, name = ctx.instruments, submission.instrument
    found = known.get(name.upper()) if name else instrument_of(known.values(), path)
    if found is None:
        which = f"is named {name!r}" if name else f"has a data root that holds {path}"
        raise UnknownInstrument(f"no instrument {which}; name one of {', '.join(sorted(known))}")
    return found
