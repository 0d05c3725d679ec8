"""The ingestor's front door: messages of the services, the status API."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel

from koa_shared import logs
from koa_shared.contracts import (
    Accepted,
    EventBatch,
    FilePrepared,
    FrameView,
    Level,
    Page,
    Status,
    Time,
)
from koa_shared.errors import Conflict
from koa_shared.web import AnyCaller, Caller, Operator, Producer

from .catalog import is_open_to, view
from .downloads import send
from .errors import NeedsReprocess, NotArchived, Proprietary
from .pipeline import archive_key

router = APIRouter(prefix="/v1")
IDLE = 15.0  # s between comments that keep a quiet stream open


def _context(request: Request) -> Any:
    return request.app.state.context


Ctx = Annotated[Any, Depends(_context)]
Number = Annotated[int | None, Query(ge=1, le=1_000_000)]


class Why(BaseModel):
    """An operator's reason."""

    why: str = ""


class Accept(Why):
    """What a frame with a taken KOAID is: the same exposure, or another one."""

    as_: Literal["version", "padded"] = "version"
    model_config = {"alias_generator": lambda name: name.rstrip("_")}


class HistoryEntry(BaseModel):
    """One event of a frame's life."""

    service: str
    seq: int
    generation: int
    at: Time
    status: str
    step: str


@router.post("/frames", status_code=202, summary="A frame's products lie in staging")
async def hand_over(frame: FilePrepared, ctx: Ctx, _: Producer, response: Response) -> Accepted:
    """202: accepted, durable here. 200: known already."""
    fresh, row = await ctx.db.write(ctx.store.hand_over, frame, logs.traceparent())
    ctx.published()
    ctx.wake("ingest")
    response.status_code = 202 if fresh else 200
    return _accepted(row)


def _accepted(row: Any) -> Accepted:
    status = Status(row.status)
    return Accepted(frame_id=row.frame_id, generation=row.generation, status=status)


@router.post("/events", summary="What happened to frames, sources, directories")
async def events(batch: EventBatch, ctx: Ctx, _: Producer) -> dict[str, int]:
    """Apply a batch; repeats are dropped."""
    applied = await ctx.db.write(ctx.store.apply, batch)
    if batch.events:
        ctx.published()
    return {"applied": applied}


