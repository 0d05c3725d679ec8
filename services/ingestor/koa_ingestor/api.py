"""The ingestor's front door: messages of the services, the status API."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator

from koa_shared import logs, web
from koa_shared.contracts import Accepted, EventBatch, FilePrepared, Filters, FrameView, Page
from koa_shared.errors import Conflict, Unauthorized
from koa_shared.reports import Kept, NightReport
from koa_shared.web import KNOWN, AnyCaller, Caller, Ctx, Operator, Producer, Why

from .catalog import is_open_to, view
from .downloads import send
from .errors import NotArchived, Proprietary

router = APIRouter(prefix="/v1")
IDLE = 15.0  # seconds between comments that keep a quiet stream open
BYTES = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
FILE: dict[str, Any] = {
    "response_class": StreamingResponse,
    "responses": {200: BYTES, 206: BYTES | {"description": "The range that was asked for"}},
}
PUBLIC_SOURCE = {"name", "instrument", "connected", "paused", "last_frame_at", "at"}
Night = Annotated[str | None, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Number = Annotated[int | None, Query(ge=1, le=1_000_000)]
OfLevel = Annotated[int, Query(alias="level", ge=0, le=2, description="where a KOAID names it")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Range = Annotated[str | None, Header(alias="range")]
# A date as text: pydantic takes numbers for days since 1970, too.
Date = Annotated[dt.date, BeforeValidator(lambda text: text if text.count("-") == 2 else None)]
Cursor = Annotated[str, Query(description="`next` of the page before")]
As = Annotated[Literal["version", "padded"], Body(alias="as")]


@router.post(
    "/frames", status_code=202, response_model=Accepted, responses=KNOWN,
    summary="Products are staged",
)  # fmt: skip
async def hand_over(frame: FilePrepared, ctx: Ctx, _: Producer, response: Response) -> Any:
    """202: accepted, durable here. 200: known already."""
    fresh, row = await ctx.db.write(ctx.store.hand_over, frame, logs.traceparent())
    response.status_code = 202 if fresh else 200
    return row


@router.post("/events", summary="What happened to frames, sources, directories")
async def events(batch: EventBatch, ctx: Ctx, _: Producer) -> dict[str, int]:
    """Apply a batch; repeats are dropped."""
    return {"applied": await ctx.db.write(ctx.store.apply, batch)}


class Asked(Filters, extra="ignore"):
    """The query; what is no filter is ignored."""


@router.get("/frames", summary="Frames, newest acquired first")
async def list_frames(
    ctx: Ctx, caller: AnyCaller, filters: Annotated[Asked, Query()]
) -> Page[FrameView]:
    """Return one page of frames, each as you may see it."""
    wanted = filters.model_dump(exclude={"cursor"})
    rows, more = await ctx.db.read(ctx.store.frames, wanted, caller, filters.cursor)
    shown = await ctx.db.read(ctx.store.shown, rows)
    return Page(items=[view(row, caller) for row in shown], next=more)


@router.get("/frames/{name}", summary="One frame, by frame_id or KOAID")
async def get_frame(
    name: str, ctx: Ctx, caller: AnyCaller, version: Number = None, level: OfLevel = 0
) -> FrameView:
    """Return a frame as you may see it; `version` for an earlier one, `level` for a reduced one."""
    row, held = await ctx.db.read(ctx.store.holding, name, version, level)
    [values] = await ctx.db.read(ctx.store.shown, [row])
    if version is not None:
        if held is None:
            raise NotArchived(f"{name} has no version {version}")
        values |= held.model_dump(include={"version", "products", "core", "recipe"})
    return view(values, caller)


@router.get("/frames/{name}/timeline", summary="A frame's events, in order")
async def timeline(
    name: str, ctx: Ctx, caller: AnyCaller, level: OfLevel = 0
) -> list[dict[str, Any]]:
    """Return when which service said what; of which generation, if you see the frame whole."""
    row, history = await ctx.db.read(ctx.store.history, name, level)
    is_open = is_open_to(caller, row.semid, row.release_date)
    shown = {"service", "seq", "at", "status", "step"} | ({"generation"} if is_open else set())
    return [event.model_dump(mode="json", include=shown) for event in history]


async def _archived(
    name: str, ctx: Ctx, caller: AnyCaller, version: Number = None, level: OfLevel = 0
) -> Any:
    row, held = await ctx.db.read(ctx.store.holding, name, version, level)
    if not is_open_to(caller, row.semid, row.release_date):
        raise Proprietary("a token that names the frame's program is needed")
    if held is None:
        raise NotArchived(f"{name} is {row.status}, not archived")
    return row, held


Archived = Annotated[Any, Depends(_archived)]


@router.get("/frames/{name}/file", summary="The FITS file; ranges are served", **FILE)
async def get_file(ctx: Ctx, archived: Archived, range_: Range = None) -> StreamingResponse:
    """Stream the FITS file; of a reduced frame the first."""
    return await send(ctx, archived, ("role", "fits"), range_)


@router.get("/frames/{name}/preview", summary="The preview, a JPEG", **FILE)
async def get_preview(ctx: Ctx, archived: Archived) -> StreamingResponse:
    """Stream the first preview."""
    return await send(ctx, archived, ("role", "preview"))


@router.get("/frames/{name}/products/{product}", summary="One product by its name", **FILE)
async def get_product(
    ctx: Ctx, archived: Archived, product: str, range_: Range = None
) -> StreamingResponse:
    """Stream any product of the frame."""
    return await send(ctx, archived, ("name", product), range_)


@router.get("/frames/{name}/header", summary="The header: [keyword, value, comment]")
async def get_header(archived: Archived) -> list[list[Any]]:
    """Return the archived primary header, in order, repeats kept."""
    _, held = archived
    return list(held.header)


@router.get("/frames/{name}/metadata", summary="The catalogue's core columns")
async def get_metadata(archived: Archived) -> dict[str, Any]:
    """Return the core columns with their types; RA and Dec in degrees."""
    _, held = archived
    return dict(held.core)


@router.post("/frames/{name}/retry", response_model=Accepted, summary="Try a parked frame again")
async def retry(name: str, ctx: Ctx, caller: Operator, why: Why = "") -> Any:
    """An ERROR of the ingestor goes on from the first attempt."""
    return await ctx.db.write(ctx.store.reopen, name, "retry", (caller.name, why))


@router.post("/frames/{name}/accept", response_model=Accepted, summary="Decide a KOAID conflict")
async def accept(name: str, ctx: Ctx, caller: Operator, as_: As, why: Why = "") -> Any:
    """`version`: the same exposure, rewritten. `padded`: another exposure."""
    if as_ == "padded":
        row = await ctx.db.read(ctx.store.reopened, name, "accept")
        order = f'POST /v1/frames/{row.frame_id}/reprocess {{"fraction": "padded"}} on the preparer'
        raise Conflict(f"the products hold the KOAID: {order}", code="needs_reprocess")
    return await ctx.db.write(ctx.store.reopen, name, "accept", (caller.name, why))


@router.get("/parked", summary="Frames that wait for an operator")
async def parked(ctx: Ctx, caller: Operator) -> Page[FrameView]:
    """Return the frames that are ERROR, or that the preparer refuses; the newest 1,000."""
    rows = await ctx.db.read(ctx.store.parked)
    return Page(items=[view(row.model_dump(), caller) for row in rows])


@router.get("/scrub", summary="How far the scrubber is, and what is damaged")
async def scrubbing(ctx: Ctx, _: Operator) -> dict[str, Any]:
    """Versions, how many of them are due (last read before `since`), the damaged objects."""
    state: dict[str, Any] = await ctx.db.read(ctx.store.scrub_state, ctx.config.scrub_days)
    return state


@router.post("/scrub", status_code=202, summary="Have archived objects read again now")
async def scrub(
    ctx: Ctx, caller: Operator, koaid: Annotated[str | None, Body()] = None, why: Why = ""
) -> dict[str, str]:
    """All versions of one KOAID, or of all of them."""
    deed = (caller.name, why)
    return {"scrub": await ctx.db.write(ctx.store.order_scrub, koaid, deed)}


@router.get("/retention", summary="What retention would delete now, and by which policy")
async def retention(ctx: Ctx, _: Operator) -> dict[str, Any]:
    """A dry run; with `due_seconds`: what goes by itself once its time has come."""
    policies = ctx.worker.policies
    items = await ctx.db.read(ctx.store.retention, policies)
    return {"policies": policies._asdict(), "items": items}


@router.post("/retention", status_code=202, summary="Delete now what the policies say")
async def retain(ctx: Ctx, caller: Operator, why: Why = "") -> dict[str, Any]:
    """It is no longer served when this is answered; the audit says when its objects are gone."""
    policies, deed = ctx.worker.policies, (caller.name, why)
    items = await ctx.db.write(ctx.store.retain, policies, deed)
    return {"policies": policies._asdict(), "items": items}


@router.get("/deletable", summary="Raw files that the summit may delete, oldest first")
async def deletable(
    ctx: Ctx, _: Producer, instrument: str | None = None, limit: Limit = 1000,
    cursor: str | None = None,
) -> Page[dict[str, Any]]:  # fmt: skip
    """A file may go if its path, size and SHA-256 are those told here: compare before."""
    told, days = {"instrument": instrument, "limit": limit}, ctx.config.deletable_days
    rows, more = await ctx.db.read(ctx.store.deletable, days, told, cursor)
    return Page(items=rows, next=more)


@router.get("/overview", summary="What there is to look at, and who you are")
async def overview(ctx: Ctx, caller: AnyCaller, night: Night = None) -> dict[str, Any]:
    """Return nights next to `night` (the latest), the canary, the sources, and the caller."""
    seen: dict[str, Any] = await ctx.db.read(ctx.store.overview, night)
    if not caller.sees_all:  # the rest is paths, and operators' words
        seen["sources"] = [{k: s[k] for k in PUBLIC_SOURCE & s.keys()} for s in seen["sources"]]
    shown = set(Caller.model_fields)  # a Token has the digest, too
    return seen | {"caller": caller.model_dump(mode="json", include=shown)}


@router.get("/nights/{date}", summary="The report of a night")
async def night(date: Date, ctx: Ctx, caller: AnyCaller) -> NightReport:
    """Return counts, sizes, latencies, gaps, findings and a verdict; `date` is a UT date."""
    told: NightReport = await ctx.db.read(ctx.store.night, date.isoformat(), caller)
    return told


@router.get("/nights/{date}/manifest", summary="What the archive keeps of a night")
async def manifest(date: Date, ctx: Ctx, caller: AnyCaller, cursor: Cursor = "") -> Page[Kept]:
    """Return each KOAID's FITS file by KOAID; the digests of what you may see."""
    found, more = await ctx.db.read(ctx.store.manifest, date.isoformat(), caller, cursor)
    return Page(items=found, next=more)


