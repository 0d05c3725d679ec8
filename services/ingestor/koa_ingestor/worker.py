"""The ingestor's workshop: claim, copy, read back, commit, publish (design 6)."""

import asyncio
import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlmodel import Session

from koa_shared import logs
from koa_shared.contracts import FilePrepared, Finding, Product, Severity, Status, Timeline, utcnow
from koa_shared.errors import Conflict, DependencyDown, NotYet
from koa_shared.jobs.queue import Job
from koa_shared.jobs.workshop import Failure, Lane, Workshop
from koa_shared.objects import ObjectMissing, ObjectStore

from .config import Config
from .errors import VerificationFailed
from .metrics import IngestorMetrics
from .pipeline import Claimed, Verdict, archive_key
from .store import Store
from .store.retention import Policies
from .store.schema import Frame

logger = structlog.get_logger("koa_ingestor")

PARALLEL = 3  # copies of one frame at a time: the large one and the small ones beside it
STEP_LIMIT = 300.0  # s; copying and reading back the largest frame of all
RAW_WAIT = 60.0  # s at most between two looks whether a raw frame is archived
CLAIM_WAIT = 0.2  # s until another frame of the same KOAID is looked at again
AGAIN = (1.0, 5.0, 0.0)  # s; an object that can't be read, in a store that answers
SCRUB_IDLE = 15.0  # s between looks for what is due
PIECE = 4 << 20  # bytes read between two looks whether live frames wait
REQUEST = 256 << 10  # bytes that a request counts for at least: small objects cost, too


