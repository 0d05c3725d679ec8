"""The ingestor's workshop: claim, copy, read back, commit, publish (design 6)."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog
from sqlmodel import Session

from koa_shared import logs
from koa_shared.contracts import (
    FilePrepared,
    Finding,
    Origin,
    Product,
    Severity,
    Status,
    Timeline,
    utcnow,
)
from koa_shared.db import Database
from koa_shared.errors import NotYet
from koa_shared.jobs.queue import Job
from koa_shared.jobs.workshop import Failure, Lane, Workshop
from koa_shared.objects import ObjectMissing, ObjectStore

from .config import Config
from .errors import VerificationFailed
from .metrics import IngestorMetrics
from .pipeline import Claimed, Verdict, archive_key, promotion_order
from .schema import Frame
from .store import Store, error_finding

__all__ = ["Worker"]

logger = structlog.get_logger("koa_ingestor")

# Copies of one frame at a time: the large one and the small ones beside it.
PARALLEL = 6
STEP_LIMIT = 300.0  # s; copying and reading back the largest frame of all
CLAIM_WAIT = 0.2  # s until another frame of the same KOAID is looked at again


class Worker:
    """Handlers of the ingestor's lanes."""

    def __init__(
        self,
        config: Config,
        db: Database,
        store: Store,
        objects: ObjectStore,
        metrics: IngestorMetrics,
        published: Callable[[], None],
    ) -> None:
        self.config, self.db, self.store = config, db, store
        self.objects, self.metrics, self.published = objects, metrics, published
        self._workshop: Workshop | None = None

    def lanes(self, workshop: Workshop) -> None:
        """Open the ingestor's lanes."""
        self._workshop = workshop
        workshop.add(
            Lane(
                "ingest", self.ingest, self._failed, 4, ("s3",), settled=self.published
            )
        )  # fmt: skip
        workshop.add(Lane("sweep", self.sweep, self._sweep_failed, 1, ("s3",)))

    async def ingest(self, job: Job) -> None:
        """Take one prepared frame into the archive, or say why not."""
        prepared, verdict, held = await self.db.write(self.store.begin, job)
        logs.bind(
            "ingestor", job.trace, frame_id=prepared.frame_id, koaid=prepared.koaid,
            instrument=prepared.instrument,
        )  # fmt: skip
        match verdict, held:
            case Verdict.WAIT, _:
                raise NotYet("another frame of this KOAID is being ingested", CLAIM_WAIT)
            case (Verdict.DUPLICATE | Verdict.CONFLICT), Claimed():
                await self._turn_away(job, prepared, verdict, held)
            case _, Claimed():
                self.published()
                async with asyncio.timeout(STEP_LIMIT):
                    await self._promote(job, prepared, held.version)
            case _:
                raise AssertionError(verdict)

    async def _promote(self, job: Job, prepared: FilePrepared, version: int) -> None:
        start = utcnow()
        gate = asyncio.Semaphore(PARALLEL)

        async def one(product: Product) -> None:
            async with gate:
                await self._copy_and_check(prepared, product, version)

        async with asyncio.TaskGroup() as group:
            for product in promotion_order(prepared.products):
                group.create_task(one(product))
        timeline = Timeline(copy_start=start, copy_end=utcnow())
        frame = await self.db.write(
            self._commit, job, prepared, version, timeline
        )
        self.published()
        self._count(frame, prepared)

    def _commit(
        self, session: Session, job: Job, prepared: FilePrepared, version: int,
        timeline: Timeline,
    ) -> Frame:  # fmt: skip
        self.store.plan_sweep(session, prepared, self.config.staging_keep_seconds)
        return self.store.commit(session, job, prepared, version, timeline)

    async def _copy_and_check(
        self, prepared: FilePrepared, product: Product, version: int
    ) -> None:
        """Copy one object and read the *archived* one back against its digest."""
        key = archive_key(prepared, version, product.name)
        source = (self.config.staging_bucket, product.key)
        await self.objects.copy(source, (self.config.archive_bucket, key))
        found = await self.objects.digest(self.config.archive_bucket, key)
        if (found.size, found.sha256) != (product.size, product.sha256):
            raise VerificationFailed(
                f"{key}: declared {product.size} bytes, {product.sha256}; "
                f"archived {found.size} bytes, {found.sha256}"
            )

    def _count(self, frame: Frame, prepared: FilePrepared) -> None:
        timeline = Timeline.model_validate(frame.timeline)
        self.metrics.frames.labels(frame.instrument, frame.status).inc()
        for finding in prepared.findings:
            self.metrics.findings.labels(finding.code, frame.instrument).inc()
        if prepared.generation == 1:
            self.metrics.available(
                frame.instrument, frame.level, Origin(frame.origin), timeline
            )
        logger.info("Frame available", latency=timeline.latency_seconds, path=frame.path)

    async def _turn_away(
        self, job: Job, prepared: FilePrepared, verdict: Verdict, held: Claimed
    ) -> None:
        if verdict is Verdict.DUPLICATE:
            status = Status.DUPLICATE
            finding = Finding(
                code="DUPLICATE", severity=Severity.WARNING, step="claim",
                message=f"the same raw bytes are archived as {prepared.koaid}, "
                f"version {held.version}, from frame {held.frame_id}",
            )  # fmt: skip
        else:
            status = Status.INVALID
            finding = Finding(
                code="DUPLICATE_KOAID", severity=Severity.INVALID, step="claim",
                message=f"{prepared.koaid} holds other raw bytes already, from frame "
                f"{held.frame_id}; accept this frame as a version or as padded",
            )  # fmt: skip

        def settle(session: Session) -> Frame:
            if status is Status.DUPLICATE:
                delay = self.config.staging_keep_seconds
                self.store.plan_sweep(session, prepared, delay)
            return self.store.end(session, job, prepared.frame_id, finding, status)

        frame = await self.db.write(settle)
        self.published()
        self.metrics.frames.labels(frame.instrument, frame.status).inc()
        self.metrics.findings.labels(finding.code, frame.instrument).inc()
        logger.warning("Frame not archived", status=status, why=finding.message)

    def _failed(self, session: Session, job: Job, failure: Failure) -> None:
        error = failure.error
        if isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        code = {
            VerificationFailed: "VERIFICATION_FAILED",
            ObjectMissing: "STAGING_MISSING",
        }.get(type(error), "CODE_ERROR")
        finding = error_finding(code, "promote", str(error) or repr(error))
        self.store.attempt_failed(
            session, job, finding, failure.attempt, failure.delay
        )

    async def sweep(self, job: Job) -> None:
        """Empty a frame's staging."""
        bucket = self.config.staging_bucket
        names = await self.objects.names(bucket, job.payload["prefix"])
        await self.objects.remove(bucket, names)
        await self.db.write(self.store.queue.finish, job)

    def _sweep_failed(self, session: Session, job: Job, failure: Failure) -> None:
        logger.warning("Staging not emptied", key=job.key, why=str(failure.error))

    async def trim(self) -> None:
        """Forget old stream entries, once an hour."""
        while True:
            before = utcnow() - timedelta(days=self.config.stream_keep_days)
            await self.db.write(self.store.trim_stream, before)
            await asyncio.sleep(3600)
