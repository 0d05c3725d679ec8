"""The preparer's front door."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from koa_shared import logs
from koa_shared.contracts import Accepted, FileWritten, FrameView, Status, Time
from koa_shared.errors import Conflict, Rejected
from koa_shared.web import Caller, Operator, Producer

router = APIRouter(prefix="/v1")


class Order(BaseModel):
    """An operator's reason."""

    model_config = ConfigDict(extra="forbid")
    why: str = ""


class Release(Order):
    """Which findings are waived."""

    waive: list[str]


class Reprocess(Order):
    """What a new generation does otherwise than the last."""

    fraction: Literal["production", "padded"] | None = None
    progid: str | None = None


class Since(BaseModel):
    """How far back."""

    since: Time


def _context(request: Request) -> Any:
    return request.app.state.context


Ctx = Annotated[Any, Depends(_context)]


def _known_instrument(name: str, ctx: Ctx) -> str:
    if name not in ctx.instruments:
        raise Rejected(f"no instrument {name!r}", code="unknown_instrument")
    return name


Known = Annotated[str, Depends(_known_instrument)]


def _show(row: Any) -> FrameView:
    names = set(FrameView.model_fields) & set(type(row).model_fields)
    return FrameView.model_validate(row.model_dump(include=names))


def _accepted(row: Any) -> Accepted:
    status = Status(row.status)
    return Accepted(frame_id=row.frame_id, generation=row.generation, status=status)


@router.post("/files", status_code=202, summary="An instrument has written a file")
async def announce(file: FileWritten, ctx: Ctx, _: Producer, response: Response) -> Accepted:
    """202: taken on, durable here. 200: known, also if its bytes were read already."""
    _known_instrument(file.instrument, ctx)
    fresh, row = await ctx.db.write(ctx.store.announce, file, logs.traceparent())
    if fresh:
        ctx.wake("prepare")
    response.status_code = 202 if fresh else 200
    return _accepted(row)


@router.get("/frames/{frame_id}", summary="A frame as the preparer knows it")
async def get_frame(frame_id: str, ctx: Ctx, _: Operator) -> FrameView:
    """Return status, findings and timeline of the last generation."""
    return _show(await ctx.db.read(ctx.store.file, frame_id))


@router.get("/parked", summary="Frames that wait for an operator")
async def parked(ctx: Ctx, _: Operator) -> list[FrameView]:
    """Return the frames that are ERROR here."""
    return [_show(row) for row in await ctx.db.read(ctx.store.parked)]


async def _again(ctx: Any, frame_id: str, verb: str, who: Caller, order: Order) -> Accepted:
    row = await ctx.db.read(ctx.store.file, frame_id)
    if verb != "reprocess" and row.status not in (Status.ERROR, Status.INVALID):
        raise Conflict(f"{frame_id} is {row.status}; {verb} is for ERROR and INVALID")
    options = order.model_dump(exclude={"why"}, exclude_none=True)
    deed = (who.name, order.why)
    row = await ctx.db.write(ctx.store.again, frame_id, verb, options, deed)
    ctx.wake("prepare")
    return _accepted(row)


@router.post("/frames/{frame_id}/retry", summary="Prepare a parked frame again")
async def retry(frame_id: str, ctx: Ctx, who: Operator, order: Order | None = None) -> Accepted:
    """For ERROR and INVALID: a new generation, with the same rules."""
    return await _again(ctx, frame_id, "retry", who, order or Order())


@router.post("/frames/{frame_id}/release", summary="Let an invalid frame pass")
async def release(frame_id: str, ctx: Ctx, who: Operator, order: Release) -> Accepted:
    """A new generation that waives the findings named; on record with the reason."""
    return await _again(ctx, frame_id, "release", who, order)


@router.post("/frames/{frame_id}/reprocess", summary="Make the products anew")
async def reprocess(
    frame_id: str, ctx: Ctx, who: Operator, order: Reprocess | None = None
) -> Accepted:
    """A new generation and version, from the same raw bytes."""
    return await _again(ctx, frame_id, "reprocess", who, order or Reprocess())


@router.post("/instruments/{name}/pause", summary="Hold an instrument's frames back")
async def pause(name: Known, ctx: Ctx, who: Operator, order: Order | None = None) -> dict[str, Any]:
    """Frames are still accepted; they wait in the ledger."""
    return dict(await ctx.hold(name, (who.name, (order or Order()).why), paused=True))


@router.post("/instruments/{name}/resume", summary="Let an instrument's frames go on")
async def resume(
    name: Known, ctx: Ctx, who: Operator, order: Order | None = None
) -> dict[str, Any]:
    """What was held back is worked off, newest first."""
    return dict(await ctx.hold(name, (who.name, (order or Order()).why), paused=False))


@router.post("/resend", summary="Hand over again what was prepared since then")
async def resend(order: Since, ctx: Ctx, _: Operator) -> dict[str, int]:
    """For an ingestor whose catalogue was restored from a backup."""
    count = await ctx.db.write(ctx.store.resend, order.since)
    ctx.wake("handover")
    return {"resent": count}
