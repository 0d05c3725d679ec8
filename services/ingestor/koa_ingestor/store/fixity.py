"""Fixity: which archived versions are read again when, and what was found damaged."""

from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session, col, func, or_, select

from koa_shared.audit import Deed
from koa_shared.contracts import utcnow
from koa_shared.jobs.queue import Job, JobQueue, NewJob

from ..errors import NotArchived
from .reads import Reads
from .schema import Damage, Frame, Version

ALL = "*"  # the scrub that never ends: of whatever is due
BATCH = 20  # versions of one look


class Fixity(Reads):
    """Functions of a session about the scrub."""

    queue: JobQueue

    def is_busy(self, session: Session) -> bool:
        """Tell whether a frame is being archived, or may be."""
        t = self.queue.table.c
        can = or_(t.state == "leased", t.not_before <= self.queue.now(session))
        waiting = select(t.id).where(t.queue == "ingest", t.state != "parked", can).limit(1)
        return session.scalar(waiting) is not None

    def scrub_since(self, session: Session, days: float) -> datetime:
        """Return since when all must have been read: `days` ago, or an operator's order."""
        t, regular = self.queue.table.c, utcnow() - timedelta(days=days)
        order = session.scalar(select(t.payload).where(t.queue == "scrub", t.key == ALL)) or {}
        return max(regular, datetime.fromisoformat(order.get("since", regular.isoformat())))

    def to_scrub(self, session: Session, koaid: str, days: float) -> list[tuple[Frame, Version]]:
        """Return the versions of a KOAID, or some of those that are due, oldest first."""
        at = col(Version.scrubbed_at)
        both = select(Frame, Version).join(Version, col(Version.frame_id) == Frame.frame_id)
        if koaid == ALL:
            query = both.where(at <= self.scrub_since(session, days)).order_by(at).limit(BATCH)
        else:
            query = both.where(Version.koaid == koaid, at.is_not(None))
        return list(session.exec(query))

    def marks(self, session: Session) -> tuple[datetime | None, list[Damage]]:
        """Return when the version not read for longest was read; what is damaged, newest first."""
        marks = session.exec(select(Damage).order_by(col(Damage.at).desc(), Damage.product))
        return session.exec(select(func.min(Version.scrubbed_at))).one(), list(marks)

    def scrub_state(self, session: Session, days: float) -> dict[str, Any]:
        """Return how far the scrubber is, and what is damaged."""
        at, since = col(Version.scrubbed_at), self.scrub_since(session, days)
        versions, newest = session.exec(select(func.count(at), func.max(at))).one()
        due = session.exec(select(func.count(at)).where(at <= since)).one()
        oldest, marks = self.marks(session)
        return {
            "since": since, "versions": versions, "due": due, "oldest": oldest, "newest": newest,
            "damaged": marks,
        }  # fmt: skip

    def damage(self, session: Session, held: Version, product: str) -> Damage | None:
        """Return the mark of a product, if it is damaged."""
        return session.get(Damage, (held.koaid, held.level, held.version, product))

    def keep_scrubbing(self, session: Session, job: Job | None = None, delay: float = 0) -> None:
        """Have what is due read after `delay`, for ever; `job` is the scrub that has ended."""
        if job is not None:
            self.queue.finish(session, job)
        if job is None or job.key == ALL:
            again = NewJob("scrub", ALL, "", job.payload if job else {}, 1, delay=delay)
            if not self.queue.put(session, again):
                self.queue.unpark(session, "scrub", ALL)

    def suspect(self, session: Session, koaid: str) -> None:
        """A download met other bytes than were archived: have them read again."""
        self.queue.put(session, NewJob("scrub", koaid, ""))

    def order_scrub(self, session: Session, name: str | None, deed: Deed) -> str:
        """An operator has a frame's KOAID read again, or all; `deed` is (who, why)."""
        target = ALL
        if name is not None and not (target := self.find(session, name).koaid or ""):
            raise NotArchived(f"{name} has no KOAID yet")
        self.queue.drop(session, "scrub", target)  # whoever is at it begins anew
        order = {"since": utcnow().isoformat()}
        self.queue.put(session, NewJob("scrub", target, "", order, int(target == ALL)))
        self.audit.record(session, "scrub", target, deed)
        return target
