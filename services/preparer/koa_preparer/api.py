"""The preparer's front door."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from koa_shared import logs
from koa_shared.contracts import (
    Accepted,
    FileWritten,
    Finding,
    Status,
    Time,
    Timeline,
)
from koa_shared.errors import Conflict, Rejected
from koa_shared.web import Caller, Operator, Producer

router = APIRouter(prefix="/v1")


class Order(BaseModel):
    """An operator's reason."""

    model_config = ConfigDict(extra="forbid")
    why: str = ""


class Release(Order):
    """Which finding is waived."""

    waive: list[str]


class Reprocess(Order):
    """What a new generation does otherwise than the last."""

    fraction: Literal["production", "padded"] | None = None
    progid: str | None = None


class Since(BaseModel):
    """How far back."""

    since: Time


class FileView(BaseModel):
    """A frame as the preparer knows it."""

    frame_id: str
    generation: int
    status: Status
    step: str
    instrument: str
    source: str
    path: str
    koaid: str | None
    origin: str
    findings: list[Finding]
    timeline: Timeline
    attempt: int
    next_attempt_at: Time | None
    raw_sha256: str | None


def _context(request: Request) -> Any:
    return request.app.state.context


Ctx = Annotated[Any, Depends(_context)]


def _show(row: Any) -> FileView:
    return FileView.model_validate(
        {name: getattr(row, name) for name in FileView.model_fields}
        | {"timeline": row.timeline or {}, "findings": row.findings or []}
    )


def _accepted(row: Any) -> Accepted:
    return Accepted(frame_id=row.frame_id, generation=row.generation, status=Status(row.status))


@router.post("/files", summary="An instrument has written a file")
async def announce(file: FileWritten, ctx: Ctx, _: Producer, response: Response) -> Accepted:
    """202: taken on, durable here. 200: known, also if its bytes were read already."""
    if file.instrument not in ctx.instruments:
        raise Rejected(f"no instrument {file.instrument!r}", code="unknown_instrument")
    fresh, row = await ctx.db.write(ctx.store.announce, file, logs.traceparent())
    if fresh:
        ctx.wake("prepare")
    response.status_code = 202 if fresh else 200
    return _accepted(row)


@router.get("/frames/{frame_id}", summary="A frame as the preparer knows it")
async def get_frame(frame_id: str, ctx: Ctx, _: Operator) -> FileView:
    """Return status, findings and timeline of the last generation."""
    return _show(await ctx.db.read(ctx.store.file, frame_id))


@router.get("/parked", summary="Frames that wait for an operator")
async def parked(ctx: Ctx, _: Operator) -> list[FileView]:
    """Return the frames that are ERROR here."""
    return [_show(row) for row in await ctx.db.read(ctx.store.parked)]


async def _again(
    ctx: Any, frame_id: str, verb: str, options: dict[str, Any], who: Caller, why: str
) -> Accepted:
    row = await ctx.db.write(ctx.store.again, frame_id, verb, options, (who.name, why))
    ctx.wake("prepare")
    return _accepted(row)


@router.post("/frames/{frame_id}/retry", summary="Prepare a parked frame again")
async def retry(frame_id: str, ctx: Ctx, who: Operator, order: Order | None = None) -> Accepted:
    """For ERROR and INVALID: a new generation, with the same rules."""
    row = await ctx.db.read(ctx.store.file, frame_id)
    if row.status not in (Status.ERROR, Status.INVALID):
        raise Conflict(f"{frame_id} is {row.status}; use reprocess")
    return await _again(ctx, frame_id, "retry", {}, who, (order or Order()).why)


@router.post("/frames/{frame_id}/release", summary="Let an invalid frame pass")
async def release(frame_id: str, ctx: Ctx, who: Operator, order: Release) -> Accepted:
    """A new generation that waives the findings named; on record with the reason."""
    return await _again(ctx, frame_id, "release", {"waive": order.waive}, who, order.why)


@router.post("/frames/{frame_id}/reprocess", summary="Make the products anew")
async def reprocess(
    frame_id: str, ctx: Ctx, who: Operator, order: Reprocess | None = None
) -> Accepted:
    """A new generation and version, from the same raw bytes."""
    order = order or Reprocess()
    options = order.model_dump(exclude={"why"}, exclude_none=True)
    return await _again(ctx, frame_id, "reprocess", options, who, order.why)


async def _pause(
    ctx: Any, name: str, who: Caller, order: Order | None, *, paused: bool
) -> dict[str, Any]:
    if name not in ctx.instruments:
        raise Rejected(f"no instrument {name!r}", code="unknown_instrument")
    deed = (who.name, (order or Order()).why)
    await ctx.db.write(ctx.store.pause, name, deed, paused=paused)
    await ctx.refresh_paused()
    return {"instrument": name, "paused": paused}


@router.post("/instruments/{name}/pause", summary="Hold an instrument's frames back")
async def pause(name: str, ctx: Ctx, who: Operator, order: Order | None = None) -> dict[str, Any]:
    """Frames are still accepted; they wait in the ledger."""
    return await _pause(ctx, name, who, order, paused=True)


@router.post("/instruments/{name}/resume", summary="Let an instrument's frames go on")
async def resume(name: str, ctx: Ctx, who: Operator, order: Order | None = None) -> dict[str, Any]:
    """What was held back is worked off, newest first."""
    return await _pause(ctx, name, who, order, paused=False)


@router.post("/resend", summary="Hand over again what was prepared since then")
async def resend(order: Since, ctx: Ctx, _: Operator) -> dict[str, int]:
    """For an ingestor whose catalogue was restored from a backup."""
    count = await ctx.db.write(ctx.store.resend, order.since)
    ctx.wake("handover")
    return {"resent": count}
