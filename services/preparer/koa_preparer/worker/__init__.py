"""The preparer's workshop: read once, prepare, send once, hand over (design 6, 9)."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from sqlmodel import Session

from koa_shared import contracts as c
from koa_shared import fits, logs
from koa_shared.client import Ingestor, PeerRefused
from koa_shared.errors import DependencyDown, FrameFault, NotYet
from koa_shared.ids import safe_name
from koa_shared.jobs.queue import Job
from koa_shared.jobs.workshop import Failure, Lane, Workshop

from .. import rules
from ..config import Config
from ..metrics import PreparerMetrics
from ..pipeline import frame as make
from ..pipeline.frame import Content, Digests
from ..pipeline.instruments import recipes
from ..pipeline.metadata import Column
from ..pipeline.tables import warning
from ..providers import Facts, Night
from ..providers.gather import CachedProvider, gather_facts
from ..store import File, Store
from .campaigns import campaign, rehearse
from .products import deliver, delivered, prepare_set
from .reading import Raw, Reader, think

logger = structlog.get_logger("koa_preparer")

STEP_LIMIT = 600.0  # s for everything after the read
ENRICH_FIRST, ENRICH_LATER = 30.0, 600.0  # s until late facts are asked for
LATE_RULES = ("program", "propint", "weather")  # the rules whose facts may come late


@dataclass(frozen=True, slots=True)
class Made:
    """A prepared frame before its products are stored."""

    frame: rules.Frame
    outcome: rules.Outcome
    raw: Digests
    findings: list[c.Finding]
    timeline: c.Timeline
    refusal: c.Status | None  # what its findings end it as


@dataclass
class Worker:
    """Handlers of the preparer's lanes."""

    config: Config
    store: Store
    reader: Reader
    ingestor: Ingestor
    provider: CachedProvider
    metrics: PreparerMetrics
    workshop: Workshop
    columns: dict[str, tuple[Column, ...]]

    def __post_init__(self) -> None:
        self.db = self.workshop.db
        self.objects, self.instruments = self.reader.objects, self.reader.instruments
        self.shelf = partial(Shelf, self)
        self.deliver, self.delivered = partial(deliver, self), partial(delivered, self)
        self.recipes = recipes(self.instruments, self.columns)
        slots, budget = self.config.workers, self.config.bytes_in_flight
        how: Any = {"slots": slots, "spare": (slots + 1) // 2, "needs": ("s3",), "budget": budget}
        self.workshop.add(
            Lane("prepare", self.prepare, self._failed, paused=self._paused, **how),
            Lane("handover", self.hand_over, self._failed, 8, ("ingestor",), spare=6),
            Lane("enrich", self.enrich, slots=1),
            Lane("campaign", partial(campaign, self), slots=1, needs=("ingestor",)),
        )

    def _paused(self, session: Session) -> frozenset[str]:
        return frozenset(self.store.audit.held(session)) | self.reader.disks.paused()

    async def prepare(self, job: Job) -> None:
        """Prepare one file and store its products; INVALID if the file is at fault."""
        row = await self.db.read(self.store.file_of, job)
        logs.bind("preparer", logs.traceparent(), frame_id=row.frame_id, instrument=row.instrument)
        if job.payload:
            return await rehearse(self, row, job)
        data: memoryview | None = None
        try:
            if row.level:
                async with asyncio.timeout(STEP_LIMIT):
                    return await prepare_set(self, row, job)
            # The start is put on record while the file is read.
            reading, starting = self.reader.read(row, job), self.db.write(self.store.start, job)
            raw, row = await asyncio.gather(reading, starting)
            data = raw.data
            async with asyncio.timeout(STEP_LIMIT):
                await self._prepare(row, job, raw)
        except TimeoutError as error:  # a store that trickles is no fault of the frame
            raise DependencyDown("s3", f"not sent in {STEP_LIMIT:g} s") from error
        except FrameFault as fault:
            found = {"code": fault.code, "step": fault.step, "message": str(fault)}
            finding = c.Finding(**found, severity=c.Severity.INVALID)
            data = data if fault.data is None else fault.data
            kept = await self._quarantine(row, data, [finding]) if data is not None else []
            await self._end(job, c.Status.INVALID, [*kept, finding])

    async def _quarantine(
        self, row: File, data: memoryview, findings: list[c.Finding]
    ) -> list[c.Finding]:
        """Keep what an INVALID frame's file held, and why it is; return where."""
        where = f"quarantine/{row.instrument}/{row.frame_id}/{row.generation}/"
        key, bucket = where + safe_name(row.path.rpartition("/")[2]), self.config.staging_bucket
        why = make.reasons(row, await think(make.digests, data), findings)
        await self.objects.put(bucket, key, data)
        await self.objects.put(bucket, f"{key}.reasons.json", why)
        return [warning("QUARANTINED", "quarantine", f"the file lies at {bucket}/{where}")]

    async def _end(self, job: Job, status: c.Status, findings: list[c.Finding]) -> None:
        row = await self.db.write(self.store.end, job, status, findings)
        self.metrics.frames.labels(row.instrument, status, row.origin).inc()
        self.metrics.found(row.instrument, findings)
        why = findings[-1]
        logger.warning("Frame ended", status=status, code=why.code, why=why.message)

    async def _prepare(self, row: File, job: Job, raw: Raw) -> None:
        made = await self.decide(row, raw)
        if any(finding.code == "CLOCK_SKEW" for finding in made.findings):
            self.metrics.skew.labels(row.instrument).inc()
        if made.refusal is None:
            await self._store(row, job, raw, made)
            return
        findings = made.findings
        if made.refusal is c.Status.INVALID:
            findings = [*await self._quarantine(row, raw.data, findings), *findings]
        await self._end(job, made.refusal, findings)

    async def decide(self, row: File, raw: Raw, at: datetime | None = None) -> Made:
        """Decide all about a frame; `at` is when it is said to be prepared, if not now."""
        instrument, options = self.instruments[row.instrument], row.options or {}
        mtime = datetime.fromtimestamp(raw.mtime_ns / 1e9, UTC)
        view = rules.View(list(raw.structure.hdus), row.path, mtime, instrument)
        identity = rules.identify(view, options.get("fraction", self.config.koaid_fraction))
        koaid = make.storable(identity.koaid)
        logs.bind("preparer", logs.traceparent(), frame_id=row.frame_id, koaid=koaid)
        async with asyncio.TaskGroup() as group:
            hashing = group.create_task(think(make.digests, raw.data))
            checking = group.create_task(self._checksums(row, raw))
            if row.facts is None:  # this generation's, asked for beside the hashing
                facts = await self._gather(row, view, identity.ut, hashing)
            else:
                facts = Facts.model_validate(row.facts)
            facts = facts.model_copy(update={"prepared_at": at}) if at else facts
            frame = rules.Frame(
                hdus=view.hdus, path=row.path, mtime=mtime, instrument=instrument,
                values=view.values, identity=identity, facts=facts, data=raw.data,
            )  # fmt: skip
            outcome = await think(rules.run_rules, frame, instrument.rules)
        trigger = c.Trigger.model_validate(row.trigger) if row.trigger else None
        stamp = trigger.time if trigger else None
        acquired, skew = make.acquired_time(raw.mtime_ns, row.detected, stamp)
        findings = [*outcome.findings, *make.odd_structure(raw.structure), *checking.result()]
        findings += skew
        waived = options.get("waive") or {}
        worst = {f.severity for f in findings if f.code not in waived} - {c.Severity.WARNING}
        findings += make.waivers(findings, waived)
        refusal = None
        if worst:
            refusal = c.Status.INVALID if c.Severity.INVALID in worst else c.Status.ERROR
            findings.sort(key=lambda f: (f.severity == refusal.lower(), f.severity != "warning"))
        timeline = c.Timeline(acquired=acquired)
        return Made(frame, outcome, hashing.result(), findings, timeline, refusal)

    async def _checksums(self, row: File, raw: Raw) -> list[c.Finding]:
        """Check the FITS sums; a mismatch is read once more before it is believed."""
        found = await think(make.checksum_findings, raw.data, raw.structure)
        try:
            again = row.generation > 1 and row.raw_sha256  # which were compared already
            if found and not again and (await self.reader.bytes(row))[0] != raw.data:
                raise NotYet("two reads of the file differ", 1.0)
        except (OSError, FrameFault):
            pass  # it is gone meanwhile: what was read is what there is
        return found

    async def _gather(
        self, row: File, view: rules.View, ut: datetime, wait: Awaitable[Any] | float
    ) -> Facts:
        override, now = self.provider.override(row.instrument, ut), c.utcnow()
        override = (row.options or {}).get("progid") or override  # an operator's word

        def semid_of(night: Night | None) -> str | None:
            known = Facts(prepared_at=now, night=night, override=override)
            return rules.identify_program(view, ut, known).proposal

        facts = await gather_facts(
            self.provider, instrument=row.instrument, telescope=view.telescope or 1, ut=ut,
            schedule=rules.schedule_of(view), semid_of=semid_of, wait=wait,
        )  # fmt: skip
        return facts.model_copy(update={"override": override})

    async def _store(self, row: File, job: Job, raw: Raw, made: Made) -> None:
        """Send the products, while it is put on record that they are on their way."""
        frame, now = made.frame, c.utcnow()
        times = c.Timeline.model_validate(row.timeline or {})
        times = times.merged(made.timeline).merged(c.Timeline(process_end=now, transfer_start=now))
        fixed = {
            "koaid": frame.identity.koaid, "facts": frame.facts.model_dump(mode="json"),
            "raw_sha256": made.raw.sha256, "read_size": made.raw.size,
            "read_mtime_ns": raw.mtime_ns, "rules": self.recipes[row.instrument].rules,
        }  # fmt: skip
        async with asyncio.TaskGroup() as group:
            group.create_task(self.db.write(self.store.transferring, job, times, **fixed))
            shelf = self.shelf(group, f"{row.frame_id}/{row.generation}/{job.token}")
            prepared = await self.fill(shelf, row, job, made, times)
        times = times.merged(c.Timeline(transfer_end=c.utcnow()))
        last = {"products": shelf.products, "timeline": times}
        enrich_in = ENRICH_FIRST if frame.facts.missing else None
        prepared = prepared.model_copy(update=last)
        await self.db.write(self.store.transferred, job, prepared, enrich_in)
        self.metrics.bytes_read.labels(row.instrument).inc(made.raw.size)
        self.metrics.bytes_sent.labels(row.instrument).inc(sum(p.size for p in shelf.products))
        self.metrics.found(row.instrument, prepared.findings)

    async def fill(
        self, shelf: "Shelf", row: File, job: Job, made: Made, times: c.Timeline
    ) -> c.FilePrepared:
        """Put header + rest as one object on the shelf, and the small products beside it."""
        frame, koaid = made.frame, made.frame.identity.koaid
        header = await think(fits.edit_header, frame.data, frame.hdus[0], made.outcome.updates)
        rest = memoryview(frame.data)[frame.hdus[0].data_start :]
        size = len(header) + len(rest)
        async with asyncio.TaskGroup() as group:
            main = group.create_task(shelf.put(Content(f"{koaid}.fits", "fits", (header, rest))))
            drawing = group.create_task(think(make.preview_products, frame))
            columns = self.columns[row.instrument]
            small, remarks = await think(make.small_products, frame, made.outcome, columns, size)
            pictures, odd = await drawing
            await asyncio.gather(main, *map(shelf.put, (*small, *pictures)))
        await shelf.put(make.md5_product(koaid, shelf.digests))
        prepared = c.FilePrepared(
            frame_id=row.frame_id, generation=row.generation, attempt=job.token,
            koaid=koaid, instrument=row.instrument, level=row.level, origin=row.origin,
            path=row.path, utdatetime=frame.identity.ut, products=shelf.products,
            raw=c.RawFile(**made.raw._asdict()), header=make.read_header(header).as_list(),
            metadata=rules.core_metadata(frame, made.outcome, size), timeline=times,
            program=rules.program_of(frame, made.outcome), recipe=self.recipes[row.instrument],
            findings=[*made.findings, *remarks, *odd],
        )  # fmt: skip
        await shelf.put(make.manifest(prepared))
        return prepared

    def _failed(self, session: Session, job: Job, failure: Failure) -> None:
        if not job.payload:
            self.store.note(session, job, failure.finding(job.queue), failure)
        elif failure.delay is None:
            self.store.tried(session, job, None, failure.fingerprint)

    async def hand_over(self, job: Job) -> None:
        """Tell the ingestor what lies in staging."""
        row = await self.db.read(self.store.file_of, job)
        prepared, now = c.FilePrepared.model_validate(row.prepared), c.utcnow()
        timeline = prepared.timeline.merged(c.Timeline(notified=now))
        told = prepared.model_copy(update={"timeline": timeline})
        try:
            await self.ingestor.call(c.Accepted, "POST", "/v1/frames", body=told)
        except PeerRefused as refusal:
            finding = c.Finding(
                code="HANDOVER_REFUSED", severity=c.Severity.ERROR, step="handover",
                message=f"{refusal.code}: {refusal}",
            )  # fmt: skip
            await self._end(job, c.Status.ERROR, [finding])
            return
        await self.db.write(self.store.handed_over, job, now)
        logger.info("Frame handed over", frame_id=row.frame_id, koaid=row.koaid)

    async def enrich(self, job: Job) -> None:
        """Ask again for facts that were not there in time; touch no pixel."""
        row = await self.db.read(self.store.file_of, job)
        if not (row.timeline or {}).get("notified"):  # what is handed over would undo it
            raise NotYet("it is not handed over yet", ENRICH_FIRST)
        before = Facts.model_validate(row.facts)
        prepared = c.FilePrepared.model_validate(row.prepared)
        instrument = self.instruments[row.instrument]
        mtime = datetime.fromtimestamp((row.read_mtime_ns or 0) / 1e9, UTC)
        tables = sum(p.role == "table" for p in prepared.products)  # they tell a secret target
        hdus = [make.stored_header(prepared.header)]
        view = rules.View(hdus, row.path, mtime, instrument, {"tables": tables})
        now = await self._gather(row, view, prepared.utdatetime, 10.0)
        if not set(before.missing) - set(now.missing):
            raise NotYet(f"still missing: {', '.join(now.missing)}", ENRICH_LATER)
        frame = rules.Frame(
            hdus=view.hdus, path=row.path, mtime=mtime, instrument=instrument, facts=now,
            identity=rules.identify(view, self.config.koaid_fraction), data=memoryview(b""),
            values=view.values,
        )  # fmt: skip
        late = [call for call in instrument.rules if call.rule in LATE_RULES]
        outcome = await think(rules.run_rules, frame, late)
        weather = {k: v for k, (v, _) in outcome.keywords.items() if k.startswith(("WX", "GUID"))}
        told = {"program": rules.program_of(frame, outcome), "weather": weather or None}
        facts = now.model_dump(mode="json")
        later = ENRICH_LATER if now.missing else None
        await self.db.write(self.store.enriched, job, facts, later, **told)


class Shelf:
    """One attempt's place in staging, and what lies there or is on its way."""

    def __init__(
        self, worker: Worker, group: asyncio.TaskGroup, prefix: str, *, sends: bool = True
    ) -> None:
        self._sends, self._objects = sends, worker.objects
        self._bucket = worker.config.staging_bucket
        self._group, self._prefix = group, prefix
        self._kept: dict[str, c.Product | None] = {}  # in the order of their making
        self.digests: dict[str, Digests] = {}

    async def put(self, content: Content) -> None:
        """Begin to send a product, in the group; return once its digests are known."""
        name, key = content.name, f"{self._prefix}/{content.name}"
        self._kept[name] = None
        if self._sends:
            self._group.create_task(self._objects.put(self._bucket, key, *content.buffers))
        self.digests[name] = found = await think(make.digests, *content.buffers)
        self._kept[name] = c.Product(name=name, role=content.role, key=key, **found._asdict())

    @property
    def products(self) -> list[c.Product]:
        """The products as the contract tells them; the first preview is the instrument's first."""
        return [product for product in self._kept.values() if product]
