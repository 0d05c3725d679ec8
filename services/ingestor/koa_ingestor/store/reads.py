"""What the status API reads from the catalogue."""

import base64
import json
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, or_, tuple_
from sqlmodel import Session, col, select

from koa_shared.contracts import utcnow
from koa_shared.errors import Rejected
from koa_shared.web import Caller

from ..errors import UnknownFrame
from .schema import Audit, EventSeen, Frame, NightSeen, SourceSeen, Stream, Version

OPEN = {
    "instrument": Frame.instrument, "night": Frame.night, "status": Frame.status,
    "level": Frame.level, "koaid": Frame.koaid,
}  # fmt: skip
# Conditions on these only match rows whose full view the caller has (design 10).
HIDDEN = {
    "program": Frame.semid, "type": Frame.koaimtyp, "origin": Frame.origin,
    "path": Frame.path, "name": Frame.name,
}  # fmt: skip


class Reads:
    """Functions of a session that only read."""

    def find(self, session: Session, name: str) -> Frame:
        """Return a frame by frame_id or KOAID (the one that holds its last version)."""
        if frame := session.get(Frame, name):
            return frame
        named = select(Frame).where(Frame.koaid == name.removesuffix(".fits"))
        newest = (col(Frame.version).is_(None), col(Frame.version).desc())
        if frame := session.exec(named.order_by(*newest)).first():
            return frame
        raise UnknownFrame(f"no frame {name!r}")

    def version(self, session: Session, frame: Frame, number: int | None) -> Version | None:
        """Return a committed version of the frame's KOAID, the frame's by default."""
        kept = select(Version).where(col(Version.committed_at).is_not(None))
        wanted = {"koaid": frame.koaid, "version": frame.version if number is None else number}
        return session.exec(kept.filter_by(**wanted)).first()

    def holding(
        self, session: Session, name: str, number: int | None
    ) -> tuple[Frame, Version | None]:
        """Return a version and the frame it is of, which decides who sees it."""
        frame = self.find(session, name)
        held = self.version(session, frame, number)
        if held is not None and held.frame_id != frame.frame_id:
            frame = session.get_one(Frame, held.frame_id)
        return frame, held

    def frames(
        self, session: Session, filters: dict[str, Any], caller: Caller, cursor: str | None = None
    ) -> tuple[list[Frame], str | None]:
        """Return one page of frames, newest acquired first, and the next cursor."""
        given = {name: value for name, value in filters.items() if value is not None}
        place = tuple_(col(Frame.acquired), col(Frame.frame_id))
        query = select(Frame)
        for name, column in (OPEN | HIDDEN).items():
            if name in given:
                query = query.where(col(column) == given[name])
        if "since" in given:
            query = query.where(col(Frame.acquired) >= given["since"])
        if not caller.sees_all and given.keys() & HIDDEN.keys():
            ended = col(Frame.release_date).is_not(None)
            released = and_(ended, col(Frame.release_date) <= utcnow())
            query = query.where(or_(released, col(Frame.semid).in_(caller.programs)))
        if cursor:
            query = query.where(place < tuple_(*read_cursor(cursor)))
        limit = given.get("limit", 100)
        newest = (col(Frame.acquired).desc(), col(Frame.frame_id).desc())
        rows = list(session.exec(query.order_by(*newest).limit(limit + 1)))
        if len(rows) <= limit:
            return rows, None
        mark = json.dumps([rows[limit - 1].acquired.isoformat(), rows[limit - 1].frame_id])
        return rows[:limit], base64.urlsafe_b64encode(mark.encode()).decode()

    def history(self, session: Session, frame_id: str) -> list[EventSeen]:
        """Return the events of a frame, in their order."""
        mine = select(EventSeen).where(EventSeen.frame_id == frame_id)
        return list(session.exec(mine.order_by(col(EventSeen.at), col(EventSeen.seq))))

    def sources(self, session: Session) -> list[SourceSeen]:
        """Return the last report about every source."""
        return list(session.exec(select(SourceSeen).order_by(SourceSeen.name)))

    def audits(self, session: Session) -> list[Audit]:
        """Return the last 200 deeds."""
        return list(session.exec(select(Audit).order_by(col(Audit.id).desc()).limit(200)))

    def night(self, session: Session, date: str) -> dict[str, Any]:
        """Count a night's frames by instrument and status; and its inventories."""
        by = (col(Frame.instrument), col(Frame.status))
        counts: dict[str, dict[str, int]] = {}
        found = select(*by, func.count()).where(Frame.night == date).group_by(*by)
        for instrument, status, count in session.exec(found):
            counts.setdefault(instrument, {})[status] = count
        seen = session.exec(select(NightSeen).where(NightSeen.night == date))
        return {"night": date, "instruments": counts, "inventory": [row.state for row in seen]}

    def stream_after(self, session: Session, last: int) -> tuple[list[tuple[Stream, Frame]], int]:
        """Return up to 200 stream entries after an id, and the oldest id that is kept."""
        oldest = session.exec(select(func.min(Stream.id))).one() or 0
        both = select(Stream, Frame).join(Frame, col(Frame.frame_id) == col(Stream.frame_id))
        rows = session.exec(both.where(col(Stream.id) > last).order_by(col(Stream.id)).limit(200))
        return [(entry, frame) for entry, frame in rows], oldest

    def stream_end(self, session: Session) -> int:
        """Return the newest id of the stream."""
        return session.exec(select(func.max(Stream.id))).one() or 0


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """Return where a page ended; raises Rejected for what no page gave out."""
    try:
        acquired, frame_id = json.loads(base64.urlsafe_b64decode(cursor))
        return datetime.fromisoformat(acquired), str(frame_id)
    except (ValueError, TypeError) as error:
        raise Rejected("this is no cursor of ours", code="bad_cursor") from error
