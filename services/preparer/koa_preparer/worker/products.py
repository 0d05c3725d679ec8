"""Reduced products at work: a delivery's sets, each whole or not at all (design 6).

`worker` is the preparer's Worker.
"""

import asyncio
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from koa_shared import contracts as c
from koa_shared import fits
from koa_shared.disks import Pulse
from koa_shared.errors import DependencyDown, FrameFault, Rejected
from koa_shared.jobs.queue import Job
from koa_shared.jobs.workshop import cause
from koa_shared.products import Came, Delivered, Delivery, Incomplete, stored_names, time_of

from ..errors import NoDirectory
from ..pipeline import frame as make
from ..pipeline import reduced
from ..pipeline.frame import Content
from ..rules import View
from ..store import File
from ..store.deliveries import Found
from .reading import think

OWN = ("md5sum.table", "manifest.json")  # what is made here of a set
MOST = 100_000  # files below a directory
AT_ONCE = 2  # files of a set in memory: one is read while another is sent


async def deliver(worker: Any, order: Delivery, trace: str) -> tuple[bool, Delivered]:
    """Take a delivery on; its sets wait in the ledger when this returns."""
    order = order.model_copy(update={"delivery": order.delivery or str(uuid.uuid4())})
    instrument = worker.instruments[order.instrument]
    try:
        look = partial(_look, order, instrument)
        sets = await worker.reader.at(order.directory, order.instrument, look)
    except FileNotFoundError:
        if order.night:
            raise NoDirectory(f"there is no directory {order.directory}") from None
        sets = {str(order.koaid): Found(0, 0)}  # it may be seen from here a little later
    except FrameFault as fault:
        raise Rejected(str(fault), code=fault.code.lower()) from None
    fresh = await worker.db.write(worker.store.deliver, order, sets, trace)
    return fresh, await delivered(worker, str(order.delivery), {})


def list_files(home: str, pulse: Pulse) -> list[str]:
    """Return the names of all files below a directory, relative to it; links are not followed."""
    found = list[str]()
    if not os.path.isdir(home):  # noqa: PTH112 (a Path for each would cost more than the look)
        raise FileNotFoundError(home)
    for where, _, names in os.walk(home):
        pulse.beat()
        inside = os.path.relpath(where, home) + "/"
        found += [inside.removeprefix("./") + name for name in names]
        if len(found) > MOST:
            raise FrameFault("TOO_MANY_FILES", f"there are over {MOST} files", "list")
    return sorted(name for name in found if name.isprintable())


def _look(order: Delivery, instrument: Any, home: str, pulse: Pulse) -> dict[str, Found]:
    """Return which sets a directory holds, how much memory they need, how old they are."""
    found, listed = dict[str, Found](), order.listed
    sets = {str(order.koaid): listed}
    if not listed:
        sets = reduced.sets_in(order, instrument, list_files(home, pulse))
    for koaid, names in sets.items():
        pulse.beat()
        seen = [os.stat(path) for n in names if os.path.isfile(path := f"{home}/{n}")]  # noqa: PTH113, PTH116
        sizes = sorted(one.st_size for one in seen)
        newest = max((one.st_mtime_ns for one in seen), default=0)
        found[koaid] = Found(sum(sizes[-AT_ONCE:]), newest)
    return found


async def delivered(
    worker: Any, delivery: str, told: dict[str, c.FrameView] | None = None
) -> Delivered:
    """Return what became of a delivery, as far as this preparer and (`told`) the ingestor know."""
    order, rows, expected = await worker.db.read(worker.store.delivered, delivery)
    told = await _told(worker, order, rows) if told is None else told
    came = [_came(row, told.get(row.frame_id)) for row in rows]
    missing = expected and sorted({*expected} - {one.koaid for one in came})
    return Delivered(
        delivery=delivery, instrument=order.instrument, level=order.level, night=order.night,
        pipeline=f"{order.pipeline} {order.pipeline_version}", came=came, expected=expected,
        missing=missing,
    )  # fmt: skip


async def _told(worker: Any, order: Delivery, rows: list[File]) -> dict[str, c.FrameView]:
    """Return by frame_id what the ingestor says of the sets; nothing while it is away."""
    found, cursor = dict[str, c.FrameView](), None
    night = time_of(rows[0].koaid or "").date() if rows else None
    asked = {"instrument": order.instrument, "level": order.level, "night": night, "limit": 1000}
    ask = partial(worker.ingestor.call, c.Page[c.FrameView], "GET", "/v1/frames", **asked)
    with suppress(DependencyDown):
        while rows:
            page = await ask(cursor=cursor)
            found |= {frame.frame_id: frame for frame in page.items}
            if (cursor := page.next) is None:
                break
    return found


def _came(row: File, told: c.FrameView | None) -> Came:
    """Return where a set is, and why it is not archived."""
    status, findings = c.Status(row.status), [c.Finding.model_validate(f) for f in row.findings]
    if told and status is c.Status.TRANSFERRED:  # from here on the ingestor knows better
        status, findings = told.status, told.findings
    last = findings[-1:] if status is not c.Status.COMPLETE else []
    reason = "".join(f"{why.code}: {why.message}".rstrip(": ") for why in last)
    about = row.model_dump(include={"frame_id", "koaid", "level"})
    return Came(**about, status=status, reason=reason)


