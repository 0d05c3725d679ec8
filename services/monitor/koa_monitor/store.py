"""The monitor's ledger: every broadcast, every file, and what is still to do."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, UniqueConstraint, func, or_
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import registry
from sqlmodel import BigInteger, Field, Session, SQLModel, col, select, update

from koa_shared.contracts import (
    Event,
    FileWritten,
    Finding,
    Origin,
    Service,
    Status,
    Timeline,
    Trigger,
    utcnow,
)
from koa_shared.db import JsonColumn, UtcDateTime
from koa_shared.ids import frame_id
from koa_shared.jobs.outbox import outbox_table, put_event
from koa_shared.jobs.queue import Job, JobQueue, NewJob, job_table

from .pipeline import Stat

__all__ = ["Store", "metadata"]

PRIORITY = {Origin.CANARY: 0, Origin.LIVE: 0, Origin.MANUAL: 1, Origin.RECOVERED: 2}
LOOK_BACK = timedelta(hours=1)  # a rescan goes behind the newest entry (design 5)


class Base(SQLModel, registry=registry()):
    """The monitor's own tables."""


metadata = Base.metadata
jobs = job_table(metadata)
outbox = outbox_table(metadata)


class Broadcast(Base, table=True):
    """One keyword broadcast and what was decided about it."""

    __tablename__ = "broadcast"
    __table_args__ = (UniqueConstraint("source", "keyword", "value", "time"),)

    id: int | None = Field(default=None, primary_key=True)
    source: str = Field(index=True)
    service: str
    keyword: str
    value: str
    time: datetime = Field(sa_type=UtcDateTime)  # type: ignore[call-overload]
    read: dict[str, str] = Field(default_factory=dict, sa_column=Column(JsonColumn))
    initial: bool = False
    heard: datetime = Field(sa_type=UtcDateTime, index=True)  # type: ignore[call-overload]
    decision: str | None = None
    reason: str = ""
    frame_id: str | None = None
    path: str | None = None


class File(Base, table=True):
    """One written file; `frame_id` is its identity on the whole road."""

    __tablename__ = "file"

    frame_id: str = Field(primary_key=True)
    path: str = Field(index=True)
    size: int = Field(sa_type=BigInteger)
    mtime_ns: int = Field(sa_type=BigInteger, index=True)
    instrument: str
    source: str
    detected: datetime = Field(sa_type=UtcDateTime, index=True)  # type: ignore[call-overload]
    origin: str
    trigger: dict[str, Any] | None = Field(default=None, sa_column=Column(JsonColumn))
    known_as: str | None = None


class SourceRow(Base, table=True):
    """What is remembered of a source between starts."""

    __tablename__ = "source"

    name: str = Field(primary_key=True)
    paused: bool = False
    last_value: str | None = None
    last_frame_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # type: ignore[call-overload]
    first_start: datetime = Field(sa_type=UtcDateTime)  # type: ignore[call-overload]


def _insert(session: Session, model: type[Base], values: dict[str, Any]) -> bool:
    is_pg = session.get_bind().dialect.name == "postgresql"
    statement = (pg_insert if is_pg else sqlite_insert)(model).values(**values)
    result = session.execute(statement.on_conflict_do_nothing())
    return bool(result.rowcount)  # type: ignore[attr-defined]


