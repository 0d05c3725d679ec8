"""The monitor's ledger: every broadcast, every file, and what is still to do."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import UniqueConstraint, func, or_
from sqlalchemy.orm import registry
from sqlmodel import BigInteger, Field, Session, SQLModel, col, select, update

from koa_shared import contracts as c
from koa_shared.audit import Audit, Deed
from koa_shared.db import insert_new, json_field, safe_json, time_field
from koa_shared.jobs.outbox import Outbox, outbox_table
from koa_shared.jobs.queue import Job, JobQueue, NewJob, job_table

from .pipeline import Stat

PRIORITY = {c.Origin.CANARY: 0, c.Origin.LIVE: 0, c.Origin.MANUAL: 1, c.Origin.RECOVERED: 2}
SETTLED = 10.0  # s; a file found by a rescan must be that old (design 5)
LOOK_BACK = timedelta(hours=1)  # a rescan goes behind the newest entry (design 5)


class Base(SQLModel, registry=registry()):
    """The monitor's own tables."""


metadata = Base.metadata
audit = Audit(metadata)
jobs = job_table(metadata)
outbox = outbox_table(metadata)


class Broadcast(Base, table=True):
    """One keyword broadcast and what was decided about it."""

    __table_args__ = (UniqueConstraint("source", "keyword", "value", "time"),)

    id: int | None = Field(default=None, primary_key=True)
    source: str = Field(index=True)
    service: str
    keyword: str
    value: str
    time: datetime = time_field()
    read: dict[str, str] = json_field()
    initial: bool = False
    heard: datetime = time_field(index=True)
    decision: str | None = None
    reason: str = ""
    frame_id: str | None = None
    path: str | None = None


class File(Base, table=True):
    """One written file; `frame_id` is its identity, `known_as` the preparer's for it."""

    frame_id: str = Field(primary_key=True)
    path: str = Field(index=True)
    size: int = Field(sa_type=BigInteger)
    mtime_ns: int = Field(sa_type=BigInteger, index=True)
    instrument: str
    source: str
    detected: datetime = time_field(index=True)
    origin: str
    trigger: dict[str, Any] | None = json_field()
    known_as: str | None = None


class SourceRow(Base, table=True):
    """What is remembered of a source between starts."""

    name: str = Field(primary_key=True)
    last_value: str | None = None
    last_frame_at: datetime | None = time_field(default=None)
    first_start: datetime = time_field()


