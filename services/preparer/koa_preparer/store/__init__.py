"""The preparer's ledger: all its SQL; every method is a function of a session."""

from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from koa_shared import contracts as c
from koa_shared.audit import Deed
from koa_shared.db import insert_new
from koa_shared.jobs.fingerprint import mark
from koa_shared.jobs.outbox import Outbox
from koa_shared.jobs.queue import Job, JobQueue, NewJob
from koa_shared.jobs.workshop import Failure

from ..errors import NotAnEnd, UnknownFrame
from .campaigns import FAULTS, Campaigns
from .deliveries import Deliveries
from .schema import File, audit, jobs, metadata, outbox

__all__ = ["File", "Store", "audit", "jobs", "metadata", "outbox"]

LIVE, MANUAL, BACKLOG, REPROCESS = 0, 2, 4, 6  # an odd one is a calibration's
PRIORITY = {
    c.Origin.CANARY: LIVE, c.Origin.LIVE: LIVE, c.Origin.MANUAL: MANUAL,
    c.Origin.RECOVERED: BACKLOG, c.Origin.REPROCESS: REPROCESS,
}  # fmt: skip

# Which ends an operator's verb leaves by a new generation.
LEAVES = {"retry": FAULTS, "release": FAULTS, "reprocess": (*FAULTS, c.Status.TRANSFERRED)}