@dataclass
class Worker:
    """Handlers of the ingestor's lanes."""

    config: Config
    store: Store
    objects: ObjectStore
    metrics: IngestorMetrics
    workshop: Workshop

    def __post_init__(self) -> None:
        self.db, needs = self.workshop.db, ("s3",)
        workers = self.config.workers
        self.workshop.add(
            Lane("ingest", self.ingest, self._failed, workers, needs, spare=(workers + 1) // 2),
            Lane("sweep", self.sweep, slots=1, needs=needs),
            Lane("scrub", self.scrub, needs=needs),
        )
        self._scrub_at = 0.0

    async def ingest(self, job: Job) -> None:
        """Take one prepared frame into the archive, or say why not."""
        prepared, verdict, held = await self.db.write(self.store.begin, job)
        names = {"koaid": prepared.koaid, "instrument": prepared.instrument}
        logs.bind("ingestor", logs.traceparent(), frame_id=prepared.frame_id, **names)
        if verdict is Verdict.ORPHAN:
            return await self._await_raw(job, prepared)
        if verdict is Verdict.WAIT or held is None:
            raise NotYet("another frame of this KOAID is being ingested", CLAIM_WAIT)
        if verdict in (Verdict.DUPLICATE, Verdict.CONFLICT):
            return await self._turn_away(job, prepared, verdict, held)
        try:
            async with asyncio.timeout(STEP_LIMIT):
                await self._promote(job, prepared, held.version)
        except TimeoutError as error:  # a store that trickles is no fault of the frame
            raise DependencyDown("s3", f"not copied in {STEP_LIMIT:g} s") from error

    async def _promote(self, job: Job, prepared: FilePrepared, version: int) -> None:
        start, gate = utcnow(), asyncio.Semaphore(PARALLEL)
        config, bucket = self.config, self.config.archive_bucket
        where = (prepared.instrument, prepared.level, prepared.koaid, version)

        async def one(product: Product) -> None:
            async with gate:
                self.workshop.insist(job)  # else it may be committed: nobody writes there again
                # The *archived* object is read back against its digest.
                key = archive_key(where, product.name)
                await self.objects.copy((config.staging_bucket, product.key), (bucket, key))
                await self._check(key, product)

        async with asyncio.TaskGroup() as group:
            for product in sorted(prepared.products, key=lambda product: -product.size):
                group.create_task(one(product))
        timeline = Timeline(copy_start=start, copy_end=utcnow())

        def commit(session: Session) -> Frame:
            frame = self.store.commit(session, job, prepared, version, timeline)
            self.store.plan_sweep(session, prepared, self.config.staging_keep_seconds)
            return frame

        frame = await self.db.write(commit)
        timeline = Timeline.model_validate(frame.timeline)
        self._count(frame, prepared.findings)
        kind = "science" if prepared.is_science else "calibration"
        if prepared.level == 0:
            self.metrics.types.labels(frame.instrument, kind).inc()
        if prepared.generation == 1:
            trace = logs.traceparent()
            self.metrics.available(frame.instrument, frame.level, frame.origin, timeline, trace)
            self.workshop.traces.frame(trace, timeline.acquired, timeline.available)
        logger.info("Frame available", latency=timeline.latency_seconds, path=frame.path)

    async def _check(self, key: str, product: Product) -> None:
        found = await self.objects.digest(self.config.archive_bucket, key)
        if found != (product.size, product.sha256):
            declared = (product.size, product.sha256)
            raise VerificationFailed(f"{key}: declared {declared}, archived {tuple(found)}")

    def _count(self, frame: Frame, findings: list[Finding]) -> None:
        self.metrics.frames.labels(frame.instrument, frame.status, frame.origin).inc()
        self.metrics.found(frame.instrument, findings)

    async def _await_raw(self, job: Job, prepared: FilePrepared) -> None:
        """Look again later whether a reduced frame's raw one is archived, or ask an operator."""
        waited = (utcnow() - (prepared.timeline.notified or utcnow())).total_seconds()
        code, step, koaid = "RAW_NOT_ARCHIVED", "claim", prepared.koaid
        if waited > self.config.raw_seconds:
            text = f"its raw frame {koaid} is still not archived: retry this one once it is"
            finding = Finding(code=code, step=step, message=text, severity=Severity.ERROR)
            frame = await self.db.write(self.store.end, job, finding, Status.ERROR)
            return self._count(frame, [finding])
        text = f"it waits until its raw frame {koaid} is archived"
        finding = Finding(code=code, step=step, message=text, severity=Severity.WARNING)
        await self.db.write(self.store.note, job, finding, None)
        raise NotYet(text, min(max(waited / 2, 0.2), RAW_WAIT))

    async def _turn_away(
        self, job: Job, prepared: FilePrepared, verdict: Verdict, held: Claimed
    ) -> None:
        status, finding = Status.INVALID, Finding(
            code="DUPLICATE_KOAID", severity=Severity.INVALID, step="claim",
            message=f"{prepared.koaid} holds other raw bytes already, from frame "
            f"{held.frame_id}; accept this frame as a version or as padded",
        )  # fmt: skip
        if verdict is Verdict.DUPLICATE:
            status, finding = Status.DUPLICATE, Finding(
                code="DUPLICATE", severity=Severity.WARNING, step="claim",
                message=f"the same {'files' if prepared.level else 'raw bytes'} are archived as "
                f"{prepared.koaid}, version {held.version}, from frame {held.frame_id}",
            )  # fmt: skip

        def settle(session: Session) -> Frame:
            frame = self.store.end(session, job, finding, status)
            if status is Status.DUPLICATE:
                self.store.plan_sweep(session, prepared, self.config.staging_keep_seconds)
            return frame

        frame = await self.db.write(settle)
        self._count(frame, [finding])
        logger.warning("Frame not archived", status=status, why=finding.message)

    def _failed(self, session: Session, job: Job, failure: Failure) -> None:
        status = Status.ERROR if failure.delay is None else None
        self.store.note(session, job, failure.finding("promote"), status, failure)

    async def sweep(self, job: Job) -> None:
        """Delete what retention says: a frame's staging, quarantine, a superseded version."""
        told, staging, archive = job.payload, self.config.staging_bucket, self.config.archive_bucket
        bucket, upto = archive if told.get("policy") == "versions" else staging, told.get("upto")
        found = await self.objects.names(bucket, told["prefix"])
        keys = [key for key in found if upto is None or int(key.split("/")[1]) <= upto]
        doomed = [(bucket, keys)]
        if koaid := told.get("koaid"):  # a canary leaves the archive, too
            home = archive_key((job.grp, 0, koaid, 1), "").removesuffix("v1/")
            doomed.append((archive, list(await self.objects.names(archive, home))))
        self.workshop.insist(job)
        for where, names in doomed:
            await self.objects.remove(where, names)
        await self.db.write(self.store.swept, job, sum(len(names) for _, names in doomed))
        self.metrics.deleted.labels(told.get("policy", "staging")).inc(len(keys))

    @property
    def policies(self) -> Policies:
        """Return how long what is kept."""
        config = self.config
        return Policies(config.quarantine_days, config.version_days, config.versions_keep)

    async def retain(self) -> None:
        """Delete once an hour what the policies say."""
        while True:
            # It looks first: who writes holds up every frame.
            found = await self.db.read(self.store.retention, self.policies)
            if any("due_seconds" not in one for one in found):
                deed = ("retention", "by its policy")
                await self.db.write(self.store.retain, self.policies, deed)
            await asyncio.sleep(3600)

    async def scrub(self, job: Job) -> None:
        """Read archived objects again: some of what is due, or a KOAID that is named."""
        every = await self.db.read(self.store.to_scrub, job.key, self.config.scrub_days)
        for frame, held in every:
            where, found = (frame.instrument, frame.level, held.koaid, held.version), {}
            for product in map(Product.model_validate, held.products):
                if what := await self._damage(archive_key(where, product.name), product):
                    found[product.name] = what
            if await self.db.write(self.store.scrubbed, held, found):
                tell = logger.error if found else logger.info
                tell("Marks of archived objects changed", version=where, damaged=found)
        delay = 0.0 if every else SCRUB_IDLE
        await self.db.write(self.store.keep_scrubbing, job, delay)

    async def _damage(self, key: str, product: Product) -> str:
        """Return what is wrong with an archived object, "" if nothing is."""
        bucket, what = self.config.archive_bucket, ""
        for wait in AGAIN:
            try:
                return await self._reread(bucket, key, product)
            except ObjectMissing:
                return "it is missing in the store"
            except DependencyDown as error:
                await self.objects.names(bucket, key)  # raises if the whole store is down
                what = f"it can't be read: {error}"
            await asyncio.sleep(wait)
        return what

    async def _reread(self, bucket: str, key: str, product: Product) -> str:
        await self._scrub_turn(0)
        size, sha = await self.objects.size(bucket, key), hashlib.sha256()
        if size != product.size:
            return f"it has {size} bytes instead of {product.size}"
        for at in range(0, size, PIECE):
            length = min(PIECE, size - at)
            await self._scrub_turn(length)
            async for chunk in self.objects.stream(bucket, key, at, length):
                await asyncio.to_thread(sha.update, chunk)
            self.metrics.scrubbed_bytes.inc(length)
        self.metrics.scrubbed.inc()
        digest = sha.hexdigest()
        return "" if digest == product.sha256 else f"its SHA-256 is {digest}, not {product.sha256}"

    async def _scrub_turn(self, size: int) -> None:
        """Wait until the rate allows `size` more bytes, and no frame is being archived."""
        now, rate = time.monotonic(), self.config.scrub_mbps * 1e6
        start = max(now, self._scrub_at)
        self._scrub_at = start + max(size, REQUEST) / rate
        await asyncio.sleep(start - now)
        while await self.db.read(self.store.is_busy):  # noqa: ASYNC110 (other replicas, too)
            await asyncio.sleep(0.2)

    async def rebuild(self) -> None:
        """Enter what the archive holds and the catalogue lacks, once it is read back."""
        bucket = self.config.archive_bucket
        instruments = await self.objects.folders(bucket)
        for night in [n for name in instruments for n in await self.objects.folders(bucket, name)]:
            found = await self.objects.names(bucket, night)
            # Raw frames come first: what is reduced is as closed as they are.
            for key in sorted(key for key in found if key.endswith(".manifest.json")):
                try:
                    await self._restore(key, found[key])
                except (ObjectMissing, VerificationFailed, Conflict, ValueError) as error:
                    logger.error("Not restored", key=key, why=str(error))

    async def _restore(self, key: str, at: datetime) -> None:
        home, _, name = key.rpartition("/")
        level, koaid, number = home.split("/")[-3:]
        version = int(number.removeprefix("v"))
        if await self.db.read(self.store.has, koaid, int(level.removeprefix("lev")), version):
            return
        body = await self.objects.get(self.config.archive_bucket, key)
        prepared = FilePrepared.model_validate_json(body)
        for product in prepared.products:
            await self._check(f"{home}/{product.name}", product)
        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
        manifest = Product(
            name=name, role="manifest", key=f"{prepared.products[0].key.rpartition('/')[0]}/{name}",
            size=len(body), sha256=hashlib.sha256(body).hexdigest(), md5=md5,
        )  # fmt: skip
        whole = prepared.model_copy(update={"products": [*prepared.products, manifest]})
        await self.db.write(self.store.restore, whole, version, at)
        logger.info("Restored", koaid=koaid, version=version)

    async def measure(self) -> None:
        """Tell for ever what the catalogue says now."""
        while True:
            with suppress(DependencyDown):
                await self.look()
            await asyncio.sleep(5)

    async def look(self) -> None:
        """Tell what is on its way, what waits for an operator, and the state of the scrub."""
        waiting = await self.db.read(self.store.unfinished)
        parked = await self.db.read(self.store.parked)
        self.metrics.measured(waiting, [frame.instrument for frame in parked])
        oldest, marks = await self.db.read(self.store.marks)
        self.metrics.scrubbing(oldest, [mark.instrument for mark in marks])

    async def trim(self) -> None:
        """Forget old stream entries, and open what is released, once a minute."""
        while True:
            before = utcnow() - timedelta(days=self.config.stream_keep_days)
            await self.db.write(self.store.trim_stream, before)
            more = await self.db.write(self.store.release)
            await asyncio.sleep(0.1 if more else 60)
