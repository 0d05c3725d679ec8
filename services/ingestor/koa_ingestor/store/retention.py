"""Retention: what may be deleted, by which policy; what may be at the summit (design 5)."""

from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import exists, func, tuple_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, delete, select, update

from koa_shared.audit import Deed
from koa_shared.contracts import Origin, Status, utcnow
from koa_shared.db import UtcDateTime
from koa_shared.jobs.queue import NewJob

from ..pipeline import archive_key
from .fixity import Fixity
from .nights import HELD
from .reads import read_cursor
from .rows import take_turns
from .schema import Damage, EventSeen, Frame, FrameCode, Version

MOST = 1000  # that one run of a policy deletes; the next run goes on


class Policies(NamedTuple):
    """How long what is kept; 0 days are for ever."""

    quarantine_days: float
    version_days: float
    versions_keep: int


class Retention(Fixity):
    """Functions of a session about what is deleted."""

    def retention(self, session: Session, policies: Policies) -> list[dict[str, Any]]:
        """Return what the policies delete now, and what of staging when its time has come."""
        found = self._staging(session)
        if policies.quarantine_days:
            found += self._quarantine(session, policies.quarantine_days)
        if policies.version_days:
            found += self._superseded(session, policies)
        return found

    def _staging(self, session: Session) -> list[dict[str, Any]]:
        """Return the sweeps that wait: of frames that are COMPLETE and verified, or DUPLICATE."""
        t = self.queue.table.c
        due = t.not_before - self.queue.now(session)
        mine = select(t.key, t.grp, t.payload, due).where(t.queue == "sweep").limit(MOST)
        return [
            {"policy": payload.get("policy", "staging"), "target": key, "instrument": grp,
             "prefix": payload["prefix"], "due_seconds": max(0.0, float(seconds))}
            for key, grp, payload, seconds in session.execute(mine)
        ]  # fmt: skip

    def _quarantine(self, session: Session, days: float) -> list[dict[str, Any]]:
        """Return what lies in quarantine of frames that are COMPLETE by now."""
        first = select(func.min(EventSeen.at)).where(  # a `resend` tells it again
            EventSeen.frame_id == Frame.frame_id, EventSeen.status == Status.INVALID,
            EventSeen.generation == FrameCode.generation,
        ).scalar_subquery()  # fmt: skip
        rows = session.execute(
            select(Frame, FrameCode, first).where(
                FrameCode.code == "QUARANTINED", FrameCode.frame_id == Frame.frame_id,
                FrameCode.generation < Frame.generation, Frame.status == Status.COMPLETE,
                first < utcnow() - timedelta(days=days),
            ).limit(MOST)
        ).all()  # fmt: skip
        return [
            {"policy": "quarantine", "target": frame.frame_id, "instrument": frame.instrument,
             "prefix": f"quarantine/{frame.instrument}/{frame.frame_id}/{code.generation}/",
             "generation": code.generation, "since": since}
            for frame, code, since in rows
        ]  # fmt: skip

    def _superseded(self, session: Session, policies: Policies) -> list[dict[str, Any]]:
        """Return versions that others have superseded.

        Never the current one; none whose raw bytes the current one lacks; and only while the
        current one was read again by a scrub, whole, and nothing of it is damaged.
        """
        newest = col(Version.version).desc()
        same = [Version.koaid, Version.level]
        over: dict[str, Any] = {"partition_by": same, "order_by": newest}
        # Behind each version: how many are newer, the newest, when the next one was committed.
        kept = select(
            col(Version.id),
            func.row_number().over(**over).label("rank"),
            func.first_value(Version.version).over(**over).label("newest"),
            func.lag(Version.committed_at, type_=UtcDateTime).over(**over).label("since"),
        ).where(col(Version.committed_at).is_not(None), col(Version.deleted_at).is_(None))
        by, now = kept.subquery().c, aliased(Version)
        mine = select(Version, Frame, by.since).where(
            by.id == Version.id, by.rank > 1 + policies.versions_keep,
            by.since < utcnow() - timedelta(days=policies.version_days),
            now.koaid == Version.koaid, now.level == Version.level, now.version == by.newest,
            now.raw_sha256 == Version.raw_sha256, *is_sound(now),
            Frame.frame_id == Version.frame_id,
        )  # fmt: skip
        return [
            {"policy": "versions", "target": held.koaid, "instrument": frame.instrument,
             "prefix": archive_key((frame.instrument, frame.level, held.koaid, held.version), ""),
             "version": held.version, "level": held.level, "since": since,
             "objects": len(held.products or ()),
             "bytes": sum(product["size"] for product in held.products or ())}
            for held, frame, since in session.execute(mine.order_by(by.id).limit(MOST))
        ]  # fmt: skip

    def retain(self, session: Session, policies: Policies, deed: Deed) -> list[dict[str, Any]]:
        """Delete what the policies say: nobody finds it from now on, then the objects go.

        `deed` is (who, why).  Returns what is deleted, as `retention` told it.
        """
        take_turns(session)
        doomed = [one for one in self.retention(session, policies) if "due_seconds" not in one]
        for one in doomed:
            if one["policy"] == "versions":
                mine = {"koaid": one["target"]} | {k: one[k] for k in ("level", "version")}
                gone = {"deleted_at": utcnow(), "scrubbed_at": None}
                session.execute(update(Version).filter_by(**mine).values(gone))
                table: Any = Damage
            else:
                mine = {"frame_id": one["target"], "generation": one["generation"]}
                mine, table = mine | {"code": "QUARANTINED"}, FrameCode
            session.execute(delete(table).filter_by(**mine))
            told = {name: one[name] for name in ("policy", "prefix", "target")} | {"deed": deed}
            self.queue.put(session, NewJob("sweep", one["prefix"], one["instrument"], told))
        return doomed

    def deletable(
        self, session: Session, days: float, filters: dict[str, Any], cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return one page of raw files that the summit may delete, oldest first, and the next.

        Those of frames that are COMPLETE, acquired over `days` ago, and whose version a scrub
        has read again whole since it was archived.
        """
        limit, place = filters["limit"], (col(Frame.acquired), col(Frame.frame_id))
        query = select(Frame, Version).where(
            Version.koaid == Frame.koaid, Version.version == Frame.version, Version.level == 0,
            Frame.status == Status.COMPLETE, Frame.level == 0, Frame.origin != Origin.CANARY,
            Version.frame_id == Frame.frame_id, *is_sound(Version),
            place[0] < utcnow() - timedelta(days=days),
        )  # fmt: skip
        if filters["instrument"]:
            query = query.where(Frame.instrument == filters["instrument"])
        if cursor:
            query = query.where(tuple_(*place) > tuple_(*read_cursor(cursor)))
        rows = session.execute(query.order_by(*place).limit(limit + 1)).all()
        names = {"frame_id", "koaid", "instrument", "path", "acquired"}
        items = [
            frame.model_dump(include=names) | {
                "version": held.version, "size": held.raw_size, "sha256": held.raw_sha256,
                "scrubbed_at": held.scrubbed_at,
            }
            for frame, held in rows[:limit]
        ]  # fmt: skip
        last = rows[limit - 1][0] if len(rows) > limit else None
        return items, last and f"{last.acquired.timestamp()}_{last.frame_id}"


def is_sound(version: Any) -> tuple[Any, Any]:
    """Return the conditions that a scrub has read a version since, whole and undamaged."""
    mark: Any = Damage
    same = (getattr(mark, key) == getattr(version, key) for key in HELD)
    damaged = exists().where(*same)
    return version.scrubbed_at > version.committed_at, ~damaged