class Store:
    """All SQL of the monitor; every method is a function of a session."""

    def __init__(self, queue: JobQueue, events: Outbox) -> None:
        self.queue, self.events, self.audit = queue, events, audit

    def start_sources(self, session: Session, names: list[str]) -> None:
        """Note sources that are new."""
        for name in names:
            insert_new(session, SourceRow, {"name": name, "first_start": c.utcnow()})

    def note_source(self, session: Session, /, name: str, **values: Any) -> None:
        """Change what is remembered of a source."""
        session.execute(update(SourceRow).where(col(SourceRow.name) == name).values(values))

    def hold(self, session: Session, verb: str, name: str, deed: Deed) -> None:
        """Hold a source's broadcasts back, or let them go on."""
        self.audit.hold(session, verb, name, deed)
        self.queue.nudge(session, "resolve")

    def source_rows(self, session: Session) -> dict[str, SourceRow]:
        """Return what is remembered of the sources."""
        return {row.name: row for row in session.exec(select(SourceRow))}

    def hear(self, session: Session, heard: Broadcast, trace: str) -> None:
        """Write a broadcast down, once, before anything else."""
        values = safe_json(heard.model_dump(exclude={"id"}))
        values["value"] = values["value"][: c.MAX_PATH]
        if (number := insert_new(session, Broadcast, values, col(Broadcast.id))) is None:
            return
        self.note_source(session, heard.source, last_value=values["value"])
        told = Broadcast(**values).model_dump(mode="json", exclude={"id"})
        job = NewJob("resolve", str(number), heard.source, told, sort_at=-number, trace=trace)
        self.queue.put(session, job)

    def submit(
        self, session: Session, file: c.FileWritten, trace: str, deed: Deed
    ) -> tuple[str, str]:
        """Take on a file that a person names."""
        decision, reason = self.accept(session, file, trace)
        told = {"frame_id": file.frame_id, "decision": decision}
        self.audit.record(session, "submit", file.path, deed, **told)
        return decision, reason

    def decide(self, session: Session, /, job: Job, **decided: Any) -> None:
        """Record what was decided about a broadcast."""
        self.queue.finish(session, job)
        mine = update(Broadcast).where(col(Broadcast.id) == int(job.key))
        session.execute(mine.values(decided))

    def accept(
        self, session: Session, file: c.FileWritten, trace: str, job: Job | None = None
    ) -> tuple[str, str]:
        """Take a file on, once, and settle the `job` that found it; return what was decided."""
        values = file.model_dump(exclude={"level", "trigger"})
        values["trigger"] = file.trigger and file.trigger.model_dump(mode="json")
        decision, reason = "duplicate", f"of frame {file.frame_id}"
        if insert_new(session, File, values):
            decision, reason = "accepted", f"{file.size} bytes"
            self._announce(session, file, trace)
        elif self.queue.unpark(session, "announce", file.frame_id):
            decision, reason = "accepted", "announced again, the preparer has not taken it yet"
        if job is not None:
            decided = {"frame_id": file.frame_id, "path": file.path}
            self.decide(session, job, decision=decision, reason=reason, **decided)
            if decision == "accepted":
                self._plan_look(session, file.instrument, str(PurePosixPath(file.path).parent))
        self.note_source(session, file.source, last_frame_at=file.detected)
        return decision, reason

    def _announce(self, session: Session, file: c.FileWritten, trace: str) -> None:
        job = NewJob(
            "announce", file.frame_id, file.instrument, file.model_dump(mode="json"),
            PRIORITY[file.origin], file.mtime_ns / 1e9, trace=trace,
        )  # fmt: skip
        self.queue.put(session, job)
        self._tell(session, file, "announce")

    def _tell(self, session: Session, file: c.FileWritten, step: str, *found: c.Finding) -> None:
        """Tell that a file is announced (seq 0) or what the preparer found about it (1)."""
        now, about = c.utcnow(), file.model_dump(include=set(c.Event.model_fields))
        event = c.Event(
            **about, generation=1, seq=len(found), at=now, service=c.Service.MONITOR, step=step,
            status=c.Status.QUEUED, findings=list(found),
            timeline=c.Timeline(detected=file.detected, queued=now),
        )  # fmt: skip
        self.events.put(session, event)

    def announced(self, session: Session, job: Job, known_as: str) -> None:
        """The preparer has it; `known_as` is the frame it took it for."""
        self.queue.finish(session, job)
        mine = update(File).where(col(File.frame_id) == job.key)
        session.execute(mine.values(known_as=known_as))
        if known_as != job.key:
            why = f"this very file was read as frame {known_as}"
            found = c.Finding(code="DUPLICATE", severity="warning", step="known", message=why)
            self._tell(session, c.FileWritten.model_validate(job.payload), "known", found)

    def refused(self, session: Session, job: Job, why: str) -> None:
        """The preparer refused it for good: park it, and say so."""
        self.queue.again(session, job, None, why, "refused")
        found = c.Finding(code="ANNOUNCE_REFUSED", severity="error", step="refused", message=why)
        self._tell(session, c.FileWritten.model_validate(job.payload), "refused", found)

    def known(self, session: Session, stats: list[Stat]) -> set[str]:
        """Return the frame_ids among `stats` that are in the ledger."""
        ids, found = [stat.frame_id for stat in stats], set[str]()
        for at in range(0, len(ids), 500):
            some = col(File.frame_id).in_(ids[at : at + 500])
            found.update(session.exec(select(File.frame_id).where(some)))
        return found

    def since(self, session: Session, instrument: str) -> datetime:
        """Return how far back a rescan looks (design 5)."""
        now = time.time_ns()  # a clock ahead of time must not hide what is missing
        mine = (File.instrument == instrument, File.mtime_ns <= now)
        newest = select(func.max(File.mtime_ns)).where(*mine)
        if found := session.exec(newest).one():
            return datetime.fromtimestamp(found / 1e9, UTC) - LOOK_BACK
        first: datetime | None = session.scalar(select(func.min(SourceRow.first_start)))
        return first or c.utcnow()

    def resend(self, session: Session, instrument: str, since: datetime) -> int:
        """Announce again what the ledger has since then; the preparer sorts it out."""
        mine = select(File).where(File.instrument == instrument, File.detected >= since)
        rows = session.exec(mine).all()
        for row in rows:
            values = row.model_dump(exclude={"known_as"})
            self._announce(session, c.FileWritten.model_validate(values), "")
        return len(rows)

    def triggers(
        self, session: Session, source: str | None, path: str | None, before: int | None
    ) -> list[Broadcast]:
        """Return up to 100 broadcasts, newest first."""
        query = select(Broadcast).order_by(col(Broadcast.id).desc()).limit(100)
        if source:
            query = query.where(Broadcast.source == source)
        if path:
            query = query.where(or_(col(Broadcast.path) == path, col(Broadcast.value) == path))
        if before is not None:
            query = query.where(col(Broadcast.id) < before)
        return list(session.exec(query))

    def plan_rescan(
        self, session: Session, instrument: str, payload: dict[str, Any], delay: float = 0.0
    ) -> None:
        """Ask for a rescan; of those that ask the same, one waits at a time."""
        key = f"{instrument}:{payload}"[-200:]
        if not payload.get("directory") and not payload.get("since"):
            # From what is known now: frames that come before it runs hide no gap.
            payload = payload | {"since": self.since(session, instrument).isoformat()}
        if not self.queue.put(session, NewJob("rescan", key, instrument, payload, delay=delay)):
            self.queue.unpark(session, "rescan", key)

    def _plan_look(self, session: Session, instrument: str, directory: str) -> None:
        """Look through a file's own directory, once its files have settled."""
        self.plan_rescan(session, instrument, {"directory": directory}, SETTLED + 1)

    def order_rescan(
        self, session: Session, source: str, instrument: str, order: dict[str, Any], deed: Deed
    ) -> None:
        """Have an instrument's disks compared with the ledger because an operator says so."""
        self.plan_rescan(session, instrument, order)
        self.audit.record(session, "rescan", source, deed, **order)

    def rescanned(self, session: Session, job: Job, instrument: str, young: set[str]) -> None:
        """A rescan is done; look later at the directories of files that still settle."""
        self.queue.finish(session, job)
        for directory in young:
            self._plan_look(session, instrument, directory)
