"""The preparer's workshop: read once, prepare, send once, hand over (design 6, 9)."""

import asyncio
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from sqlmodel import Session

from koa_shared import fits, logs
from koa_shared.client import Ingestor, PeerRefused
from koa_shared.contracts import (
    FilePrepared,
    Finding,
    RawFile,
    Severity,
    Status,
    Timeline,
    Trigger,
    utcnow,
)
from koa_shared.db import Database
from koa_shared.disks import Disks, contained
from koa_shared.errors import FrameFault, NotYet
from koa_shared.fits import FitsError, Structure, Truncated
from koa_shared.instruments import Instrument
from koa_shared.jobs.queue import Job
from koa_shared.jobs.workshop import Failure, Lane, Workshop
from koa_shared.objects import ObjectStore

from .config import Config
from .errors import RawGone
from .metrics import PreparerMetrics
from .pipeline import frame as make
from .pipeline.frame import Content, Digests
from .pipeline.metadata import Column
from .preview import PreviewSpec
from .providers import Facts, Night
from .providers.cache import CachedProvider
from .providers.gather import gather_facts
from .rules import (
    Frame,
    Outcome,
    View,
    core_metadata,
    identify,
    identify_program,
    program_of,
    run_rules,
)
from .store import File, Store, crash_finding

__all__ = ["Worker"]

logger = structlog.get_logger("koa_preparer")
T = TypeVar("T")

CHUNK = 8 << 20
SLOWEST = 2 << 20  # bytes/s; a mount that reads slower than that counts as hung
STEP_LIMIT = 600.0  # s for everything after the read
ENRICH_FIRST, ENRICH_LATER = 30.0, 600.0  # s until late facts are asked for


@dataclass(frozen=True, slots=True)
class Raw:
    """A file as it was read, whole."""

    data: memoryview
    mtime_ns: int
    structure: Structure


@dataclass(frozen=True, slots=True)
class Made:
    """A prepared frame before its products are stored."""

    frame: Frame
    outcome: Outcome
    facts: Facts
    raw: Digests
    findings: list[Finding]
    acquired: datetime


