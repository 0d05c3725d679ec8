"""What the catalogue tells of a night: grouped queries, and two columns for the latencies."""

from datetime import UTC, date, datetime, time, timedelta
from heapq import nlargest
from typing import Any, cast

from sqlalchemy import and_, case, exists, false, func, or_, select, true
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from koa_shared.contracts import Inventory, Origin, Status, utcnow
from koa_shared.products import SCIENCE
from koa_shared.reports import FindingCount, Kept, NightReport
from koa_shared.web import Caller

from ..nights import Group, Moment, report, slowest
from .schema import Frame, FrameCode, NightSeen, Version

SLOW = 10  # frames that are named
KEPT = 5000  # files on a page of the manifest: 1 MB
PUBLIC = {"name", "size"}  # of a product
HELD = ("koaid", "level", "version")  # what a version is known by
COUNTED = ("live", "recovered")  # as the objective counts (design 11)
DAY = timedelta(days=1)


def _of(night: str) -> Any:
    return and_(col(Frame.night) == night, col(Frame.origin) != Origin.CANARY)


def _is_open(caller: Caller) -> Any:
    """Return `catalog.is_open_to` as a condition."""
    if caller.sees_all:
        return true()
    mine = col(Frame.semid).in_(caller.programs) if caller.programs else false()
    return or_(col(Frame.released_at) <= utcnow(), mine)


