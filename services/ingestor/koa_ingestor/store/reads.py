"""What the status API reads from the catalogue."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, func, or_, tuple_
from sqlmodel import Session, col, select

from koa_shared.contracts import Link, Origin, Status, utcnow
from koa_shared.errors import Rejected
from koa_shared.web import Caller

from ..catalog import link
from ..errors import UnknownFrame, VersionDeleted
from .nights import Nights, of_frame
from .schema import EventSeen, Frame, FrameCode, SourceSeen, Stream, Version, audit

COLUMNS = {"program": "semid", "type": "koaimtyp"}  # all others have their filter's name
# Conditions on others only match rows whose full view the caller has (design 10).
OPEN = {"instrument", "night", "status", "level", "koaid"}
COMMON = {"koaimtyp", "origin"}  # others hide, too, but with a value that few frames have


class Reads(Nights):
    """Functions of a session that only read."""

    audit = audit

    def find(self, session: Session, name: str, level: int = 0) -> Frame:
        """Return a frame by frame_id, or KOAID and level (the one that holds its last version)."""
        if frame := session.get(Frame, name):
            return frame
        named = select(Frame).where(Frame.koaid == name.removesuffix(".fits"), Frame.level == level)
        newest = (col(Frame.version).is_(None), col(Frame.version).desc())
        if frame := session.exec(named.order_by(*newest)).first():
            return frame
        raise UnknownFrame(f"no frame {name!r}" + (f" of level {level}" if level else ""))

    def links(self, session: Session, frames: Sequence[Frame]) -> dict[str, list[Link]]:
        """Return by frame_id what hangs together: a raw frame's products, a product's raw frame."""
        what: Any = [
            getattr(Frame, name) for name in ("recipe", *Link.model_fields) if name != "pipeline"
        ]
        best = (col(Frame.version).is_(None), col(Frame.version).desc(), col(Frame.acquired).desc())
        named = col(Frame.koaid).in_({frame.koaid for frame in frames})
        found = dict[str, dict[int, dict[str, Any]]]()
        for row in session.execute(select(*what).where(named).order_by(*best)):
            found.setdefault(row.koaid, {}).setdefault(row.level, row._asdict())
        linked = dict[str, list[Link]]()
        for frame in frames:
            rows = found.get(frame.koaid or "", {}) if frame.level or frame.version else {}
            levels = [level for level in sorted(rows) if (level == 0) == (frame.level > 0)]
            linked[frame.frame_id] = [link(rows[level]) for level in levels]
        return linked

    def shown(self, session: Session, frames: Sequence[Frame]) -> list[dict[str, Any]]:
        """Return frames with their links, as `catalog.view` takes them."""
        links = self.links(session, frames)
        return [frame.model_dump() | {"links": links[frame.frame_id]} for frame in frames]

    def holding(
        self, session: Session, name: str, number: int | None = None, level: int = 0
    ) -> tuple[Frame, Version | None]:
        """Return a committed version, the frame's by default, and whose it is: who may see it."""
        frame = self.find(session, name, level)
        wanted = {"koaid": frame.koaid, "level": frame.level}
        wanted["version"] = frame.version if number is None else number
        kept = select(Version).where(col(Version.committed_at).is_not(None))
        held = session.exec(kept.filter_by(**wanted)).first()
        if held and held.deleted_at:
            raise VersionDeleted(f"version {held.version} was deleted; {frame.version} is current")
        return (session.get_one(Frame, held.frame_id) if held else frame), held

    def frames(
        self, session: Session, filters: dict[str, Any], caller: Caller, cursor: str | None = None
    ) -> tuple[list[Frame], str | None]:
        """Return one page of frames, newest acquired first, and the next cursor."""
        equal = {COLUMNS.get(k, k): value for k, value in filters.items() if value is not None}
        since, limit = equal.pop("since", None), equal.pop("limit", 100)
        code, hides_canaries = equal.pop("finding", None), "origin" not in equal
        by: Any = Frame if code is None else FrameCode
        is_hiding = equal.keys() - OPEN and not caller.sees_all
        common = {name: equal.pop(name) for name in equal.keys() & COMMON}
        query = select(Frame).filter_by(**equal)
        if hides_canaries:
            query = query.where(col(Frame.origin) != Origin.CANARY)
        if code is not None:
            query = query.join(FrameCode, of_frame(FrameCode)).where(FrameCode.code == code)
        if since:
            query = query.where(col(Frame.acquired) >= since)
        if cursor:
            place = tuple_(col(by.acquired), col(by.frame_id))
            query = query.where(place < tuple_(*read_cursor(cursor)))
        newest = (col(by.acquired).desc(), col(by.frame_id).desc())
        query = query.order_by(*newest).limit(limit + 1)
        parts = [query.filter_by(**common)]
        if is_hiding:
            # Each part has an index in the order of the list; joined by OR none could be used.
            parts = [parts[0].where(col(Frame.released_at) <= utcnow())]  # NULL is closed
            # As expressions these leave SQLite no choice but the index of the programs.
            mine = (func.coalesce(getattr(Frame, name), "") == common[name] for name in common)
            query = query.where(*mine)
            parts += [query.where(Frame.semid == semid) for semid in caller.programs]
        found = {row.frame_id: row for part in parts for row in session.exec(part)}
        rows = sorted(found.values(), key=lambda row: (row.acquired, row.frame_id), reverse=True)
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], f"{last.acquired.timestamp()}_{last.frame_id}"

    def parked(self, session: Session) -> list[Frame]:
        """Return the frames that wait for an operator: ERROR, and those no preparer takes."""
        refused = and_(col(Frame.status) == Status.QUEUED, col(Frame.step) == "refused")
        mine = select(Frame).where(or_(col(Frame.status) == Status.ERROR, refused))
        return list(session.exec(mine.order_by(col(Frame.acquired).desc()).limit(1000)))

    def unfinished(self, session: Session) -> list[Any]:
        """Return (instrument, step, the oldest's `acquired`) of what is on its way in time."""
        # As the objective counts: what an operator asks for anew was acquired long ago.
        by, ours = (col(Frame.instrument), col(Frame.step)), ("live", "recovered", "canary")
        on_its_way = col(Frame.status).in_([s for s in Status if not s.is_end])
        # As an expression: SQLite would take the index of the origins.
        mine = (on_its_way, func.coalesce(Frame.origin, "").in_(ours), Frame.generation == 1)
        oldest = select(*by, func.min(Frame.acquired)).where(*mine, Frame.step != "refused")
        return list(session.exec(oldest.group_by(*by)))

    def history(self, session: Session, name: str, level: int = 0) -> tuple[Frame, list[EventSeen]]:
        """Return a frame and its events, in their order."""
        frame = self.find(session, name, level)
        mine = select(EventSeen).filter_by(frame_id=frame.frame_id)
        return frame, list(session.exec(mine.order_by(col(EventSeen.at), col(EventSeen.seq))))

    def overview(self, session: Session, night: str | None) -> dict[str, Any]:
        """Return the nights around one that have frames, the last canary, and the sources."""
        by = col(Frame.night)
        real = select(Frame.night).where(by.is_not(None), Frame.origin != Origin.CANARY).limit(1)
        latest = session.exec(real.order_by(by.desc())).first()
        night = night or latest or utcnow().date().isoformat()
        ours = select(Frame).where(Frame.origin == Origin.CANARY).limit(1)
        canary = session.exec(ours.order_by(col(Frame.acquired).desc())).first()
        told = canary and canary.model_dump(include={"status", "step", "acquired", "timeline"})
        sources = session.exec(select(SourceSeen).order_by(SourceSeen.name))
        return {
            "night": night, "latest": latest, "canary": told,
            "earlier": session.exec(real.where(by < night).order_by(by.desc())).first(),
            "later": session.exec(real.where(by > night).order_by(by)).first(),
            "sources": [row.state | {"at": row.at} for row in sources],
        }  # fmt: skip

    def stream_after(self, session: Session, last: int) -> tuple[list[tuple[Stream, Frame]], int]:
        """Return up to 200 stream entries after an id, and the oldest id that is kept."""
        oldest = session.exec(select(func.min(Stream.id))).one() or 0
        both = select(Stream, Frame).join(Frame, col(Frame.frame_id) == col(Stream.frame_id))
        rows = session.exec(both.where(col(Stream.id) > last).order_by(col(Stream.id)).limit(200))
        return list(rows), oldest

    def stream_end(self, session: Session) -> int:
        """Return the newest id of the stream."""
        return session.exec(select(func.max(Stream.id))).one() or 0


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """Return where a page ended; raises Rejected for what no page gave out."""
    acquired, _, frame_id = cursor.partition("_")
    try:
        return datetime.fromtimestamp(float(acquired), UTC), frame_id
    except (ValueError, OverflowError) as error:
        raise Rejected("this is no cursor of ours", code="bad_cursor") from error