class Worker:
    """Handlers of the preparer's lanes."""

    def __init__(  # noqa: PLR0913 (what app wires)
        self,
        config: Config,
        db: Database,
        store: Store,
        disks: Disks,
        objects: ObjectStore,
        ingestor: Ingestor,
        provider: CachedProvider,
        instruments: dict[str, Instrument],
        columns: dict[str, tuple[Column, ...]],
        metrics: PreparerMetrics,
    ) -> None:
        self.config, self.db, self.store, self.disks = config, db, store, disks
        self.objects, self.ingestor, self.provider = objects, ingestor, provider
        self.instruments, self.columns, self.metrics = instruments, columns, metrics
        self.held: frozenset[str] = frozenset()
        self.told: Callable[[], None] = lambda: None
        self._workshop: Workshop | None = None
        self._cpu = ThreadPoolExecutor(4, "cpu")

    def lanes(self, workshop: Workshop) -> None:
        """Open the preparer's lanes."""
        self._workshop = workshop
        workshop.add(
            Lane(
                "prepare", self.prepare, self._failed, 4, ("s3",),
                self.config.bytes_in_flight, self._paused, self._told,
            )
        )  # fmt: skip
        workshop.add(
            Lane("handover", self.hand_over, self._failed, 8, ("ingestor",))
        )
        workshop.add(Lane("enrich", self.enrich, self._enrich_failed, 1))

    def _told(self) -> None:
        self.told()

    def _paused(self) -> frozenset[str]:
        return self.held | self.disks.paused()

    async def _think(self, function: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._cpu, function, *args)

    # -- prepare ------------------------------------------------------------------

    async def prepare(self, job: Job) -> None:
        """Prepare one file and store its products; INVALID if the file is at fault."""
        row = await self.db.write(self.store.start, job)
        self.told()
        logs.bind(
            "preparer", job.trace, frame_id=row.frame_id, instrument=row.instrument
        )
        try:
            raw = await self._read(row, job)
            async with asyncio.timeout(STEP_LIMIT):
                await self._prepare(row, job, raw)
        except FrameFault as fault:
            waived = (row.options or {}).get("waive", ())
            finding = Finding(
                code=fault.code, severity=Severity.INVALID, step=fault.step or "read",
                message=str(fault),
            )  # fmt: skip
            logger.warning("Frame is invalid", code=fault.code, why=str(fault), waived=waived)
            await self._end(job, Status.INVALID, [finding])

    async def _end(self, job: Job, status: Status, findings: list[Finding]) -> None:
        row = await self.db.write(self.store.end, job, status, findings)
        self.told()
        self.metrics.frames.labels(row.instrument, status).inc()
        for finding in findings:
            self.metrics.findings.labels(finding.code, row.instrument).inc()

    async def _read(self, row: File, job: Job) -> Raw:
        """Read the file, whole and unchanging.

        Raises NotYet while it is missing or growing, FrameFault when it stays so.
        """
        if (row.size, row.mtime_ns) == (0, 0):
            raise FrameFault("FITS_NOT_FOUND", f"there is no file {row.path}", "read")
        rebuilt = await self._rebuilt(row)
        if rebuilt is not None:
            return rebuilt
        try:
            data, mtime_ns = await self._bytes(row)
            structure = await self._think(self._examine, row, data)
        except FileNotFoundError as error:
            await self._wait(row, job, -1, FrameFault("FITS_NOT_FOUND", str(error)))
        except (Truncated, fits.EmptyFile) as error:
            size = getattr(error, "size", 0)
            await self._wait(row, job, size, FrameFault(error.code, str(error), "read"))
        except FitsError as error:
            raise FrameFault(error.code, str(error), "structure") from error
        else:
            return Raw(data, mtime_ns, structure)
        raise AssertionError  # _wait always raises

    async def _wait(self, row: File, job: Job, size: int, fault: FrameFault) -> None:
        since = await self.db.write(self.store.seen, job, size)
        delay = make.still_growing(since, self.config.missing_seconds)
        if delay is None:
            raise fault
        raise NotYet(str(fault), delay)

    async def _bytes(self, row: File) -> tuple[memoryview, int]:
        local = self.disks.map.local(row.path)
        roots = self.disks.map.targets() or ["/s", *self.instruments[row.instrument].roots]
        limit = 30 + row.size / SLOWEST
        return await self.disks.run(
            row.path, row.instrument, lambda: read_file(contained(local, roots)), limit
        )

    def _examine(self, row: File, data: memoryview) -> Structure:
        return fits.read_structure(data, self.instruments[row.instrument].min_hdus)

    async def _rebuilt(self, row: File) -> Raw | None:
        """For a reprocess whose file has changed: the raw bytes from the archive."""
        if row.raw_sha256 is None or row.koaid is None or row.generation == 1:
            return None
        try:
            data, mtime_ns = await self._bytes(row)
            if (await self._think(make.digests, data)).sha256 == row.raw_sha256:
                return Raw(data, mtime_ns, await self._think(self._examine, row, data))
        except (OSError, FitsError, FrameFault) as error:
            logger.info("Raw file has changed, asking the archive", why=str(error))
        data = await self._from_archive(row)
        structure = await self._think(self._examine, row, data)
        return Raw(data, row.read_mtime_ns or row.mtime_ns, structure)

    async def _from_archive(self, row: File) -> memoryview:
        """Return raw_header + rest of the archived version that is these raw bytes."""
        bucket = self.config.archive_bucket
        assert row.koaid is not None
        prefix = f"{row.instrument}/{row.koaid.split('.')[1]}/lev{row.level}/{row.koaid}/"
        for key in await self.objects.names(bucket, prefix):
            if not key.endswith(".raw_header"):
                continue
            header = await self.objects.get(bucket, key)
            file = await self.objects.get(bucket, key.removesuffix("raw_header") + "fits")
            start = fits.read_structure(file).hdus[0].data_start
            data = memoryview(header + file[start:])
            if (await self._think(make.digests, data)).sha256 == row.raw_sha256:
                return data
        raise RawGone(f"neither {row.path} nor the archive holds {row.raw_sha256}")

    async def _prepare(self, row: File, job: Job, raw: Raw) -> None:
        instrument = self.instruments[row.instrument]
        options = row.options or {}
        mtime = datetime.fromtimestamp(raw.mtime_ns / 1e9, UTC)
        view = View(list(raw.structure.hdus), row.path, mtime, instrument)
        fraction = options.get("fraction", self.config.koaid_fraction)
        identity = identify(view, fraction)
        make.storable(identity.koaid)
        logs.bind(
            "preparer", job.trace, frame_id=row.frame_id, koaid=identity.koaid,
            instrument=row.instrument,
        )  # fmt: skip
        hashing = asyncio.ensure_future(self._think(make.digests, raw.data))
        checking = asyncio.ensure_future(self._checksums(row, raw))
        facts = await self._facts(row, view, identity.ut, hashing)
        frame = Frame(
            hdus=list(raw.structure.hdus), path=row.path, mtime=mtime,
            instrument=instrument, identity=identity, facts=facts, data=raw.data,
        )  # fmt: skip
        drawing = asyncio.ensure_future(
            self._think(make.preview_products, frame, identity.koaid, preview_spec(instrument))
        )
        outcome = await self._think(run_rules, frame, instrument.rules)
        trigger = Trigger.model_validate(row.trigger) if row.trigger else None
        acquired, skew = make.acquired_time(
            raw.mtime_ns, row.detected, trigger.time if trigger else None
        )
        if skew is not None:
            self.metrics.skew.labels(row.instrument).inc()
        findings = [
            *outcome.findings, *make.odd_structure(raw.structure),
            *await checking, *([skew] if skew else []),
        ]  # fmt: skip
        bad = [f for f in findings if f.severity is not Severity.WARNING]
        if bad := [f for f in bad if f.code not in options.get("waive", ())]:
            invalid = any(f.severity is Severity.INVALID for f in bad)
            await self._end(job, Status.INVALID if invalid else Status.ERROR, findings)
            return
        made = Made(frame, outcome, facts, await hashing, findings, acquired)
        await self._store(row, job, raw, made, drawing)

    async def _checksums(self, row: File, raw: Raw) -> list[Finding]:
        """Check the FITS sums; a mismatch is read once more before it is believed."""
        found = await self._think(make.checksum_findings, raw.data, raw.structure)
        if not found:
            return []
        try:
            again, _ = await self._bytes(row)
        except OSError:
            return found
        if again != raw.data:
            raise NotYet("two reads of the file differ", 1.0)
        return found

    async def _facts(
        self, row: File, view: View, ut: datetime, wait: asyncio.Future[Digests]
    ) -> Facts:
        """Return this generation's facts; they are asked for beside the hashing."""
        if row.facts is not None:
            return Facts.model_validate(row.facts)
        facts = await self._gather(row.instrument, view, ut, wait)
        forced = (row.options or {}).get("progid")
        return facts.model_copy(update={"override": forced}) if forced else facts

    async def _gather(
        self, instrument: str, view: View, ut: datetime, wait: Any
    ) -> Facts:
        now = utcnow()

        def semid_of(night: Night | None) -> str | None:
            return identify_program(view, ut, Facts(prepared_at=now, night=night)).proposal

        return await gather_facts(
            self.provider, instrument=instrument, telescope=view.telescope or 0, ut=ut,
            semid_of=semid_of, wait=wait,
        )  # fmt: skip

    async def _store(
        self, row: File, job: Job, raw: Raw, made: Made, drawing: asyncio.Future[Any]
    ) -> None:
        """Send header + rest as one object while the small products are made."""
        koaid, structure = made.frame.identity.koaid, raw.structure
        header = await self._think(
            make.archived_header, raw.data, structure, made.outcome.updates
        )
        rest = raw.data[structure.hdus[0].data_start :]
        now = utcnow()
        timeline = Timeline(acquired=made.acquired, process_end=now, transfer_start=now)
        await self.db.write(
            self.store.transferring, job, koaid=koaid,
            facts=made.facts.model_dump(mode="json"), raw_sha256=made.raw.sha256,
            read=(made.raw.size, raw.mtime_ns), timeline=timeline,
        )  # fmt: skip
        self.told()
        shelf = Shelf(self, f"{row.frame_id}/{row.generation}/{job.token}")
        contents, findings = await drawing
        small, more = await self._think(
            make.small_products, made.frame, made.outcome,
            self.columns[row.instrument], len(header) + len(rest),
        )  # fmt: skip
        fits_product = Content(f"{koaid}.fits", "fits", (header, rest))
        async with asyncio.TaskGroup() as group:
            for content in (fits_product, *contents, *small):
                group.create_task(shelf.put(content))
        await shelf.put(make.md5_product(koaid, shelf.digests()))
        findings = [*made.findings, *findings, *more]
        prepared = self._prepared(row, job, made, header, shelf, findings)
        await shelf.put(make.manifest(prepared))
        row_timeline = Timeline.model_validate(row.timeline or {}).merged(timeline)
        prepared = prepared.model_copy(
            update={
                "products": shelf.products,
                "timeline": row_timeline.merged(Timeline(transfer_end=utcnow())),
            }
        )
        await self.db.write(self._transferred, job, prepared, made.facts)
        self.metrics.bytes_read.labels(row.instrument).inc(made.raw.size)
        for finding in findings:
            self.metrics.findings.labels(finding.code, row.instrument).inc()
        if self._workshop is not None:
            self._workshop.wake("handover", "enrich")
        self.told()

    def _transferred(
        self, session: Session, job: Job, prepared: FilePrepared, facts: Facts
    ) -> None:
        self.store.transferred(session, job, prepared)
        if facts.missing:
            self.store.plan_enrichment(session, job, prepared.instrument, ENRICH_FIRST)

    def _prepared(  # noqa: PLR0913 (the fields of one message)
        self, row: File, job: Job, made: Made, header: bytes, shelf: "Shelf",
        findings: list[Finding],
    ) -> FilePrepared:  # fmt: skip
        identity = made.frame.identity
        cards = make.read_header(header).as_list()
        return FilePrepared(
            frame_id=row.frame_id, generation=row.generation, attempt=job.token,
            koaid=identity.koaid, instrument=row.instrument, level=row.level,
            origin=row.origin, path=row.path, utdatetime=identity.ut,
            products=shelf.products,
            raw=RawFile(
                size=made.raw.size, sha256=made.raw.sha256, md5=made.raw.md5
            ),
            metadata=core_metadata(made.frame, made.outcome, shelf.size_of("fits")),
            header=cards,
            program=program_of(made.frame, made.outcome), findings=findings,
            timeline=Timeline.model_validate(row.timeline or {}),
        )  # fmt: skip

    def _failed(self, session: Session, job: Job, failure: Failure) -> None:
        error = failure.error
        if isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        finding = crash_finding(error, job.queue)
        self.store.attempt_failed(
            session, job, finding, failure.attempt, failure.delay
        )

    # -- hand over ----------------------------------------------------------------

    async def hand_over(self, job: Job) -> None:
        """Tell the ingestor what lies in staging."""
        row = await self.db.read(self.store.file, job.key.rsplit(":", 1)[0])
        prepared = FilePrepared.model_validate(row.prepared)
        now = utcnow()
        timeline = prepared.timeline.merged(Timeline(notified=now))
        try:
            await self.ingestor.hand_over(
                prepared.model_copy(update={"timeline": timeline})
            )
        except PeerRefused as refusal:
            finding = Finding(
                code="HANDOVER_REFUSED", severity=Severity.ERROR, step="handover",
                message=f"{refusal.code}: {refusal}",
            )  # fmt: skip
            await self._end(job, Status.ERROR, [finding])
            return
        await self.db.write(self.store.handed_over, job, now)
        logger.info("Frame handed over", frame_id=row.frame_id, koaid=row.koaid)

    # -- enrich -------------------------------------------------------------------

    async def enrich(self, job: Job) -> None:
        """Ask again for facts that were not there in time; touch no pixel."""
        row = await self.db.read(self.store.file, job.key.rsplit(":", 1)[0])
        before = Facts.model_validate(row.facts)
        prepared = FilePrepared.model_validate(row.prepared)
        cards = [(str(k), v, str(c)) for k, v, c in prepared.header]
        view = header_view(cards, row, self.instruments[row.instrument])
        now = await self._gather(row.instrument, view, prepared.utdatetime, 10.0)
        if not set(before.missing) - set(now.missing):
            raise NotYet(f"still missing: {', '.join(now.missing)}", ENRICH_LATER)
        frame = Frame(
            hdus=view.hdus, path=row.path, mtime=view.mtime, instrument=view.instrument,
            identity=identify(view, self.config.koaid_fraction), facts=now,
            data=memoryview(b""),
        )  # fmt: skip
        rules = [r for r in frame.instrument.rules if r.rule in ("prog_info", "program", "propint", "weather")]
        outcome = await self._think(run_rules, frame, rules)
        weather = {k: v for k, (v, _) in outcome.keywords.items() if k.startswith(("WX", "GUID"))}
        await self.db.write(
            self.store.enriched, job, now.model_dump(mode="json"),
            program_of(frame, outcome), weather or None,
        )  # fmt: skip
        self.told()

    def _enrich_failed(self, session: Session, job: Job, failure: Failure) -> None:
        logger.warning("Frame not enriched", key=job.key, why=str(failure.error))


