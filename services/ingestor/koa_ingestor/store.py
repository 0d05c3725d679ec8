"""The catalogue: all SQL of the ingestor; every method is a function of a session."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Select, and_, func, or_, text, tuple_
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlmodel import Session, col, delete, select

from koa_shared.contracts import (
    Event,
    EventBatch,
    FilePrepared,
    Finding,
    Program,
    Service,
    Severity,
    Status,
    Timeline,
    may_follow,
    utcnow,
)
from koa_shared.jobs.queue import Job, JobQueue, NewJob
from koa_shared.web import Caller

from .errors import UnknownFrame
from .pipeline import Claimed, Verdict, judge
from .schema import (
    Audit,
    EventSeen,
    Frame,
    Inventories,
    Prepared,
    SourceSeen,
    Stream,
    Version,
    metadata,
)

__all__ = ["Filters", "Store", "metadata"]

PAGE = 100
CHANNEL = "koa_stream"
# Calibrations and backlog give way to live science frames (design 5).
BACKLOG = {"live": 0, "canary": 0, "manual": 1, "recovered": 2, "reprocess": 3}

Filters = dict[str, Any]


def _is_pg(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _insert(session: Session, model: Any, values: dict[str, Any]) -> bool:
    statement = (pg_insert if _is_pg(session) else sqlite_insert)(model)
    result = session.execute(statement.values(**values).on_conflict_do_nothing())
    return bool(result.rowcount)  # type: ignore[attr-defined]


class Store:
    """Frames, versions, events and the stream."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue

    # -- what other services tell -------------------------------------------------

    def apply(self, session: Session, batch: EventBatch) -> int:
        """Apply a batch of events, in its order; return how many were new."""
        now = utcnow()
        for state in batch.sources:
            session.merge(
                SourceSeen(name=state.name, at=now, state=state.model_dump(mode="json"))
            )
        if batch.inventory is not None:
            found = batch.inventory
            session.merge(
                Inventories(
                    night=found.night,
                    instrument=found.instrument,
                    state=found.model_dump(mode="json"),
                )
            )
        return sum(self._apply_event(session, event) for event in batch.events)

    def _apply_event(self, session: Session, event: Event) -> bool:
        values = event.model_dump(
            include={"frame_id", "service", "seq", "generation", "at", "status", "step"}
        )
        if not _insert(session, EventSeen, values):
            return False
        frame = self._frame_for(session, event)
        if event.generation < frame.generation:
            return True
        self._advance(frame, event.generation, event.status, event.step, event.service)
        merge(frame, event.timeline, event.findings)
        frame.koaid = frame.koaid or event.koaid
        if event.status == frame.status or event.next_attempt_at:
            frame.attempt, frame.next_attempt_at = event.attempt, event.next_attempt_at
        if event.program is not None:
            set_program(frame, event.program)
        if event.weather:
            frame.core = (frame.core or {}) | event.weather
        self.publish(session, frame)
        return True

    def _frame_for(self, session: Session, event: Event) -> Frame:
        frame = self._locked(session, event.frame_id)
        if frame is not None:
            return frame
        _insert(
            session,
            Frame,
            {
                "frame_id": event.frame_id, "koaid": event.koaid,
                "instrument": event.instrument, "level": event.level,
                "generation": event.generation, "status": event.status,
                "step": event.step, "origin": event.origin, "source": event.source,
                "path": event.path, "name": PurePosixPath(event.path).name,
                "acquired": event.timeline.acquired or event.timeline.detected or event.at,
                "updated": utcnow(), "timeline": {}, "findings": [], "products": [],
                "accepted": False, "attempt": 0,
            },
        )  # fmt: skip
        made = self._locked(session, event.frame_id)
        assert made is not None
        return made

    def _locked(self, session: Session, frame_id: str) -> Frame | None:
        return session.exec(
            select(Frame).where(Frame.frame_id == frame_id).with_for_update()
        ).first()

    def _advance(
        self, frame: Frame, generation: int, status: Status, step: str, by: Service
    ) -> bool:
        old = (frame.generation, Status(frame.status))
        if not may_follow(old, (generation, status), by):
            return False
        if generation > frame.generation:
            frame.findings, frame.timeline = [], {}
        frame.generation, frame.status, frame.step = generation, status, step
        frame.updated = utcnow()
        frame.next_attempt_at = None
        return True

    def publish(self, session: Session, frame: Frame) -> None:
        """Put a frame's change into the stream, in the order of commits."""
        session.add(frame)
        session.flush()
        if _is_pg(session):
            # Held until the commit, so that ids are given in the order of commits.
            session.execute(text("SELECT pg_advisory_xact_lock(5264)"))
            session.execute(text(f"SELECT pg_notify('{CHANNEL}', '')"))
        session.add(Stream(frame_id=frame.frame_id, status=frame.status, at=utcnow()))
        session.flush()

    def hand_over(
        self, session: Session, prepared: FilePrepared, trace: str
    ) -> tuple[bool, Frame]:
        """Accept a prepared frame; the first for its generation wins."""
        frame = self._frame_for(session, prepared_event(prepared))
        key = f"{prepared.frame_id}:{prepared.generation}"
        fresh = prepared.generation >= frame.generation and _insert(
            session,
            Prepared,
            {
                "frame_id": prepared.frame_id,
                "generation": prepared.generation,
                "body": prepared.model_dump(mode="json"),
            },
        )
        if fresh:
            for older in range(1, prepared.generation):
                self.queue.drop(session, "ingest", f"{prepared.frame_id}:{older}")
            self._advance(
                frame, prepared.generation, Status.TRANSFERRED, "handover",
                Service.PREPARER,
            )  # fmt: skip
            merge(frame, prepared.timeline, prepared.findings)
            describe(frame, prepared)
            self.publish(session, frame)
            self.queue.put(
                session,
                NewJob(
                    "ingest", key, prepared.instrument,
                    priority=priority(prepared), sort_at=frame.acquired.timestamp(),
                    trace=trace,
                ),
            )  # fmt: skip
        return fresh, frame

    # -- promotion ----------------------------------------------------------------

    def begin(
        self, session: Session, job: Job
    ) -> tuple[FilePrepared, Verdict, Claimed | None]:
        """Start an ingest: judge the frame and claim a version for it."""
        frame_id, generation = job.key.rsplit(":", 1)
        row = session.get_one(Prepared, (frame_id, int(generation)))
        prepared = FilePrepared.model_validate(row.body)
        frame = self._locked(session, frame_id)
        assert frame is not None
        if _is_pg(session):
            # Two frames of one KOAID are judged one after the other.
            session.execute(
                text("SELECT pg_advisory_xact_lock(hashtext(:k))"), {"k": prepared.koaid}
            )
        versions = self._versions(session, prepared.koaid)
        verdict, held = judge(prepared, versions, accepted=frame.accepted)
        if verdict is Verdict.NEW:
            held = self._claim(session, prepared, versions)
        if verdict in (Verdict.NEW, Verdict.RESUME):
            now = utcnow()
            self._advance(
                frame, prepared.generation, Status.INGESTING, "promote", Service.INGESTOR
            )
            merge(frame, Timeline(ingest_start=now), [])
            self.publish(session, frame)
        return prepared, verdict, held

    def _versions(self, session: Session, koaid: str) -> list[Claimed]:
        rows = session.exec(
            select(Version).where(Version.koaid == koaid).order_by(col(Version.version))
        ).all()
        return [
            Claimed(
                row.version, row.frame_id, row.generation, row.raw_sha256,
                row.committed_at is not None,
            )
            for row in rows
        ]  # fmt: skip

    def _claim(
        self, session: Session, prepared: FilePrepared, versions: Sequence[Claimed]
    ) -> Claimed:
        # What an earlier generation of this frame began and never kept makes room.
        session.execute(
            delete(Version).where(
                col(Version.koaid) == prepared.koaid,
                col(Version.frame_id) == prepared.frame_id,
                col(Version.committed_at).is_(None),
            )
        )
        number = 1 + max((v.version for v in versions if v.committed), default=0)
        session.add(
            Version(
                koaid=prepared.koaid, version=number, frame_id=prepared.frame_id,
                generation=prepared.generation, raw_sha256=prepared.raw.sha256,
                raw_size=prepared.raw.size,
            )
        )  # fmt: skip
        session.flush()
        return Claimed(
            number, prepared.frame_id, prepared.generation, prepared.raw.sha256, False
        )

    def commit(
        self,
        session: Session,
        job: Job,
        prepared: FilePrepared,
        version: int,
        timeline: Timeline,
    ) -> Frame:
        """Make a verified frame available: all of it becomes visible here, at once."""
        self.queue.finish(session, job)
        row = session.exec(
            select(Version).where(
                Version.koaid == prepared.koaid, Version.version == version
            )
        ).one()
        frame = self._locked(session, prepared.frame_id)
        assert frame is not None
        products = [p.model_dump(mode="json") for p in prepared.products]
        row.products, row.header, row.core = products, prepared.header, prepared.metadata
        row.committed_at = utcnow()
        frame.products, frame.version = products, version
        merge(frame, timeline, [])
        merge(frame, Timeline(available=row.committed_at), [])
        self._advance(
            frame, prepared.generation, Status.COMPLETE, "available", Service.INGESTOR
        )
        session.add(row)
        self.publish(session, frame)
        return frame

    def end(
        self, session: Session, job: Job | None, frame_id: str, finding: Finding,
        status: Status,
    ) -> Frame:  # fmt: skip
        """End a frame that is not archived: DUPLICATE, INVALID or ERROR."""
        if job is not None:
            self.queue.finish(session, job)
        frame = self._locked(session, frame_id)
        assert frame is not None
        self._advance(frame, frame.generation, status, finding.step, Service.INGESTOR)
        merge(frame, Timeline(), [finding])
        self.publish(session, frame)
        return frame

    def attempt_failed(
        self, session: Session, job: Job, finding: Finding, attempt: int,
        delay: float | None,
    ) -> None:  # fmt: skip
        """Note a failed attempt; the frame's status stays, unless it is parked."""
        frame_id = job.key.rsplit(":", 1)[0]
        frame = self._locked(session, frame_id)
        if frame is None:
            return
        merge(frame, Timeline(), [finding])
        frame.attempt = attempt
        if delay is None:
            self._advance(
                frame, frame.generation, Status.ERROR, finding.step, Service.INGESTOR
            )
        else:
            frame.next_attempt_at = utcnow() + timedelta(seconds=delay)
        self.publish(session, frame)

    def plan_sweep(self, session: Session, prepared: FilePrepared, delay: float) -> None:
        """Empty this frame's staging after `delay` seconds (design 5)."""
        key = f"{prepared.frame_id}:{prepared.generation}"
        payload = {"prefix": f"{prepared.frame_id}/{prepared.generation}/"}
        job = NewJob("sweep", key, prepared.instrument, payload, delay=delay)
        self.queue.put(session, job)

    # -- operators ----------------------------------------------------------------

    def reopen(
        self, session: Session, frame_id: str, verb: str, caller: Caller, why: str
    ) -> Frame:
        """An operator lets a frame of ours go on: retry of ERROR, accept of INVALID."""
        frame = self._locked(session, frame_id)
        if frame is None:
            raise UnknownFrame(frame_id)
        before = frame.status
        frame.accepted = frame.accepted or verb == "accept"
        frame.status, frame.step, frame.attempt = Status.TRANSFERRED, verb, 0
        frame.next_attempt_at = None
        key = f"{frame_id}:{frame.generation}"
        if not self.queue.unpark(session, "ingest", key):
            self.queue.put(session, NewJob("ingest", key, frame.instrument, priority=1))
        changed = {"status": [before, frame.status]}
        self.audit(session, caller, verb, frame_id, why, changed)
        self.publish(session, frame)
        return frame

    def audit(  # noqa: PLR0913 (the fields of one record)
        self, session: Session, caller: Caller, verb: str, target: str, why: str,
        changed: dict[str, Any],
    ) -> None:  # fmt: skip
        """Record who did what, when and why."""
        session.add(
            Audit(
                at=utcnow(), who=caller.name, verb=verb, target=target, why=why,
                changed=changed,
            )
        )  # fmt: skip

    def audits(self, session: Session) -> list[Audit]:
        """Return the last 200 deeds."""
        return list(
            session.exec(select(Audit).order_by(col(Audit.id).desc()).limit(200)).all()
        )

    # -- reading ------------------------------------------------------------------

    def find(self, session: Session, name: str) -> Frame:
        """Return a frame by frame_id or KOAID (the one that holds its last version)."""
        frame = session.get(Frame, name)
        if frame is None:
            koaid = name.removesuffix(".fits")
            frame = session.exec(
                select(Frame)
                .where(Frame.koaid == koaid)
                .order_by(col(Frame.version).is_(None), col(Frame.version).desc())
            ).first()
        if frame is None:
            raise UnknownFrame(f"no frame {name!r}")
        return frame

    def version(
        self, session: Session, frame: Frame, number: int | None
    ) -> Version | None:
        """Return a committed version of the frame's KOAID, the frame's by default."""
        if frame.koaid is None:
            return None
        wanted = number or frame.version
        return session.exec(
            select(Version).where(
                Version.koaid == frame.koaid,
                Version.version == wanted,
                col(Version.committed_at).is_not(None),
            )
        ).first()

    def frames(
        self, session: Session, filters: Filters, caller: Caller, cursor: str | None
    ) -> tuple[list[Frame], str | None]:
        """Return one page of frames, newest acquired first, and the next cursor."""
        query = _filtered(select(Frame), filters, caller)
        if cursor:
            acquired, frame_id = json.loads(base64.urlsafe_b64decode(cursor))
            query = query.where(
                tuple_(col(Frame.acquired), col(Frame.frame_id))
                < tuple_(datetime.fromisoformat(acquired), frame_id)  # type: ignore[arg-type]
            )
        limit = min(int(filters.get("limit") or PAGE), 1000)
        rows = list(
            session.exec(
                query.order_by(
                    col(Frame.acquired).desc(), col(Frame.frame_id).desc()
                ).limit(limit + 1)
            ).all()
        )
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        mark = json.dumps([last.acquired.isoformat(), last.frame_id]).encode()
        return rows[:limit], base64.urlsafe_b64encode(mark).decode()

    def history(self, session: Session, frame_id: str) -> list[EventSeen]:
        """Return the events of a frame, in their order."""
        return list(
            session.exec(
                select(EventSeen)
                .where(EventSeen.frame_id == frame_id)
                .order_by(col(EventSeen.at), col(EventSeen.seq))
            ).all()
        )

    def sources(self, session: Session) -> list[SourceSeen]:
        """Return the last report about every source."""
        return list(session.exec(select(SourceSeen).order_by(SourceSeen.name)).all())

    def night(self, session: Session, date: str) -> dict[str, Any]:
        """Count a night's frames by instrument and status; and its inventories."""
        rows = session.exec(
            select(Frame.instrument, Frame.status, func.count())
            .where(Frame.night == date)
            .group_by(col(Frame.instrument), col(Frame.status))
        ).all()
        counts: dict[str, dict[str, int]] = {}
        for instrument, status, count in rows:
            counts.setdefault(instrument, {})[status] = count
        found = session.exec(select(Inventories).where(Inventories.night == date)).all()
        return {
            "night": date,
            "instruments": counts,
            "inventory": [row.state for row in found],
        }

    def stream_after(
        self, session: Session, last: int, limit: int = 200
    ) -> tuple[list[tuple[Stream, Frame]], int]:
        """Return stream entries after an id, and the oldest id that is kept."""
        oldest = session.exec(select(func.min(Stream.id))).one() or 0
        rows = session.exec(
            select(Stream, Frame)
            .join(Frame, col(Frame.frame_id) == col(Stream.frame_id))
            .where(col(Stream.id) > last)
            .order_by(col(Stream.id))
            .limit(limit)
        ).all()
        return [(entry, frame) for entry, frame in rows], oldest

    def stream_end(self, session: Session) -> int:
        """Return the newest id of the stream."""
        return session.exec(select(func.max(Stream.id))).one() or 0

    def trim_stream(self, session: Session, before: datetime) -> None:
        """Forget stream entries that are too old to resume from."""
        session.execute(delete(Stream).where(col(Stream.at) < before))