class Nights:
    """Functions of a session that read a night."""

    def night(self, session: Session, night: str, caller: Caller) -> NightReport:
        """Return a night's report, as the caller may see it."""
        moments, slow = self._moments(session, night)
        mine = select(col(NightSeen.state)).where(col(NightSeen.night) == night)
        disks = (Inventory.model_validate(state) for state in session.scalars(mine))
        seen = {inventory.instrument: inventory for inventory in disks}
        groups = self._groups(session, night, caller)
        groups += self._missing(session, night, caller, {group.level for group in groups})
        told = report(groups, moments, seen, night, utcnow())
        for inventory in seen.values() if not caller.sees_all else ():
            inventory.frame_gaps.clear()  # these are paths
        what: Any = (Frame.frame_id, Frame.koaid, Frame.instrument, Frame.timeline)
        rows = session.execute(select(*what).where(col(Frame.frame_id).in_(slow)))
        worst = sorted((slowest(row._asdict()) for row in rows), key=lambda s: -s.latency_seconds)
        return told.model_copy(update={"worst": worst, "findings": self._findings(session, night)})

    def _groups(self, session: Session, night: str, caller: Caller) -> list[Group]:
        is_open, frame = _is_open(caller), cast("Any", Frame)
        kind = case((is_open, frame.koaimtyp)).label("kind")
        software = frame.recipe["software"].as_string()
        pipeline = case((and_(is_open, frame.level > 0), software)).label("pipeline")
        by = (frame.instrument, frame.level, frame.status, kind)
        found = func.sum(case((frame.source.startswith("rescan:"), 1), else_=0))
        exposure = func.sum(case((is_open, frame.exposure)))
        sums = (func.count(), found, exposure, func.coalesce(func.sum(Version.raw_size), 0))
        mine = and_(*(getattr(Version, k) == getattr(frame, k) for k in HELD))
        query = (
            select(*by, *sums, pipeline)
            .select_from(Frame)
            .outerjoin(Version, mine)
            .where(_of(night))
        )
        return [Group(*row) for row in session.execute(query.group_by(*by[:3], "kind", "pipeline"))]

    def _missing(
        self, session: Session, night: str, caller: Caller, levels: set[int]
    ) -> list[Group]:
        """Return of how many archived science frames no set came, of each level that there is."""
        found, frame, made = list[Group](), cast("Any", Frame), cast("Any", aliased(Frame))
        is_science = func.coalesce(frame.koaimtyp, "object").in_(SCIENCE)
        raw = (_of(night), _is_open(caller), is_science, frame.status == Status.COMPLETE)
        for level in levels - {0}:
            mine = (made.level == level, made.instrument == frame.instrument)
            ours = exists().where(made.night == night, *mine)
            lacks = ~exists().where(made.koaid == frame.koaid, *mine)
            query = select(frame.instrument, func.count()).where(
                *raw, frame.level == 0, ours, lacks
            )
            rows = session.execute(query.group_by(frame.instrument))
            found += [Group(one, level, "MISSING", None, count) for one, count in rows]
        return found

    def _moments(self, session: Session, night: str) -> tuple[list[Moment], list[str]]:
        """Return when each frame was acquired and how long it took; the ids of the slowest."""
        counts = and_(col(Frame.generation) == 1, col(Frame.origin).in_(COUNTED))
        until: Any = case((counts, col(Frame.timeline)["available"].as_string()))
        what: Any = (Frame.frame_id, Frame.instrument, Frame.level, Frame.acquired, until)
        moments, slow = list[Moment](), list[tuple[float, str]]()
        rows = session.execute(select(*what).where(_of(night)))
        for frame_id, name, level, at, end in rows:
            seconds = (datetime.fromisoformat(end) - at).total_seconds() if end else None
            moments.append(Moment(name, level, at, seconds))
            if seconds is not None and not level:
                slow.append((seconds, frame_id))
        return moments, [frame_id for _, frame_id in nlargest(SLOW, slow)]

    def _findings(self, session: Session, night: str) -> list[FindingCount]:
        tonight = self._codes(session, _of(night))
        begin = date.fromordinal(max(date.fromisoformat(night).toordinal(), 9) - 7)
        # The index of codes is in the order of `acquired`; a day more than the nights.
        recent = col(FrameCode.acquired) >= datetime.combine(begin, time(), UTC) - DAY
        week = and_(recent, col(Frame.night) >= begin.isoformat(), col(Frame.night) < night)
        known = col(FrameCode.code).in_({code for _, code in tonight})
        before = self._codes(session, and_(known, week)) if tonight else {}
        rows = [
            FindingCount(instrument=i, code=code, frames=count, week=before.get((i, code), 0))
            for (i, code), count in tonight.items()
        ]
        return sorted(rows, key=lambda row: (row.week > 0, row.instrument, row.code))

    def _codes(self, session: Session, where: Any) -> dict[tuple[str, str], int]:
        by: Any = (Frame.instrument, FrameCode.code)
        query = select(*by, func.count()).join(FrameCode, of_frame(FrameCode))
        return {(i, code): n for i, code, n in session.execute(query.where(where).group_by(*by))}

    def manifest(
        self, session: Session, night: str, caller: Caller, after: str
    ) -> tuple[list[Kept], str | None]:
        """Return a page of the raw frames kept of a night, the last version of each KOAID."""
        newer: Any = aliased(Frame)
        same = (newer.koaid == col(Frame.koaid), newer.level == 0)
        is_old = exists().where(*same, newer.version > col(Frame.version))
        raw = and_(_of(night), col(Frame.level) == 0, col(Frame.version).is_not(None))
        mine = (raw, col(Frame.koaid) > after, ~is_old)
        what: Any = (Frame.koaid, Frame.version, Frame.products, case((_is_open(caller), 1)))
        rows = session.execute(select(*what).where(*mine).order_by(what[0]).limit(KEPT + 1)).all()
        items = [
            Kept(koaid=koaid, version=version, **{k: v for k, v in told.items() if k in seen})
            for koaid, version, products, is_open in rows[:KEPT]
            for told in products
            if told["role"] == "fits" and (seen := PUBLIC | ({"sha256"} if is_open else set()))
        ]
        return items, rows[KEPT - 1].koaid if len(rows) > KEPT else None


def of_frame(table: Any) -> Any:
    """Return the condition that a row is about a frame in its last generation."""
    return and_(table.frame_id == Frame.frame_id, table.generation == Frame.generation)