class Store:
    """All SQL of the monitor; every method is a function of a session."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue

    def start_sources(self, session: Session, names: list[str]) -> dict[str, bool]:
        """Note sources that are new; return which are paused."""
        for name in names:
            _insert(
                session,
                SourceRow,
                {"name": name, "paused": False, "first_start": utcnow()},
            )
        rows = session.exec(select(SourceRow)).all()
        return {row.name: row.paused for row in rows}

    def pause(self, session: Session, name: str, *, paused: bool) -> None:
        """Hold a source's broadcasts back, or let them go on."""
        session.execute(
            update(SourceRow).where(col(SourceRow.name) == name).values(paused=paused)
        )

    def source_rows(self, session: Session) -> dict[str, SourceRow]:
        """Return what is remembered of the sources."""
        return {row.name: row for row in session.exec(select(SourceRow)).all()}

    def hear(self, session: Session, broadcast: Broadcast, trace: str) -> bool:
        """Write a broadcast down, before anything else; False if it is known."""
        values = broadcast.model_dump(exclude={"id"})
        if not _insert(session, Broadcast, values):
            return False
        row = self._broadcast_of(session, broadcast)
        session.execute(
            update(SourceRow)
            .where(col(SourceRow.name) == broadcast.source)
            .values(last_value=broadcast.value)
        )
        job = NewJob(
            "resolve", str(row.id), broadcast.source, {"id": row.id},
            sort_at=-float(row.id or 0), trace=trace,
        )  # fmt: skip
        self.queue.put(session, job)
        return True

    def _broadcast_of(self, session: Session, seen: Broadcast) -> Broadcast:
        return session.exec(
            select(Broadcast).where(
                Broadcast.source == seen.source,
                Broadcast.keyword == seen.keyword,
                Broadcast.value == seen.value,
                Broadcast.time == seen.time,
            )
        ).one()

    def broadcast(self, session: Session, id_: int) -> Broadcast:
        """Return one broadcast."""
        return session.exec(select(Broadcast).where(Broadcast.id == id_)).one()

    def decide(
        self, session: Session, job: Job, decision: str, reason: str, path: str | None
    ) -> None:
        """Record that a broadcast leads to no frame."""
        self.queue.finish(session, job)
        self._decided(session, job.payload["id"], decision, reason, None, path)

    def _decided(
        self,
        session: Session,
        id_: int,
        decision: str,
        reason: str,
        frame: str | None,
        path: str | None,
    ) -> None:
        session.execute(
            update(Broadcast)
            .where(col(Broadcast.id) == id_)
            .values(decision=decision, reason=reason, frame_id=frame, path=path)
        )

    def accept(
        self,
        session: Session,
        stat: Stat,
        file: FileWritten,
        job: Job | None,
        trace: str,
    ) -> tuple[str, str]:
        """Take a file on, once; return the decision and its reason."""
        values = file.model_dump(exclude={"level", "trigger"}) | {
            "trigger": file.trigger.model_dump(mode="json") if file.trigger else None
        }
        if _insert(session, File, values):
            decision, reason = "accepted", f"{stat.size} bytes"
            self._announce(session, file, trace)
        else:
            decision, reason = "duplicate", f"of frame {file.frame_id}"
        if job is not None:
            self.queue.finish(session, job)
            self._decided(
                session, job.payload["id"], decision, reason, file.frame_id, stat.path
            )
        session.execute(
            update(SourceRow)
            .where(col(SourceRow.name) == file.source)
            .values(last_frame_at=file.detected)
        )
        return decision, reason

    def _announce(self, session: Session, file: FileWritten, trace: str) -> None:
        job = NewJob(
            "announce", file.frame_id, file.instrument, file.model_dump(mode="json"),
            priority=PRIORITY[file.origin], sort_at=file.mtime_ns / 1e9, trace=trace,
        )  # fmt: skip
        self.queue.put(session, job)
        put_event(session, outbox, queued(file))

    def announced(self, session: Session, job: Job, known_as: str) -> None:
        """The preparer has it; `known_as` is the frame it took it for."""
        self.queue.finish(session, job)
        if known_as != job.key:
            session.execute(
                update(File).where(col(File.frame_id) == job.key).values(known_as=known_as)
            )

    def refused(self, session: Session, job: Job, finding: Finding) -> None:
        """The preparer refused it for good: an operator must see why."""
        self.queue.park(session, job, finding.message)

    def attempt_failed(self, session: Session, job: Job, delay: float | None) -> None:
        """Nothing to add: the job row has the error."""

    def is_known(self, session: Session, stats: list[Stat]) -> set[str]:
        """Return the paths among `stats` whose very file is in the ledger."""
        ids = {frame_id(s.path, s.size, s.mtime_ns): s.path for s in stats}
        known: set[str] = set()
        keys = list(ids)
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            rows = session.exec(
                select(File.frame_id).where(col(File.frame_id).in_(part))
            )
            known |= {ids[row] for row in rows}
        return known

    def since(self, session: Session, instrument: str) -> datetime:
        """Return how far back a rescan looks (design 5)."""
        newest = session.exec(
            select(func.max(File.mtime_ns)).where(File.instrument == instrument)
        ).one()
        if newest:
            return datetime.fromtimestamp(newest / 1e9, utcnow().tzinfo) - LOOK_BACK
        first = session.exec(select(func.min(SourceRow.first_start))).one()
        return first or utcnow()

    def newest_in(self, session: Session, directory: str, than: str) -> int | None:
        """Return the newest mtime in ns known in a directory, besides frame `than`."""
        return session.exec(
            select(func.max(File.mtime_ns)).where(
                col(File.path).startswith(directory + "/", autoescape=True),
                File.frame_id != than,
            )
        ).one()

    def resend(self, session: Session, instrument: str, since: datetime) -> int:
        """Announce again what the ledger has since then; the preparer sorts it out."""
        rows = session.exec(
            select(File).where(File.instrument == instrument, File.detected >= since)
        ).all()
        for row in rows:
            self._announce(session, file_written(row), "")
        return len(rows)

    def triggers(
        self, session: Session, source: str | None, path: str | None, before: int | None
    ) -> list[Broadcast]:
        """Return up to 100 broadcasts, newest first."""
        query = select(Broadcast).order_by(col(Broadcast.id).desc()).limit(100)
        if source:
            query = query.where(Broadcast.source == source)
        if path:
            query = query.where(or_(Broadcast.path == path, Broadcast.value == path))
        if before is not None:
            query = query.where(col(Broadcast.id) < before)
        return list(session.exec(query).all())

    def plan_rescan(
        self, session: Session, instrument: str, payload: dict[str, Any], delay: float
    ) -> None:
        """Ask for a rescan; one for each instrument and directory waits at a time."""
        key = f"{instrument}:{payload.get('directory', '')}"
        job = NewJob("rescan", key, instrument, payload, delay=delay)
        self.queue.put(session, job)


def queued(file: FileWritten) -> Event:
    """Return the first event of a frame's life."""
    now = utcnow()
    return Event(
        frame_id=file.frame_id, generation=1, seq=0, at=now, service=Service.MONITOR,
        status=Status.QUEUED, step="announce", instrument=file.instrument,
        source=file.source, path=file.path, level=file.level, origin=file.origin,
        timeline=Timeline(detected=file.detected, queued=now),
    )  # fmt: skip


def file_written(row: File) -> FileWritten:
    """Return a ledger row as the message it was."""
    return FileWritten(
        frame_id=row.frame_id, source=row.source, instrument=row.instrument,
        path=row.path, size=row.size, mtime_ns=row.mtime_ns, detected=row.detected,
        origin=Origin(row.origin),
        trigger=Trigger.model_validate(row.trigger) if row.trigger else None,
    )  # fmt: skip
