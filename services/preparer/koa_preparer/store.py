"""The preparer's ledger: all its SQL; every method is a function of a session."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import registry
from sqlmodel import BigInteger, Field, Session, SQLModel, col, select

from koa_shared.contracts import (
    Event,
    FilePrepared,
    FileWritten,
    Finding,
    Origin,
    Program,
    Service,
    Severity,
    Status,
    Timeline,
    Trigger,
    utcnow,
)
from koa_shared.db import JsonColumn, UtcDateTime
from koa_shared.jobs.outbox import outbox_table, put_event
from koa_shared.jobs.queue import Job, JobQueue, NewJob, job_table

from .errors import NotAnEnd, UnknownFrame

__all__ = ["File", "Store", "metadata"]

PRIORITY = {
    Origin.CANARY: 0, Origin.LIVE: 0, Origin.MANUAL: 2, Origin.RECOVERED: 4,
    Origin.REPROCESS: 6,
}  # fmt: skip


class Base(SQLModel, registry=registry()):
    """The preparer's own tables."""


metadata = Base.metadata
jobs = job_table(metadata)
outbox = outbox_table(metadata)


def _json() -> Any:
    return Field(default=None, sa_column=Column(JsonColumn))


class File(Base, table=True):
    """One announced file and the last generation of its preparation."""

    __tablename__ = "file"

    frame_id: str = Field(primary_key=True)
    path: str = Field(index=True)
    size: int = Field(sa_type=BigInteger)
    mtime_ns: int = Field(sa_type=BigInteger)
    instrument: str
    source: str
    level: int
    origin: str
    detected: datetime = Field(sa_type=UtcDateTime, index=True)  # type: ignore[call-overload]
    trigger: dict[str, Any] | None = _json()
    generation: int = 1
    status: str
    step: str = "announced"
    seq: int = 0
    koaid: str | None = None
    seen_size: int | None = Field(default=None, sa_type=BigInteger)
    seen_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # type: ignore[call-overload]
    read_size: int | None = Field(default=None, sa_type=BigInteger)
    read_mtime_ns: int | None = Field(default=None, sa_type=BigInteger)
    raw_sha256: str | None = None
    facts: dict[str, Any] | None = _json()
    options: dict[str, Any] = _json()
    timeline: dict[str, Any] = _json()
    findings: list[Any] = _json()
    prepared: dict[str, Any] | None = _json()
    attempt: int = 0
    next_attempt_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # type: ignore[call-overload]


class Paused(Base, table=True):
    """An instrument whose frames an operator holds back."""

    __tablename__ = "paused"

    instrument: str = Field(primary_key=True)
    who: str
    why: str = ""