class Filters(BaseModel):
    """Conditions on frames; those on hidden columns match only what you may see."""

    instrument: str | None = None
    night: Annotated[str | None, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")] = None
    status: Status | None = None
    program: str | None = None
    level: Level | None = None
    type: str | None = None
    origin: str | None = None
    path: str | None = None
    name: str | None = None
    koaid: str | None = None
    since: AwareDatetime | None = None
    limit: Annotated[int, Query(ge=1, le=1000)] = 100
    cursor: str | None = None


async def _page(ctx: Any, filters: Filters, caller: Caller) -> Page[FrameView]:
    wanted = filters.model_dump(exclude={"cursor"})
    rows, more = await ctx.db.read(ctx.store.frames, wanted, caller, filters.cursor)
    return Page[FrameView](items=[view(row.model_dump(), caller) for row in rows], next=more)


@router.get("/frames", summary="Frames, newest acquired first")
async def list_frames(
    ctx: Ctx, caller: AnyCaller, filters: Annotated[Filters, Query()]
) -> Page[FrameView]:
    """Return one page of frames, each as you may see it."""
    return await _page(ctx, filters, caller)


@router.get("/frames/{name}", summary="One frame, by frame_id or KOAID")
async def get_frame(name: str, ctx: Ctx, caller: AnyCaller, version: Number = None) -> FrameView:
    """Return a frame as you may see it; `version` for an earlier one."""
    row, old = await ctx.db.read(ctx.store.holding, name, version)
    values = row.model_dump()
    if version is not None:
        if old is None:
            raise NotArchived(f"{name} has no version {version}")
        values |= {"version": version, "products": old.products, "core": old.core}
    return view(values, caller)


@router.get("/frames/{name}/timeline", summary="A frame's events, in order")
async def timeline(name: str, ctx: Ctx, _: AnyCaller) -> list[HistoryEntry]:
    """Return when which service said what about the frame."""
    row = await ctx.db.read(ctx.store.find, name)
    rows = await ctx.db.read(ctx.store.history, row.frame_id)
    return [HistoryEntry.model_validate(r.model_dump()) for r in rows]


class Archived:
    """The version that holds a frame, for a caller who may have it."""

    def __init__(self, row: Any, held: Any, ctx: Any) -> None:
        self.row, self.held, self.ctx = row, held, ctx

    async def send(self, key: str, value: str, range_: str | None = None) -> StreamingResponse:
        """Stream the first product whose `key` (name, role) is `value`."""
        held, row = self.held, self.row
        product = next((p for p in held.products if p[key] == value), None)
        if product is None:
            raise NotArchived(f"{held.koaid} has no product with the {key} {value!r}")
        where = (row.instrument, row.level, held.koaid, held.version)
        bucket = self.ctx.config.archive_bucket
        place = (bucket, archive_key(where, product["name"]))
        return await send(self.ctx.objects, place, product, range_)


async def _archived(name: str, ctx: Ctx, caller: AnyCaller, version: Number = None) -> Archived:
    row, held = await ctx.db.read(ctx.store.holding, name, version)
    if not is_open_to(caller, row.semid, row.release_date):
        raise Proprietary("a token that names the frame's program is needed")
    if held is None:
        raise NotArchived(f"{name} is {row.status}, not archived")
    return Archived(row, held, ctx)


Holding = Annotated[Archived, Depends(_archived)]
Range = Annotated[str | None, Header(alias="range")]


@router.get("/frames/{name}/file", summary="The FITS file; ranges are served")
async def get_file(frame: Holding, range_: Range = None) -> StreamingResponse:
    """Stream the level-0 FITS file."""
    return await frame.send("role", "fits", range_)


@router.get("/frames/{name}/preview", summary="The preview, a JPEG")
async def get_preview(frame: Holding) -> StreamingResponse:
    """Stream the first preview."""
    return await frame.send("role", "preview")


@router.get("/frames/{name}/products/{product}", summary="One product by its name")
async def get_product(frame: Holding, product: str, range_: Range = None) -> StreamingResponse:
    """Stream any product of the frame."""
    return await frame.send("name", product, range_)


@router.get("/frames/{name}/header", summary="The header: [keyword, value, comment]")
async def get_header(frame: Holding) -> list[list[Any]]:
    """Return the archived primary header, in order, repeats kept."""
    return list(frame.held.header)


@router.get("/frames/{name}/metadata", summary="The catalogue's core columns")
async def get_metadata(frame: Holding) -> dict[str, Any]:
    """Return the core columns with their types; RA and Dec in degrees."""
    return dict(frame.held.core)


@router.post("/frames/{frame_id}/retry", summary="Try a parked frame again")
async def retry(frame_id: str, ctx: Ctx, caller: Operator, order: Why | None = None) -> Accepted:
    """An ERROR of the ingestor goes on from the first attempt."""
    return await _reopen(ctx, frame_id, "retry", caller, order or Why())


@router.post("/frames/{frame_id}/accept", summary="Decide a KOAID conflict")
async def accept(frame_id: str, ctx: Ctx, caller: Operator, order: Accept) -> Accepted:
    """`version`: the same exposure, rewritten. `padded`: another exposure."""
    if order.as_ == "padded":
        await _may_reopen(ctx, frame_id, "accept")
        raise NeedsReprocess(
            "the padded KOAID is written into the products: POST "
            f'/v1/frames/{frame_id}/reprocess {{"fraction": "padded"}} on the preparer'
        )
    return await _reopen(ctx, frame_id, "accept", caller, order)


REOPENS = {"retry": (Status.ERROR, None), "accept": (Status.INVALID, "DUPLICATE_KOAID")}


async def _may_reopen(ctx: Any, frame_id: str, verb: str) -> Any:
    status, code = REOPENS[verb]
    row = await ctx.db.read(ctx.store.find, frame_id)
    if row.status != status or (code and code not in {f["code"] for f in row.findings}):
        raise Conflict(f"{verb} is for frames that are {status} {code or ''}".strip())
    return row


async def _reopen(ctx: Any, frame_id: str, verb: str, caller: Caller, order: Why) -> Accepted:
    row = await _may_reopen(ctx, frame_id, verb)
    row = await ctx.db.write(ctx.store.reopen, row.frame_id, verb, caller, order.why)
    ctx.published()
    ctx.wake("ingest")
    return _accepted(row)


@router.get("/parked", summary="Frames that wait for an operator")
async def parked(ctx: Ctx, caller: Operator) -> Page[FrameView]:
    """Return the frames that are ERROR."""
    return await _page(ctx, Filters(status=Status.ERROR, limit=1000), caller)


@router.get("/audit", summary="What operators did")
async def audit(ctx: Ctx, _: Operator) -> list[dict[str, Any]]:
    """Return the last 200 deeds: who, when, why, what changed."""
    return [row.model_dump() for row in await ctx.db.read(ctx.store.audits)]


@router.get("/sources", summary="The last report about every keyword source")
async def sources(ctx: Ctx, _: Operator) -> list[dict[str, Any]]:
    """Return the sources of all monitors."""
    rows = await ctx.db.read(ctx.store.sources)
    return [row.state | {"at": row.at} for row in rows]


@router.get("/nights/{date}", summary="A night's counts")
async def night(date: str, ctx: Ctx, caller: AnyCaller) -> dict[str, Any]:
    """Return the night's frames by instrument and status, and its inventories."""
    counts: dict[str, Any] = await ctx.db.read(ctx.store.night, date)
    for seen in counts["inventory"] if not caller.sees_all else ():
        del seen["frame_gaps"]  # these are paths
    return counts


@router.get("/stream", summary="Server-sent events, resumable with Last-Event-ID")
async def stream(
    ctx: Ctx, caller: AnyCaller, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Send each change of a frame, as you may see it; `event` is its status."""
    last = int(last_event_id) if last_event_id and last_event_id.isdecimal() else None
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    entries = _entries(ctx, caller, last)
    return StreamingResponse(entries, 200, headers, "text/event-stream")


async def _entries(ctx: Any, caller: Caller, last: int | None) -> AsyncIterator[str]:
    if last is None:
        last = await ctx.db.read(ctx.store.stream_end)
    yield f"id: {last}\n\n"  # where to resume if it breaks off before the first event
    while True:
        changed = ctx.change()
        rows, oldest = await ctx.db.read(ctx.store.stream_after, last)
        if oldest > last + 1:
            yield f"event: reset\nid: {oldest - 1}\ndata: {{}}\n\n"
        for entry, frame in rows:
            data = view(frame.model_dump(), caller).model_dump_json(exclude_none=True)
            yield f"id: {entry.id}\nevent: {entry.status}\ndata: {data}\n\n"
            last = entry.id
        if not rows:
            try:
                async with asyncio.timeout(ctx.idle(IDLE)):
                    await changed.wait()
            except TimeoutError:
                yield ": \n\n"