async def prepare_set(worker: Any, row: File, job: Job) -> None:
    """Read a set's files once, check and send them; hand it over whole."""
    order = await worker.db.read(worker.store.order, row.delivery)
    row = await worker.db.write(worker.store.start, job)
    intake = Intake(worker, row, order, job)
    try:
        await intake.begin()
        await intake.rest()
    except Incomplete as why:
        fault = FrameFault("PRODUCT_MISSING", str(why.args[0]), "read")
        raise await worker.reader.look_again(job, -1, fault) from None
    prepared = await intake.finish()
    await worker.db.write(worker.store.transferred, job, prepared, None)
    worker.metrics.bytes_read.labels(row.instrument).inc(prepared.raw.size)
    worker.metrics.bytes_sent.labels(row.instrument).inc(sum(p.size for p in prepared.products))
    worker.metrics.found(row.instrument, prepared.findings)


@dataclass
class Intake:
    """One attempt at a set: its files go from the pipeline's disk into staging."""

    worker: Any
    row: File
    order: Delivery
    job: Job
    newest: int = 0  # ns
    view: View | None = None  # the headers of its first FITS file
    stored: dict[str, str] = field(default_factory=dict)  # its files, and their names there
    kept: dict[str, c.Product] = field(default_factory=dict)  # by the name there

    async def begin(self) -> None:
        """Find out which files make the set; the first FITS file tells the frame's number."""
        worker, order, row = self.worker, self.order, self.row
        choose: Callable[[float | None], list[str]] = lambda _: order.listed  # noqa: E731
        if not order.listed:
            try:
                names = await worker.reader.at(order.directory, order.instrument, list_files)
            except FileNotFoundError:
                raise Incomplete(f"there is no directory {order.directory}") from None
            rule = reduced.rule_of(order, worker.instruments[order.instrument])
            choose = partial(rule.choose, names, str(row.koaid))
        first = next((name for name in choose(None) if name.endswith(".fits")), "")
        data = await self.read(first) if first else None
        files = choose(self.view.number("FRAMENO") if self.view else None)
        stem = make.stem(str(row.koaid), row.level)
        self.stored = stored_names(files, [f"{stem}.{own}" for own in OWN])
        now, rules = c.utcnow(), worker.recipes[row.instrument].rules
        times = c.Timeline(process_end=now, transfer_start=now)
        await worker.db.write(worker.store.transferring, self.job, times, rules=rules)
        if data is not None:
            await self.send(first, data)

    async def rest(self) -> None:
        """Take the other files, some at once."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> None:
            async with gate:
                await self.send(name, await self.read(name))

        try:
            async with asyncio.TaskGroup() as group:
                for name, there in [*self.stored.items()]:
                    if there not in self.kept:
                        group.create_task(one(name))
        except BaseExceptionGroup as several:
            raise cause(several) from None

    async def read(self, name: str) -> memoryview:
        """Return a file, whole if it is FITS; raises Incomplete while it can't be read."""
        try:
            read: tuple[memoryview, int] = await self.worker.reader.bytes(self.row, f"/{name}")
            structure = None
            if name.endswith(".fits"):
                structure = await think(fits.read_structure, read[0])
        except (FileNotFoundError, PermissionError) as error:
            raise Incomplete(f"{name}: {error.strerror}") from None
        except FrameFault as fault:
            raise FrameFault(fault.code, f"{name}: {fault}", fault.step) from None
        data, mtime_ns = read
        self.newest = max(self.newest, mtime_ns)
        if structure and self.view is None:
            instrument, at = self.worker.instruments[self.row.instrument], self.row.detected
            self.view = View(list(structure.hdus), self.row.path, at, instrument)
        return data

    async def send(self, name: str, data: memoryview) -> None:
        """Send a file of the set; raises FrameFault if it is not what the manifest says."""
        found = await self.put(Content(self.stored[name], reduced.role_of(name), (data,)))
        if (said := self.order.manifest.get(name, found.sha256)) != found.sha256:
            why = f"{name}: its SHA-256 is {found.sha256}, the manifest says {said}"
            raise FrameFault("MANIFEST_MISMATCH", why, "read")

    async def put(self, content: Content) -> c.Product:
        """Send a product, and note it."""
        row, worker = self.row, self.worker
        key = f"{row.frame_id}/{row.generation}/{self.job.token}/{content.name}"
        sent = worker.objects.put(worker.config.staging_bucket, key, *content.buffers)
        _, found = await asyncio.gather(sent, think(make.digests, *content.buffers))
        told = {"name": content.name, "role": content.role, "key": key} | found._asdict()
        self.kept[content.name] = c.Product.model_validate(told)
        return self.kept[content.name]

    async def finish(self) -> c.FilePrepared:
        """Return the whole set, with its own manifest in staging."""
        row, files = self.row, [self.kept[name] for name in self.stored.values()]
        rules = self.worker.recipes[row.instrument].rules
        told = {"attempt": self.job.token} | reduced.about(self.order, files, rules)
        whole = reduced.prepared(row, told, self.newest, self.view)
        table = make.md5_product(make.stem(whole.koaid, row.level), self.kept, ("",))
        whole = whole.model_copy(update={"products": [*files, await self.put(table)]})
        manifest = await self.put(make.manifest(whole))
        timeline = whole.timeline.merged(c.Timeline(transfer_end=c.utcnow()))
        last = {"products": [*whole.products, manifest], "timeline": timeline}
        return whole.model_copy(update=last)