def merge(frame: Frame, timeline: Timeline, findings: Sequence[Finding]) -> None:
    """Add what is new to a frame's timeline and findings; nothing is rewritten."""
    old = Timeline.model_validate(frame.timeline or {})
    merged = old.merged(timeline)
    frame.timeline = merged.model_dump(mode="json", exclude_none=True)
    if merged.acquired is not None:
        frame.acquired = merged.acquired
    if frame.night is None:
        frame.night = frame.acquired.date().isoformat()
    known = {(f["code"], f["step"], f["message"]) for f in frame.findings or []}
    new = [f for f in findings if (f.code, f.step, f.message) not in known]
    frame.findings = [*(frame.findings or []), *(f.model_dump(mode="json") for f in new)]
    frame.updated = utcnow()


def set_program(frame: Frame, program: Program) -> None:
    """Say whose data a frame is."""
    frame.program = program.model_dump(mode="json")
    frame.semid, frame.release_date = program.semid, program.release_date


def describe(frame: Frame, prepared: FilePrepared) -> None:
    """Fill the catalogue's core columns."""
    core = prepared.metadata
    frame.koaid, frame.core = prepared.koaid, core
    frame.night = prepared.utdatetime.date().isoformat()
    set_program(frame, prepared.program)
    frame.koaimtyp, frame.object = core.get("koaimtyp"), core.get("object")
    frame.ra, frame.dec = core.get("ra"), core.get("dec")
    frame.exposure = core.get("exposure")


