"""The preparer's front door."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, ConfigDict, Field

from koa_shared import logs
from koa_shared.contracts import Accepted, FileWritten, FrameView, Time
from koa_shared.errors import Rejected
from koa_shared.ids import Fraction
from koa_shared.web import KNOWN, Ctx, Operator, Producer, Why

router = APIRouter(prefix="/v1")


class Order(BaseModel):
    """An operator's reason, and what the new generation does otherwise than the last."""

    model_config = ConfigDict(extra="forbid")
    why: str = ""
    waive: list[str] = Field(default=[], description="codes of findings that may stand")
    fraction: Fraction | None = Field(default=None, description="of the second in the KOAID")
    progid: str | None = Field(default=None, description="whose the frame is")


def _check_known(ctx: Any, instrument: str) -> None:
    if instrument not in ctx.instruments:
        raise Rejected(f"no instrument {instrument!r}", code="unknown_instrument")


@router.post("/files", status_code=202, responses=KNOWN, summary="An instrument has written a file")
async def announce(file: FileWritten, ctx: Ctx, _: Producer, response: Response) -> Accepted:
    """202: taken on, durable here. 200: known, also if its bytes were read already."""
    _check_known(ctx, file.instrument)
    fresh, row = await ctx.db.write(ctx.store.announce, file, logs.traceparent())
    response.status_code = 202 if fresh else 200
    return Accepted.model_validate(row, from_attributes=True)


@router.get("/frames/{frame_id}", summary="A frame as the preparer knows it")
async def get_frame(frame_id: str, ctx: Ctx, _: Operator) -> FrameView:
    """Return status, findings and timeline of the last generation."""
    row = await ctx.db.read(ctx.store.file, frame_id)
    return FrameView.model_validate(row.model_dump())


@router.get("/parked", summary="Frames that wait for an operator")
async def parked(ctx: Ctx, _: Operator) -> list[FrameView]:
    """Return the frames that are ERROR here."""
    rows = await ctx.db.read(ctx.store.parked)
    return [FrameView.model_validate(row.model_dump()) for row in rows]


@router.post("/frames/{frame_id}/{verb}", summary="Prepare a frame again")
async def again(
    frame_id: str, verb: Literal["retry", "release", "reprocess"], ctx: Ctx, who: Operator,
    order: Order | None = None,
) -> Accepted:  # fmt: skip
    """A new generation: `retry` and `release` of ERROR and INVALID, `reprocess` of any end.

    `release` waives findings; `reprocess` makes a new version from the same raw bytes.
    """
    order = order or Order()
    if verb == "release" and not order.waive:
        raise Rejected("release needs `waive`, the codes of the findings that may stand")
    options = order.model_dump(exclude={"why"}, exclude_defaults=True)
    row = await ctx.db.write(ctx.store.again, frame_id, verb, options, (who.name, order.why))
    return Accepted.model_validate(row, from_attributes=True)


@router.post("/instruments/{name}/{verb}", summary="Hold an instrument's frames back, or go on")
async def hold(
    name: str, verb: Literal["pause", "resume"], ctx: Ctx, who: Operator,
    why: Why = "",
) -> dict[str, Any]:  # fmt: skip
    """Held back, frames are still accepted and wait; then they go on, newest first."""
    _check_known(ctx, name)
    await ctx.db.write(ctx.store.hold, verb, name, (who.name, why))
    return {"instrument": name, "paused": verb == "pause"}


@router.post("/resend", summary="Tell the ingestor again what was done since then")
async def resend(
    since: Annotated[Time, Body(embed=True)], ctx: Ctx, who: Operator, why: Why = ""
) -> dict[str, int]:  # fmt: skip
    """For an ingestor whose catalogue was restored from a backup."""
    count = await ctx.db.write(ctx.store.resend, since, (who.name, why))
    return {"resent": count}
