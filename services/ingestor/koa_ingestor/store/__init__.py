"""The catalogue: all SQL of the ingestor; every method is a function of a session."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import String, cast, func
from sqlmodel import Session, col, delete, select, update

from koa_shared import contracts as c
from koa_shared.audit import Deed
from koa_shared.db import after_commit, insert_new, notify
from koa_shared.errors import Conflict
from koa_shared.jobs.queue import Job, JobQueue, NewJob
from koa_shared.jobs.workshop import Failure

from ..errors import UnknownFrame
from ..pipeline import Claimed, Verdict, judge, priority
from . import schema
from .nights import HELD, of_frame
from .retention import Retention
from .rows import describe, inherit, merge, new_version, set_program, take_turns
from .schema import Damage, Frame, FrameCode, Prepared, Version

# What an operator's verb reopens: a status, and a finding that must be there.
REOPENS = {"retry": (c.Status.ERROR, None), "accept": (c.Status.INVALID, "DUPLICATE_KOAID")}
RELEASED = 500  # frames that are opened in one transaction: a semester's end holds up no frame
DAMAGE: Any = {"code": "OBJECT_DAMAGED", "severity": c.Severity.ERROR, "step": "scrub"}
EVENT_KEY = {"frame_id", "service", "seq", "generation", "at", "status", "step"}


class Store(Retention):
    """Frames, versions, events and the stream."""

    def __init__(self, queue: JobQueue, published: Callable[[], object]) -> None:
        self.queue, self._published = queue, published

    # What other services tell.

    def apply(self, session: Session, batch: c.EventBatch) -> int:
        """Apply a batch of events, in its order; return how many were new."""
        take_turns(session)
        for source in batch.sources:
            state = source.model_dump(mode="json")
            session.merge(schema.SourceSeen(name=source.name, at=c.utcnow(), state=state))
        if seen := batch.inventory:
            key = {"night": seen.night, "instrument": seen.instrument}
            session.merge(schema.NightSeen(**key, state=seen.model_dump(mode="json")))
        return sum(self._apply_event(session, event) for event in batch.events)

    def _apply_event(self, session: Session, event: c.Event) -> bool:
        if not insert_new(session, schema.EventSeen, event.model_dump(include=EVENT_KEY)):
            return False
        frame = self._frame_for(session, event)
        if event.generation < frame.generation:
            return True
        moved = self._advance(frame, event.generation, event.status, event.step, event.service)
        if event.step == "known":  # the monitor: another frame_id has this very file
            moved = self._advance(frame, event.generation, c.Status.DUPLICATE, event.step)
        merge(session, frame, event.timeline, event.findings)
        frame.koaid, frame.source = frame.koaid or event.koaid, frame.source or event.source
        if event.status == frame.status:
            frame.attempt, frame.next_attempt_at = event.attempt, event.next_attempt_at
            frame.step, frame.fingerprint = event.step, event.fingerprint
        if event.program is not None or event.weather:
            self._enrich(session, frame, event)
        # What comes late adds to the record, but is no news to who watches.
        if moved or event.findings or event.program or not c.Status(frame.status).is_end:
            self.publish(session, frame)
        return True

    def _enrich(self, session: Session, frame: Frame, event: c.Event) -> None:
        """Facts came late: the record says so, pixels and header stay as they are archived."""
        late, before = event.weather or {}, frame.program
        if event.program is not None:
            set_program(frame, event.program)
        frame.core = (frame.core or {}) | late
        mine = {"frame_id": frame.frame_id, "generation": frame.generation}
        for held in session.exec(select(Version).filter_by(**mine)):
            held.core = (held.core or {}) | late
        self._share(session, frame.koaid)
        # Which version of the facts that is.
        told = [event.program and event.program.model_dump_json(), sorted(late.items())]
        facts = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        changed = {"facts": facts, "weather": late, "program": [before, frame.program]}
        deed = (f"koa-{event.service}", "facts that came late")
        self.audit.record(session, "enrich", frame.frame_id, deed, **changed)

    def _share(self, session: Session, koaid: str | None) -> Frame | None:
        """Make reduced frames as closed as the raw frame that holds their KOAID; return that."""
        mine = select(Frame).where(Frame.koaid == koaid)
        frames = session.exec(mine).all() if koaid else []
        held = [frame for frame in frames if frame.level == 0 and frame.version]
        raw = max(held, key=lambda frame: frame.version or 0, default=None)
        for frame in frames if raw else ():
            before = (frame.program, frame.released_at)
            if frame.level and raw:
                inherit(frame, raw)
            if before != (frame.program, frame.released_at) and c.Status(frame.status).is_end:
                self.publish(session, frame)
        return raw

    def _frame_for(self, session: Session, event: c.Event) -> Frame:
        frame = self._locked(session, event.frame_id)
        if frame is None:
            names = set(Frame.model_fields) - {"timeline", "findings", "program"}
            told = event.model_dump(include=names)
            acquired = event.timeline.acquired or event.timeline.detected or event.at
            now = {"acquired": acquired, "updated": c.utcnow(), "accepted": False}
            empty: dict[str, Any] = {"timeline": {}, "findings": [], "products": []}
            name = {"name": PurePosixPath(event.path).name}
            insert_new(session, Frame, told | now | empty | name)
            frame = self._locked(session, event.frame_id)
            assert frame is not None
        return frame

    def _locked(self, session: Session, frame_id: str) -> Frame | None:
        take_turns(session)
        mine = select(Frame).where(Frame.frame_id == frame_id)
        return session.exec(mine.with_for_update()).first()

    def _advance(
        self, frame: Frame, generation: int, status: c.Status, step: str,
        by: c.Service = c.Service.INGESTOR,
    ) -> bool:  # fmt: skip
        old = (frame.generation, c.Status(frame.status))
        if not c.may_follow(old, (generation, status), by):
            return False
        if generation > frame.generation:
            frame.findings, frame.timeline = [], {}
        frame.generation, frame.status, frame.step = generation, status, step
        frame.next_attempt_at = frame.fingerprint = None
        return True

    def publish(self, session: Session, frame: Frame) -> None:
        """Put a frame's change into the stream, in the order of commits."""
        session.add(frame)
        if frame.origin == c.Origin.CANARY:
            return
        session.add(schema.Stream(frame_id=frame.frame_id, status=frame.status, at=c.utcnow()))
        session.flush()
        after_commit(session, self._published)
        notify(session, "stream")

    def hand_over(
        self, session: Session, prepared: c.FilePrepared, trace: str
    ) -> tuple[bool, Frame]:
        """Accept a prepared frame; the first for its generation wins."""
        # `attempt` is the fencing token there, a count of failures here.
        names = set(c.Event.model_fields) - {"attempt", "findings", "timeline"}
        told = prepared.model_dump(include=names)
        event = c.Event(
            **told, seq=0, at=c.utcnow(), service=c.Service.PREPARER, source="",
            status=c.Status.TRANSFERRED, step="handover", timeline=prepared.timeline,
        )  # fmt: skip
        frame = self._frame_for(session, event)
        generation = prepared.generation
        key = {"frame_id": prepared.frame_id, "generation": generation}
        body = {"body": prepared.model_dump(mode="json")}
        if generation < frame.generation or not insert_new(session, Prepared, key | body):
            return False, frame
        frame_id = col(Prepared.frame_id)
        older = select(frame_id + ":" + cast(Prepared.generation, String))
        older = older.where(frame_id == prepared.frame_id, Prepared.generation < generation)
        self.queue.drop(session, "ingest", older)
        self._advance(frame, generation, c.Status.TRANSFERRED, "handover", c.Service.PREPARER)
        merge(session, frame, prepared.timeline, prepared.findings)
        describe(frame, prepared)
        if generation > 1:  # it may belong to others now
            self._share(session, prepared.koaid)
        self.publish(session, frame)
        job = NewJob(
            "ingest", f"{prepared.frame_id}:{generation}", prepared.instrument,
            priority=priority(prepared), sort_at=frame.acquired.timestamp(), trace=trace,
        )  # fmt: skip
        self.queue.put(session, job)
        return True, frame

    # Promotion.

    def begin(self, session: Session, job: Job) -> tuple[c.FilePrepared, Verdict, Claimed | None]:
        """Start an ingest: judge the frame and claim a version for it."""
        frame_id, generation = job.key.rsplit(":", 1)
        take_turns(session)
        self.queue.renew(session, job)
        body = session.get_one(Prepared, (frame_id, int(generation))).body
        prepared, frame = c.FilePrepared.model_validate(body), self._held(session, frame_id)
        if prepared.level and self._share(session, prepared.koaid) is None:
            return prepared, Verdict.ORPHAN, None
        versions = self._versions(session, prepared)
        verdict, held = judge(prepared, versions, accepted=frame.accepted)
        if verdict is Verdict.NEW:
            # No number is given twice: who began with one may still be writing under it.
            number = 1 + max((v.version for v in versions), default=0)
            session.add(new_version(prepared, number))
            session.flush()
            whose = (number, frame_id, prepared.generation, prepared.raw.sha256)
            held = Claimed(*whose, committed=False)
        if verdict in (Verdict.NEW, Verdict.RESUME):
            self._advance(frame, prepared.generation, c.Status.INGESTING, "promote")
            merge(session, frame, c.Timeline(ingest_start=c.utcnow()))
            self.publish(session, frame)
        return prepared, verdict, held

    def _held(self, session: Session, frame_id: str) -> Frame:
        frame = self._locked(session, frame_id)
        if frame is None:
            raise UnknownFrame(frame_id)
        return frame

    def _versions(self, session: Session, prepared: c.FilePrepared) -> list[Claimed]:
        jobs = self.queue.table.c
        alive = (jobs.queue == "ingest", jobs.state != "parked")
        mine = select(Version).filter_by(koaid=prepared.koaid, level=prepared.level)
        found = []
        for v in session.exec(mine.order_by(col(Version.version))):
            key = jobs.key == f"{v.frame_id}:{v.generation}"
            is_alive = bool(session.scalar(select(func.count()).where(key, *alive)))
            committed = v.committed_at is not None
            whose = (v.version, v.frame_id, v.generation, v.raw_sha256)
            found.append(Claimed(*whose, committed=committed, alive=is_alive))
        return found

    def commit(
        self, session: Session, job: Job, prepared: c.FilePrepared, version: int,
        timeline: c.Timeline,
    ) -> Frame:  # fmt: skip
        """Make a verified frame available: all of it becomes visible here, at once."""
        take_turns(session)
        self.queue.finish(session, job)
        timeline = timeline.merged(c.Timeline(available=c.utcnow()))
        return self._keep(session, prepared, version, timeline)

    def has(self, session: Session, koaid: str, level: int, version: int) -> bool:
        """Tell whether a version is committed."""
        key = {"koaid": koaid, "level": level, "version": version}
        mine = select(Version.committed_at).filter_by(**key)
        return session.exec(mine).first() is not None

    def restore(
        self, session: Session, prepared: c.FilePrepared, version: int, at: datetime
    ) -> None:
        """Enter a version that the bucket holds and the catalogue lacks."""
        take_turns(session)
        key = {"koaid": prepared.koaid, "level": prepared.level, "version": version}
        row = session.exec(select(Version).filter_by(**key)).first()
        whose = (prepared.frame_id, prepared.generation)
        if row is None:
            session.add(new_version(prepared, version))
        elif row.committed_at is not None or (row.frame_id, row.generation) != whose:
            raise Conflict(f"version {version} of {prepared.koaid} is frame {row.frame_id}'s")
        self.hand_over(session, prepared, "")
        self.queue.drop(session, "ingest", f"{prepared.frame_id}:{prepared.generation}")
        at = max([at, *(t for _, t in prepared.timeline if t)])  # S3 tells whole seconds
        self._keep(session, prepared, version, c.Timeline(available=at))
        self.audit.record(session, "rebuild", prepared.koaid, ("koa-ingestor", ""), version=version)

    def _keep(
        self, session: Session, prepared: c.FilePrepared, version: int, timeline: c.Timeline
    ) -> Frame:
        frame = self._held(session, prepared.frame_id)
        mine = {"koaid": prepared.koaid, "level": prepared.level, "version": version}
        row = session.exec(select(Version).filter_by(**mine)).one()
        row.products = [product.model_dump(mode="json") for product in prepared.products]
        row.header, row.core = prepared.header, prepared.metadata | (row.core or {})
        row.committed_at = row.scrubbed_at = timeline.available
        session.add(row)
        if prepared.generation >= frame.generation:
            frame.products, frame.version = row.products, version
            merge(session, frame, timeline)
            self._advance(frame, prepared.generation, c.Status.COMPLETE, "available")
            self.publish(session, frame)
        session.flush()
        self._share(session, prepared.koaid)
        return frame

    def end(self, session: Session, job: Job, finding: c.Finding, status: c.Status) -> Frame:
        """End a frame that is not archived: DUPLICATE, INVALID, or ERROR for an operator."""
        frame = self.note(session, job, finding, status)
        self.queue.finish(session, job)
        return frame

    def note(
        self, session: Session, job: Job, finding: c.Finding, status: c.Status | None,
        failure: Failure | None = None,
    ) -> Frame:  # fmt: skip
        """Note a finding about a job's frame; without `status` its status stays."""
        frame = self._held(session, job.key.rsplit(":", 1)[0])
        before = frame.findings
        if status is not None:
            self._advance(frame, frame.generation, status, finding.step)
        merge(session, frame, c.Timeline(), [finding])
        if failure is not None:
            frame.attempt, frame.next_attempt_at = failure.attempt, failure.next_at()
            frame.fingerprint = failure.fingerprint if status else None
        if status or failure or frame.findings != before:
            self.publish(session, frame)
        return frame

    def plan_sweep(self, session: Session, prepared: c.FilePrepared, delay: float) -> None:
        """Empty this frame's staging after `delay` seconds (design 5)."""
        key = f"{prepared.frame_id}:{prepared.generation}"
        # What earlier generations and attempts left goes with it.
        payload: dict[str, Any] = {"prefix": f"{prepared.frame_id}/", "upto": prepared.generation}
        if prepared.origin == c.Origin.CANARY:
            payload["koaid"] = prepared.koaid
        self.queue.put(session, NewJob("sweep", key, prepared.instrument, payload, delay=delay))

    def swept(self, session: Session, job: Job, count: int) -> None:
        """Objects are deleted, and that is on record; of a canary nothing is left."""
        self.queue.finish(session, job)
        told, who = job.payload, ("retention", "its frame is done with")
        target = told.get("target", job.key.partition(":")[0])
        more = {"policy": told.get("policy", "staging"), "prefix": told["prefix"]}
        deed = tuple(told.get("deed", who))
        self.audit.record(session, "delete", target, deed, **more, objects=count)
        if "koaid" in job.payload:
            frame_id = job.key.rsplit(":", 1)[0]
            for table in (Frame, FrameCode, Version, Prepared, schema.EventSeen):
                session.execute(delete(table).where(col(table.frame_id) == frame_id))

    def trim_stream(self, session: Session, before: datetime) -> None:
        """Forget stream entries that are too old to resume from, but not the last id."""
        old = (col(schema.Stream.at) < before, col(schema.Stream.id) < self.stream_end(session))
        session.execute(delete(schema.Stream).where(*old))

    def release(self, session: Session) -> bool:
        """Open some frames whose release date has passed to searches; False if there is none."""
        passed = (col(Frame.released_at).is_(None), col(Frame.release_date) <= c.utcnow())
        some = select(Frame.frame_id).where(*passed).limit(RELEASED)
        mine = update(Frame).where(col(Frame.frame_id).in_(some))
        done = session.execute(mine.values(released_at=Frame.release_date))
        return bool(done.rowcount)  # type: ignore[attr-defined]

    # Fixity.

    def scrubbed(self, session: Session, held: Version, found: dict[str, str]) -> bool:
        """Note what a scrub found damaged of a version; return whether that is news."""
        take_turns(session)
        mine, now = {name: getattr(held, name) for name in HELD}, c.utcnow()
        kept = update(Version).filter_by(**mine, deleted_at=None).values(scrubbed_at=now)
        if not session.execute(kept).rowcount:  # type: ignore[attr-defined]
            return False  # retention has deleted it since the scrub took it up
        known = {row.product: row for row in session.exec(select(Damage).filter_by(**mine))}
        if is_news := found != {product: row.found for product, row in known.items()}:
            frame = self._held(session, held.frame_id)
            for product in known.keys() - found.keys():
                session.delete(known[product])
            for product, what in found.items():
                at = known[product].at if product in known else now
                more = {"product": product, "instrument": frame.instrument, "at": at}
                session.merge(Damage.model_validate(mine | more | {"found": what}))
            if frame.version == held.version:  # the one that a caller gets
                frame.findings = [f for f in frame.findings if f["code"] != DAMAGE["code"]]
                told = [c.Finding(**DAMAGE, message=f"{p}: {found[p]}") for p in sorted(found)]
                merge(session, frame, c.Timeline(), told)
                self.publish(session, frame)
        return is_news

    # Operators.

    def reopened(self, session: Session, name: str, verb: str) -> Frame:
        """Return the frame, locked, that a verb may leave the end of; raises Conflict."""
        frame = self._held(session, self.find(session, name).frame_id)
        status, code = REOPENS[verb]
        codes = {finding["code"] for finding in frame.findings}
        if frame.status != status or (code and code not in codes):
            raise Conflict(f"{verb} is for {status} {code or ''}, this is {frame.status}")
        return frame

    def reopen(self, session: Session, name: str, verb: str, deed: Deed) -> Frame:
        """An operator lets a frame of ours go on; `deed` is (who, why)."""
        frame = self.reopened(session, name, verb)
        changed = {"status": [frame.status, c.Status.TRANSFERRED]}
        frame.accepted = frame.accepted or verb == "accept"
        frame.status, frame.step, frame.attempt = c.Status.TRANSFERRED, verb, 0
        frame.next_attempt_at = frame.fingerprint = None
        key = f"{frame.frame_id}:{frame.generation}"
        if not self.queue.unpark(session, "ingest", key):
            self.queue.put(session, NewJob("ingest", key, frame.instrument, priority=1))
        self.audit.record(session, verb, frame.frame_id, deed, **changed)
        self.publish(session, frame)
        return frame

    def retry_group(self, session: Session, fingerprint: str, deed: Deed) -> int:
        """Try again what failed alike here; from now on that is counted anew."""
        take_turns(session)
        mine = select(Frame.frame_id).join(Prepared, of_frame(Prepared))
        alike = mine.where(Frame.fingerprint == fingerprint, Frame.status == c.Status.ERROR)
        for frame_id in (parked := session.exec(alike).all()):
            self.reopen(session, frame_id, "retry", deed)
        self.queue.open_group(session, fingerprint)
        return len(parked)