class Store(Campaigns, Deliveries):
    """Announced files, what became of them, and what is still to do."""

    def __init__(self, queue: JobQueue, events: Outbox) -> None:
        self.queue, self.events, self.audit = queue, events, audit

    def announce(self, session: Session, file: c.FileWritten, trace: str) -> tuple[bool, File]:
        """Take a file on, once; a file equal to what was *read* is the same frame."""
        read = {"path": file.path, "read_size": file.size, "read_mtime_ns": file.mtime_ns}
        same = session.exec(select(File).filter_by(**read)).first()
        if known := session.get(File, file.frame_id) or same:
            return False, known
        times = c.Timeline(detected=file.detected, queued=c.utcnow())
        values = file.model_dump(exclude={"trigger"}) | {
            "trigger": file.trigger and file.trigger.model_dump(mode="json"),
            "timeline": times.model_dump(mode="json", exclude_none=True),
            "status": c.Status.QUEUED, "step": "announced", "generation": 1, "seq": 0,
            "attempt": 0, "options": {}, "findings": [],
        }  # fmt: skip
        fresh = insert_new(session, File, values) is not None
        row = session.get_one(File, file.frame_id)
        if fresh:
            self._enqueue(session, row, "prepare", trace=trace)
        return fresh, row

    def _enqueue(
        self, session: Session, row: File, queue: str, *, later: int = 0, turn: str = "",
        **more: Any,
    ) -> None:  # fmt: skip
        job = NewJob(
            queue, f"{row.frame_id}:{turn or row.generation}", row.instrument,
            priority=PRIORITY[c.Origin(row.origin)] + later, sort_at=row.mtime_ns / 1e9,
            size=row.size if queue == "prepare" else 0, **more,
        )  # fmt: skip
        self.queue.put(session, job)

    def file(self, session: Session, frame_id: str) -> File:
        """Return one announced file; raises UnknownFrame."""
        if row := session.get(File, frame_id):
            return row
        raise UnknownFrame(f"no frame {frame_id!r} was announced here")

    def file_of(self, session: Session, job: Job) -> File:
        """Return the file that a job is about."""
        return self.file(session, job.key.rsplit(":", 1)[0])

    def parked(self, session: Session) -> list[File]:
        """Return the frames that wait for an operator, newest first."""
        parked = select(File).where(File.status == c.Status.ERROR)
        return list(session.exec(parked.order_by(col(File.detected).desc()).limit(1000)))

    # The workshop.

    def _row(self, session: Session, job: Job, *, done: bool = False) -> File:
        """Return a job's file, locked; raises LeaseLost unless the job is ours."""
        (self.queue.finish if done else self.queue.renew)(session, job)
        mine = select(File).where(File.frame_id == job.key.rsplit(":", 1)[0])
        return session.exec(mine.with_for_update()).one()

    def start(self, session: Session, job: Job) -> File:
        """Begin an attempt."""
        row = self._row(session, job)
        if row.status == c.Status.QUEUED:
            started = c.Timeline(process_start=c.utcnow())
            self.tell(session, row, c.Status.PROCESSING, "read", started)
        return row

    def seen(self, session: Session, job: Job, size: int) -> datetime:
        """Note an incomplete file's size; return since when it has not grown."""
        row = self._row(session, job)
        if row.seen_size != size or row.seen_at is None:
            row.seen_size, row.seen_at = size, c.utcnow()
            session.add(row)
        return row.seen_at

    def transferring(
        self, session: Session, /, job: Job, timeline: c.Timeline, **fixed: Any
    ) -> None:
        """The frame is prepared: fix what another attempt must use again."""
        row = self._row(session, job)
        for name, value in fixed.items():
            setattr(row, name, value)
        self.tell(session, row, c.Status.TRANSFERRING, "upload", timeline)

    def transferred(
        self, session: Session, job: Job, prepared: c.FilePrepared, enrich_in: float | None
    ) -> None:
        """The products lie in staging: hand the frame over, and ask for late facts."""
        row = self._row(session, job, done=True)
        row.prepared = prepared.model_dump(mode="json")
        row.findings = [finding.model_dump(mode="json") for finding in prepared.findings]
        self.tell(session, row, c.Status.TRANSFERRED, "handover", prepared.timeline)
        later = not prepared.is_science
        self._enqueue(session, row, "handover", later=later, trace=job.trace)
        if enrich_in is not None:
            self._enqueue(session, row, "enrich", trace=job.trace, delay=enrich_in)

    def handed_over(self, session: Session, job: Job, at: datetime) -> None:
        """The ingestor has it."""
        row = self._row(session, job, done=True)
        row.merge(c.Timeline(notified=at))
        session.add(row)

    def end(self, session: Session, job: Job, status: c.Status, findings: list[c.Finding]) -> File:
        """End a frame that can't be prepared: INVALID, or ERROR for an operator."""
        row, why = self._row(session, job, done=True), findings[-1]
        row.fingerprint = mark(why.code, why.step, why.message) if status == "ERROR" else None
        self.tell(session, row, status, why.step, findings=findings)
        return row

    def note(self, session: Session, job: Job, finding: c.Finding, failure: Failure) -> None:
        """Note a failed attempt; the status stays, unless the job is parked."""
        row, parked = self._row(session, job), failure.delay is None
        row.attempt, row.next_attempt_at = failure.attempt, failure.next_at()
        row.fingerprint = failure.fingerprint if parked else None
        status = c.Status.ERROR if parked else c.Status(row.status)
        self.tell(session, row, status, finding.step, findings=[finding])

    def enriched(
        self, session: Session, /, job: Job, facts: dict[str, Any], later: float | None, **late: Any
    ) -> None:
        """Facts came after the hand-over: tell them, touch no pixel; ask again for the rest."""
        row = self._row(session, job, done=True)
        row.facts = facts
        if row.prepared:  # what a catalogue that was restored is told again
            told = {"metadata": row.prepared["metadata"] | (late.get("weather") or {})}
            told["program"] = late["program"].model_dump(mode="json")
            row.prepared = row.prepared | told
        if later is not None:
            self._enqueue(session, row, "enrich", trace=job.trace, delay=later)
        self.tell(session, row, c.Status(row.status), "enrich", **late)

    def tell(
        self, session: Session, row: File, status: c.Status, step: str,
        timeline: c.Timeline | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Change a frame's status and tell the ingestor, in one transaction."""
        timeline = timeline or c.Timeline()
        row.status, row.step, row.seq = status, step, row.seq + 1
        row.merge(timeline)
        told = [finding.model_dump(mode="json") for finding in more.get("findings", ())]
        row.findings = [*(row.findings or []), *told]
        session.add(row)
        names = set(c.Event.model_fields) - {"timeline", "findings"}
        values = row.model_dump(include=names) | more
        about = {"at": c.utcnow(), "service": c.Service.PREPARER, "timeline": timeline}
        self.events.put(session, c.Event.model_validate(values | about))

    # Operators.

    def again(
        self, session: Session, frame_id: str, verb: str, options: dict[str, Any], deed: Deed
    ) -> File:
        """Leave an end by a new generation: retry, release, reprocess; NotAnEnd on its way."""
        row = self.file(session, frame_id)
        for queue in ("prepare", "handover", "enrich"):
            self.queue.drop(session, queue, f"{frame_id}:{row.generation}")
        session.refresh(row, with_for_update=True)  # as whoever held its job has left it
        if row.level and verb != "retry":
            raise NotAnEnd(f"{row.koaid} is reduced: its pipeline makes it anew and delivers it")
        if row.status not in LEAVES[verb]:
            raise NotAnEnd(f"{frame_id} is {row.status}; {verb} is for {', '.join(LEAVES[verb])}")
        changed = {"generation": row.generation, "status": row.status} | options
        row.generation += 1
        row.findings, row.timeline, row.facts, row.prepared = [], {}, None, None
        row.attempt, row.next_attempt_at, row.seen_at = 0, None, None
        old, failed, row.fingerprint = row.options or {}, row.fingerprint or "", None
        if waived := options.get("waive"):
            known = old.get("waive") or {}  # code to who and why
            options = options | {"waive": known | dict.fromkeys(waived, ": ".join(deed))}
        row.options = old | options
        if verb == "reprocess":
            row.origin = c.Origin.REPROCESS
        self.tell(session, row, c.Status.PROCESSING, verb, c.Timeline(queued=c.utcnow()))
        row.status = c.Status.QUEUED  # the next attempt starts the generation
        self._enqueue(session, row, "prepare", fingerprint=failed)
        self.audit.record(session, verb, frame_id, deed, **changed)
        return row

    def retry_group(self, session: Session, fingerprint: str, deed: Deed) -> int:
        """Try again what failed alike; from now on that is counted anew."""
        alike = select(File.frame_id).where(File.fingerprint == fingerprint)
        parked = session.exec(alike.where(File.status == c.Status.ERROR)).all()
        for frame_id in parked:
            self.again(session, frame_id, "retry", {}, deed)
        self.queue.open_group(session, fingerprint)
        return len(parked)

    def hold(self, session: Session, verb: str, instrument: str, deed: Deed) -> None:
        """Hold an instrument's frames back, or let them go on."""
        self.audit.hold(session, verb, instrument, deed)
        self.queue.nudge(session, "prepare")

    def resend(self, session: Session, since: datetime, deed: Deed) -> int:
        """Hand over again what was prepared since then, tell again what ended here."""
        ends = (c.Status.TRANSFERRED, *FAULTS)
        known = select(File).where(col(File.status).in_(ends), File.detected >= since)
        rows = session.exec(known.where(File.origin != c.Origin.CANARY)).all()  # it removes these
        for row in rows:
            if row.status == c.Status.TRANSFERRED:
                self._enqueue(session, row, "handover", later=BACKLOG)
            else:
                found = [c.Finding.model_validate(finding) for finding in row.findings]
                row.findings, times = [], c.Timeline.model_validate(row.timeline)
                self.tell(session, row, c.Status(row.status), row.step, times, findings=found)
        self.audit.record(session, "resend", f"{since:%Y-%m-%dT%H:%M:%SZ}", deed, count=len(rows))
        return len(rows)
