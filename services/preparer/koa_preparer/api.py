"""The preparer's front door."""

from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import BaseModel, Field

from koa_shared import logs
from koa_shared.contracts import NUMBER, Accepted, FileWritten, FrameView, Time
from koa_shared.errors import Rejected
from koa_shared.ids import Fraction
from koa_shared.products import Delivered, Delivery
from koa_shared.web import KNOWN, Ctx, Operator, Producer, Why

router = APIRouter(prefix="/v1")


class Order(BaseModel, extra="forbid"):
    """An operator's reason, and what the new generation does otherwise than the last."""

    why: str = ""
    waive: list[str] = Field(default=[], description="codes of findings that may stand")
    fraction: Fraction | None = Field(default=None, description="of the second in the KOAID")
    progid: str | None = Field(default=None, description="whose the frame is")


After = Annotated[int, Query(ge=0, le=2**31 - 1, description="`next` of the page before")]
Number = Annotated[int, Path(ge=1, le=2**31 - 1, description="of a campaign")]


class CampaignOrder(BaseModel, extra="forbid"):
    """Which frames are prepared anew, what is otherwise about them, and how fast."""

    instrument: str | None = None
    night: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    status: Literal["COMPLETE", "INVALID", "ERROR", "DUPLICATE"] | None = None
    findings: list[str] = Field(default=[], description="codes; a frame has all of them")
    rules: str | None = Field(
        default=None, description="digest of what made them, or `outdated`: not those of today",
        pattern=r"^([0-9a-f]{16}|outdated)$",
    )  # fmt: skip
    fraction: Fraction | None = None
    progid: str | None = Field(default=None, description="whose the frames are")
    per_minute: Annotated[float, NUMBER] = Field(default=30, gt=0, le=600, description="frames")
    dry_run: bool = Field(default=False, strict=True, description="only tell what would change")
    why: str = ""


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


@router.post("/products", status_code=202, responses=KNOWN, summary="A pipeline has reduced frames")
async def deliver(order: Delivery, ctx: Ctx, _: Producer, response: Response) -> Delivered:
    """202: its sets are taken on, durable here. 200: known. Each becomes available by itself."""
    order.check()
    _check_known(ctx, order.instrument)
    prefixes = [one.prefix for one in ctx.instruments[order.instrument].naming.prefixes]
    if order.koaid and order.koaid[:2] not in prefixes:
        raise Rejected(f"{order.koaid} is no {order.instrument} frame's", code="wrong_koaid")
    fresh, told = await ctx.worker.deliver(order, logs.traceparent())
    response.status_code = 202 if fresh else 200
    return cast("Delivered", told)


@router.get("/products/{delivery}", summary="What became of a delivery")
async def delivered(delivery: str, ctx: Ctx, _: Producer) -> Delivered:
    """Return its sets as they stand; of a night what is expected, and what is missing."""
    told: Delivered = await ctx.worker.delivered(delivery)
    return told


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
    name: str, verb: Literal["pause", "resume"], ctx: Ctx, who: Operator, why: Why = ""
) -> dict[str, Any]:
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


@router.post("/campaigns", status_code=202, summary="Prepare many frames anew")
async def create_campaign(order: CampaignOrder, ctx: Ctx, who: Operator) -> dict[str, Any]:
    """Behind all other work, each frame a new version; `dry_run` tells what would change."""
    wanted = order.model_dump(
        include={"instrument", "night", "status", "findings", "rules"}, exclude_defaults=True
    )
    if not wanted:
        raise Rejected("say which frames: instrument, night, status, findings or rules")
    if order.instrument is not None:
        _check_known(ctx, order.instrument)
    values = order.model_dump(include={"per_minute", "dry_run"}) | {"wanted": wanted}
    values["options"] = order.model_dump(include={"progid", "fraction"}, exclude_defaults=True)
    row = await ctx.db.write(ctx.store.create, values, (who.name, order.why))
    shown: dict[str, Any] = await ctx.db.read(ctx.store.show, row.id)
    return shown


@router.get("/campaigns", summary="The last 100 campaigns, newest first")
async def list_campaigns(ctx: Ctx, _: Operator) -> list[dict[str, Any]]:
    """Return each without its frames."""
    rows = await ctx.db.read(ctx.store.campaigns)
    return [row.told() for row in rows]


@router.get("/campaigns/{number}", summary="A campaign and what became of its frames")
async def show_campaign(
    number: Number, ctx: Ctx, _: Operator, state: str | None = None, after: After = 0,
    limit: Annotated[int, Query(ge=0, le=1000)] = 0,
) -> dict[str, Any]:  # fmt: skip
    """`frames` counts by state, `changes` the frames in which something differs.

    `each` lists some of them, with [before, after] of keywords, catalogue, program, products.
    """
    shown: dict[str, Any] = await ctx.db.read(ctx.store.show, number, state, after, limit)
    return shown


@router.post("/campaigns/{number}/{verb}", summary="Hold a campaign, let it go on, or end it")
async def switch_campaign(
    number: Number, verb: Literal["pause", "resume", "cancel"], ctx: Ctx, who: Operator,
    why: Why = "",
) -> dict[str, Any]:  # fmt: skip
    """What is on its way ends by itself; failures are counted anew after `resume`."""
    await ctx.db.write(ctx.store.switch, number, verb, (who.name, why))
    shown: dict[str, Any] = await ctx.db.read(ctx.store.show, number)
    return shown