class Audit(Base, table=True):
    """An operator's deed."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)  # type: ignore[call-overload]
    who: str
    verb: str
    target: str
    why: str = ""
    changed: dict[str, Any] = _json()


class Store:
    """Announced files, what became of them, and what is still to do."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue

    # -- the front door -----------------------------------------------------------

    def announce(
        self, session: Session, file: FileWritten, trace: str
    ) -> tuple[bool, File]:
        """Take a file on, once; a file equal to what was *read* is the same frame."""
        known = session.get(File, file.frame_id) or session.exec(
            select(File).where(
                File.path == file.path,
                File.read_size == file.size,
                File.read_mtime_ns == file.mtime_ns,
            )
        ).first()
        if known is not None:
            return False, known
        values = file.model_dump(exclude={"trigger"}) | {
            "trigger": file.trigger.model_dump(mode="json") if file.trigger else None,
            "status": Status.QUEUED, "generation": 1, "seq": 0, "step": "announced",
            "options": {}, "findings": [], "attempt": 0,
            "timeline": Timeline(detected=file.detected, queued=utcnow()).model_dump(
                mode="json", exclude_none=True
            ),
        }  # fmt: skip
        is_pg = session.get_bind().dialect.name == "postgresql"
        insert = (pg_insert if is_pg else sqlite_insert)(File)
        done = session.execute(insert.values(**values).on_conflict_do_nothing())
        row = session.get_one(File, file.frame_id)
        fresh = bool(done.rowcount)  # type: ignore[attr-defined]
        if fresh:
            self._enqueue(session, row, trace)
        return fresh, row

    def _enqueue(self, session: Session, row: File, trace: str) -> None:
        self.queue.put(
            session,
            NewJob(
                "prepare", f"{row.frame_id}:{row.generation}", row.instrument,
                priority=PRIORITY[Origin(row.origin)], sort_at=row.mtime_ns / 1e9,
                size=row.size, trace=trace,
            ),
        )  # fmt: skip

    def file(self, session: Session, frame_id: str) -> File:
        """Return one announced file; raises UnknownFrame."""
        row = session.get(File, frame_id)
        if row is None:
            raise UnknownFrame(f"no frame {frame_id!r} was announced here")
        return row

    def parked(self, session: Session) -> list[File]:
        """Return the frames that wait for an operator."""
        return list(
            session.exec(
                select(File)
                .where(File.status == Status.ERROR)
                .order_by(col(File.detected).desc())
                .limit(1000)
            ).all()
        )

    # -- the workshop -------------------------------------------------------------

    def _row(self, session: Session, job: Job) -> File:
        """Return the job's file, locked; the job must still be ours."""
        self.queue.renew(session, job)
        frame_id = job.key.rsplit(":", 1)[0]
        return session.exec(
            select(File).where(File.frame_id == frame_id).with_for_update()
        ).one()

    def start(self, session: Session, job: Job) -> File:
        """Begin an attempt."""
        row = self._row(session, job)
        if row.status == Status.QUEUED:
            self._tell(
                session, row, Status.PROCESSING, "read",
                Timeline(process_start=utcnow()),
            )  # fmt: skip
        return row

    def seen(self, session: Session, job: Job, size: int) -> datetime:
        """Note an incomplete file's size; return since when it has not grown."""
        row = self._row(session, job)
        if row.seen_size != size or row.seen_at is None:
            row.seen_size, row.seen_at = size, utcnow()
            session.add(row)
        return row.seen_at

    def transferring(  # noqa: PLR0913 (what is fixed for this generation)
        self, session: Session, job: Job, *, koaid: str, facts: dict[str, Any],
        raw_sha256: str, read: tuple[int, int], timeline: Timeline,
    ) -> File:  # fmt: skip
        """The frame is prepared: fix what another attempt must use again."""
        row = self._row(session, job)
        row.koaid, row.facts, row.raw_sha256 = koaid, facts, raw_sha256
        row.read_size, row.read_mtime_ns = read
        self._tell(session, row, Status.TRANSFERRING, "upload", timeline)
        return row

    def transferred(self, session: Session, job: Job, prepared: FilePrepared) -> None:
        """The products lie in staging: hand the frame over."""
        row = self._row(session, job)
        self.queue.finish(session, job)
        row.prepared = prepared.model_dump(mode="json")
        row.findings = [f.model_dump(mode="json") for f in prepared.findings]
        self._tell(session, row, Status.TRANSFERRED, "handover", prepared.timeline)
        science = prepared.metadata.get("koaimtyp") in (None, "object", "undefined")
        self.queue.put(
            session,
            NewJob(
                "handover", job.key, row.instrument,
                priority=PRIORITY[Origin(row.origin)] + (not science),
                sort_at=row.mtime_ns / 1e9, trace=job.trace,
            ),
        )  # fmt: skip

    def handed_over(self, session: Session, job: Job, at: datetime) -> None:
        """The ingestor has it."""
        row = self._row(session, job)
        self.queue.finish(session, job)
        row.timeline = merged(row, Timeline(notified=at))
        session.add(row)

    def end(
        self, session: Session, job: Job, status: Status, findings: list[Finding]
    ) -> File:
        """End a frame that can't be prepared: INVALID, or ERROR for an operator."""
        row = self._row(session, job)
        self.queue.finish(session, job)
        self._tell(session, row, status, findings[-1].step, Timeline(), findings)
        return row

    def attempt_failed(
        self, session: Session, job: Job, finding: Finding, attempt: int,
        delay: float | None,
    ) -> None:  # fmt: skip
        """Note a failed attempt; the status stays, unless the job is parked."""
        frame_id = job.key.rsplit(":", 1)[0]
        row = session.exec(
            select(File).where(File.frame_id == frame_id).with_for_update()
        ).one()
        row.attempt = attempt
        row.next_attempt_at = (
            None if delay is None else utcnow() + timedelta(seconds=delay)
        )
        status = Status.ERROR if delay is None else Status(row.status)
        self._tell(session, row, status, finding.step, Timeline(), [finding])

    def enriched(
        self, session: Session, job: Job, facts: dict[str, Any],
        program: Program, weather: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        """Facts came after the hand-over: tell them, touch no pixel."""
        row = self._row(session, job)
        self.queue.finish(session, job)
        row.facts = facts
        self._tell(
            session, row, Status(row.status), "enrich", Timeline(),
            program=program, weather=weather,
        )  # fmt: skip

    def _tell(  # noqa: PLR0913 (the fields of one event)
        self, session: Session, row: File, status: Status, step: str,
        timeline: Timeline, findings: list[Finding] | None = None, *,
        program: Program | None = None, weather: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Change a frame's status and tell the ingestor, in one transaction."""
        row.status, row.step = status, step
        row.timeline = merged(row, timeline)
        row.seq += 1
        if findings:
            new = [f.model_dump(mode="json") for f in findings]
            row.findings = [*(row.findings or []), *new]
        session.add(row)
        event = Event(
            frame_id=row.frame_id, generation=row.generation, seq=row.seq, at=utcnow(),
            service=Service.PREPARER, status=status, step=step,
            instrument=row.instrument, source=row.source, path=row.path,
            level=row.level, origin=Origin(row.origin), koaid=row.koaid,
            findings=findings or [], timeline=timeline, attempt=row.attempt,
            next_attempt_at=row.next_attempt_at, program=program, weather=weather,
        )  # fmt: skip
        put_event(session, outbox, event)

    def plan_enrichment(
        self, session: Session, job: Job, instrument: str, delay: float
    ) -> None:
        """Ask again for facts that were not there in time."""
        self.queue.put(
            session, NewJob("enrich", job.key, instrument, priority=9, delay=delay)
        )

    # -- operators ----------------------------------------------------------------

    def again(  # noqa: PLR0913 (who, what, why)
        self, session: Session, frame_id: str, verb: str, options: dict[str, Any],
        who: str, why: str,
    ) -> File:  # fmt: skip
        """Leave an end by a new generation: retry, release or reprocess."""
        row = self.file(session, frame_id)
        if not Status(row.status).is_end and row.status != Status.TRANSFERRED:
            raise NotAnEnd(f"{frame_id} is {row.status}")
        for queue in ("prepare", "handover", "enrich"):
            self.queue.drop(session, queue, f"{frame_id}:{row.generation}")
        before = {"generation": row.generation, "status": row.status}
        row.generation += 1
        row.findings, row.timeline, row.facts, row.prepared = [], {}, None, None
        row.attempt, row.next_attempt_at, row.seen_at = 0, None, None
        row.options = (row.options or {}) | options
        if verb == "reprocess":
            row.origin = Origin.REPROCESS
        now = utcnow()
        self._tell(session, row, Status.PROCESSING, verb, Timeline(queued=now))
        row.status = Status.QUEUED  # the next attempt starts the generation
        self._enqueue(session, row, "")
        self.audit(session, who, verb, frame_id, why, {"before": before} | options)
        return row

    def audit(  # noqa: PLR0913 (the fields of one record)
        self, session: Session, who: str, verb: str, target: str, why: str,
        changed: dict[str, Any],
    ) -> None:  # fmt: skip
        """Record who did what, when and why."""
        session.add(
            Audit(
                at=utcnow(), who=who, verb=verb, target=target, why=why, changed=changed
            )
        )

    def pause(
        self, session: Session, instrument: str, who: str, why: str, *, paused: bool
    ) -> None:
        """Hold an instrument's frames back, or let them go on."""
        row = session.get(Paused, instrument)
        if paused and row is None:
            session.add(Paused(instrument=instrument, who=who, why=why))
        elif not paused and row is not None:
            session.delete(row)
        verb = "pause" if paused else "resume"
        self.audit(session, who, verb, instrument, why, {})

    def paused(self, session: Session) -> frozenset[str]:
        """Return the instruments that are held back."""
        return frozenset(session.exec(select(Paused.instrument)).all())

    def resend(self, session: Session, since: datetime) -> int:
        """Hand over again what was prepared since then; the ingestor knows its own."""
        rows = session.exec(
            select(File).where(File.status == Status.TRANSFERRED, File.detected >= since)
        ).all()
        for row in rows:
            key = f"{row.frame_id}:{row.generation}"
            self.queue.put(session, NewJob("handover", key, row.instrument, priority=8))
        return len(rows)


def merged(row: File, timeline: Timeline) -> dict[str, Any]:
    """Return a file's timeline with what is new; nothing is rewritten."""
    old = Timeline.model_validate(row.timeline or {})
    return old.merged(timeline).model_dump(mode="json", exclude_none=True)


def written(row: File) -> FileWritten:
    """Return a ledger row as the message it was."""
    return FileWritten(
        frame_id=row.frame_id, source=row.source, instrument=row.instrument,
        path=row.path, size=row.size, mtime_ns=row.mtime_ns, detected=row.detected,
        level=row.level, origin=Origin(row.origin),
        trigger=Trigger.model_validate(row.trigger) if row.trigger else None,
    )  # fmt: skip


def crash_finding(error: Exception, step: str) -> Finding:
    """Return the finding of an attempt that failed."""
    return Finding(
        code="CODE_ERROR", severity=Severity.ERROR, step=step,
        message=f"{type(error).__name__}: {error}",
    )  # fmt: skip