def priority(prepared: FilePrepared) -> int:
    """Return a job's priority: live before backlog, science before calibrations."""
    science = prepared.metadata.get("koaimtyp") in (None, "object", "undefined")
    return BACKLOG[prepared.origin] * 2 + (0 if science else 1)


def prepared_event(prepared: FilePrepared) -> Event:
    """Return what a hand-over tells about a frame that no event told of yet."""
    return Event(
        frame_id=prepared.frame_id, generation=prepared.generation, seq=0, at=utcnow(),
        service=Service.PREPARER, status=Status.TRANSFERRED, step="handover",
        instrument=prepared.instrument, source="", path=prepared.path,
        level=prepared.level, origin=prepared.origin, koaid=prepared.koaid,
        timeline=prepared.timeline,
    )  # fmt: skip


def error_finding(code: str, step: str, message: str) -> Finding:
    """Return a finding about a failed attempt."""
    return Finding(code=code, severity=Severity.ERROR, step=step, message=message)


# Conditions on hidden columns only match rows whose full view the caller has.
OPEN = {
    "instrument": Frame.instrument, "night": Frame.night, "status": Frame.status,
    "level": Frame.level, "koaid": Frame.koaid,
}  # fmt: skip
HIDDEN = {
    "program": Frame.semid, "type": Frame.koaimtyp, "origin": Frame.origin,
    "path": Frame.path, "name": Frame.name,
}  # fmt: skip


def _filtered(query: Select[Any], filters: Filters, caller: Caller) -> Any:
    given = {k: v for k, v in filters.items() if v is not None}
    for name, column in (OPEN | HIDDEN).items():
        if name in given:
            query = query.where(col(column) == given[name])
    if given.get("since"):
        query = query.where(col(Frame.acquired) >= given["since"])
    sees_all = caller.all_programs or caller.role == "operator"
    if not sees_all and given.keys() & HIDDEN.keys():
        released = and_(
            col(Frame.release_date).is_not(None), col(Frame.release_date) <= utcnow()
        )
        query = query.where(or_(released, col(Frame.semid).in_(caller.programs)))
    return query