class Shelf:
    """One attempt's place in staging, and what lies there already."""

    def __init__(self, worker: Worker, prefix: str) -> None:
        self._worker, self._prefix = worker, prefix
        self._stored: dict[str, tuple[Content, Digests]] = {}

    async def put(self, content: Content) -> None:
        """Store one product and take its digests, side by side."""
        worker, key = self._worker, f"{self._prefix}/{content.name}"
        _, found = await asyncio.gather(
            worker.objects.put(worker.config.staging_bucket, key, *content.buffers),
            worker._think(make.digests, *content.buffers),  # noqa: SLF001
        )
        self._stored[content.name] = (content, found)

    def digests(self) -> dict[str, Digests]:
        """Return the digests by name, sorted."""
        return {name: found for name, (_, found) in sorted(self._stored.items())}

    def size_of(self, role: str) -> int:
        """Return the bytes of the product with this role."""
        return sum(d.size for c, d in self._stored.values() if c.role == role)

    @property
    def products(self) -> list[Any]:
        """What lies there, as the contract tells it."""
        return [
            make.product(content, f"{self._prefix}/{name}", found)
            for name, (content, found) in sorted(self._stored.items())
        ]


def read_file(path: str) -> tuple[memoryview, int]:
    """Return a regular file's bytes and mtime in ns; raises NotYet if it changes."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise FrameFault("FITS_FILE_TYPE_ERROR", "this is not a regular file", "read")
        data = bytearray(before.st_size)
        view, at = memoryview(data), 0
        while at < len(view) and (n := os.readv(handle, [view[at : at + CHUNK]])):
            at += n
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if at != len(view) or (before.st_size, before.st_mtime_ns) != (
        after.st_size,
        after.st_mtime_ns,
    ):
        raise NotYet("the file changed while it was read", 0.05)
    return view.toreadonly(), after.st_mtime_ns


def preview_spec(instrument: Instrument) -> PreviewSpec:
    """Return the instrument's table `[preview]`."""
    return PreviewSpec.model_validate(instrument.preview)


def header_view(
    cards: list[tuple[str, Any, str]], row: File, instrument: Instrument
) -> View:
    """Return a view of a stored header, without its file."""
    raw = fits.edit_header(b"END".ljust(80), [c for c in cards if c[0]])
    hdu = fits.Hdu(0, "", "PRIMARY", make.read_header(raw), 0, len(raw), 0, 8, ())
    mtime = datetime.fromtimestamp((row.read_mtime_ns or row.mtime_ns) / 1e9, UTC)
    return View([hdu], row.path, mtime, instrument)