@router.get(
    "/stream", summary="Server-sent events, resumable with Last-Event-ID",
    response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}},
)  # fmt: skip
async def stream(
    request: Request, ctx: Ctx, _: AnyCaller, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Send each change of a frame, as you may see it; `event` is its status."""
    given = last_event_id or ""
    last = int(given) if given.isdecimal() and len(given) < 10 else None  # else none of ours
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    entries = _entries(ctx, partial(web.caller, request), last)
    return StreamingResponse(entries, 200, headers, "text/event-stream")


async def _entries(ctx: Any, who: Callable[[], Caller], last: int | None) -> AsyncIterator[str]:
    end = await ctx.db.read(ctx.store.stream_end)
    if last is not None and last > end:  # a catalogue from a backup gives ids once more
        yield f"event: reset\nid: {end}\ndata: {{}}\n\n"
    last = end if last is None else min(last, end)
    yield f"id: {last}\n\n"  # where to resume if it breaks off before the first event
    while True:
        changed = ctx.feed.changed
        entries, oldest = await ctx.feed.after(last)
        if oldest > last + 1:
            yield f"event: reset\nid: {oldest - 1}\ndata: {{}}\n\n"
        if entries:
            try:
                caller = who()
            except Unauthorized:  # revoked or expired meanwhile
                return
            yield "".join(entry.text(caller) for entry in entries)
            last = entries[-1].id
            continue
        try:
            async with asyncio.timeout(IDLE):
                await changed.wait()
        except TimeoutError:
            yield ": \n\n"
