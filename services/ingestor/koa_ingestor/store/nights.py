"""What the catalogue tells of a night: grouped queries, and two columns for the latencies."""

from datetime import UTC, date, datetime, timedelta
from heapq import nlargest
from typing import Any

from sqlalchemy import and_, case, exists, false, func, literal_column, or_, true
from sqlalchemy import select as sa_select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from koa_shared.contracts import Origin, utcnow
from koa_shared.reports import FindingCount, Inventory, Kept, NightCount, NightReport
from koa_shared.web import Caller

from ..catalog import is_open_to
from ..nights import Group, Moment, report, slowest
from .schema import Frame, FrameCode, NightSeen, Version

SLOW = 10  # frames that are named
KEPT = 5000  # files on a page of the manifest: 20 ms of the event loop
COUNTED = ("live", "recovered")  # as the objective counts (design 11)


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

    def nights(self, session: Session) -> list[NightCount]:
        """Return the nights there are, the newest first, at most 1,000."""
        by: Any = (col(Frame.night), col(Frame.instrument))
        mine = (col(Frame.night).is_not(None), col(Frame.origin) != Origin.CANARY)
        found: dict[str, dict[str, int]] = {}
        query = sa_select(*by, func.count()).where(*mine)
        query = query.group_by(*by).order_by(by[0].desc(), by[1])
        for night, instrument, count in session.execute(query):
            found.setdefault(night, {})[instrument] = count
        return [NightCount(night=n, instruments=i) for n, i in list(found.items())[:1000]]

    def night(self, session: Session, night: str, caller: Caller) -> NightReport:
        """Return a night's report, as the caller may see it."""
        moments, slow = self._moments(session, night)
        seen = {
            row.instrument: _inventory(row.state, caller)
            for row in session.exec(select(NightSeen).filter_by(night=night))
        }
        told = report(self._groups(session, night, caller), moments, seen, night, utcnow())
        columns: Any = (Frame.frame_id, Frame.koaid, Frame.instrument, Frame.timeline)
        rows = session.execute(sa_select(*columns).where(col(Frame.frame_id).in_(slow)))
        worst = sorted((slowest(row._asdict()) for row in rows), key=lambda s: -s.latency_seconds)
        findings = self._findings(session, night)
        return told.model_copy(update={"worst": worst, "findings": findings})

    def _groups(self, session: Session, night: str, caller: Caller) -> list[Group]:
        is_open = _is_open(caller)
        kind, seconds = (case((is_open, c)) for c in (col(Frame.koaimtyp), col(Frame.exposure)))
        found = col(Frame.origin) == Origin.RECOVERED
        of_each: Any = (Frame.instrument, Frame.level, Frame.status, kind.label("kind"), found)
        sums = (func.count(), func.sum(seconds), func.coalesce(func.sum(Version.raw_size), 0))
        mine = and_(col(Version.koaid) == Frame.koaid, col(Version.version) == Frame.version)
        query = sa_select(*of_each, *sums).select_from(Frame).outerjoin(Version, mine)
        by: Any = (Frame.instrument, Frame.level, Frame.status, literal_column("kind"), found)
        rows = session.execute(query.where(_of(night)).group_by(*by))
        return [Group(*row) for row in rows]

    def _moments(self, session: Session, night: str) -> tuple[list[Moment], list[str]]:
        """Return when each frame was acquired and how long it took; the ids of the slowest."""
        counts = and_(col(Frame.generation) == 1, col(Frame.origin).in_(COUNTED))
        until: Any = case((counts, col(Frame.timeline)["available"].as_string()))
        what: Any = (Frame.frame_id, Frame.instrument, Frame.level, Frame.acquired, until)
        moments, slow = list[Moment](), list[tuple[float, str]]()
        for frame_id, instrument, level, acquired, available in session.execute(
            select(*what).where(_of(night))
        ):
            seconds = None
            if available is not None:
                seconds = (datetime.fromisoformat(available) - acquired).total_seconds()
                slow.append((seconds, frame_id))
            moments.append(Moment(instrument, level, acquired, seconds))
        return moments, [frame_id for _, frame_id in nlargest(SLOW, slow)]

    def _findings(self, session: Session, night: str) -> list[FindingCount]:
        tonight = self._codes(session, _of(night))
        end = date.fromisoformat(night)
        begin = end - timedelta(days=7)
        week = and_(col(Frame.night) >= begin.isoformat(), col(Frame.night) < night)
        recent = col(FrameCode.acquired) >= datetime.combine(
            begin - timedelta(days=1), datetime.min.time(), UTC
        )
        known = col(FrameCode.code).in_({code for _, code in tonight})
        before = self._codes(session, and_(known, recent, week)) if tonight else {}
        rows = [
            FindingCount(instrument=i, code=code, frames=count, week=before.get((i, code), 0))
            for (i, code), count in tonight.items()
        ]
        return sorted(rows, key=lambda row: (row.week > 0, row.instrument, row.code))

    def _codes(self, session: Session, where: Any) -> dict[tuple[str, str], int]:
        by = (col(Frame.instrument), col(FrameCode.code))
        query = select(*by, func.count()).join(FrameCode, of_frame(FrameCode))
        return {(i, code): n for i, code, n in session.exec(query.where(where).group_by(*by))}

    def manifest(
        self, session: Session, night: str, caller: Caller, after: str
    ) -> tuple[list[Kept], str | None]:
        """Return a page of what is kept of a night, the last version of each KOAID."""
        newer: Any = aliased(Frame)
        is_old = exists().where(newer.koaid == col(Frame.koaid), newer.version > col(Frame.version))
        mine = (_of(night), col(Frame.version).is_not(None), col(Frame.koaid) > after, ~is_old)
        what: Any = (
            Frame.koaid, Frame.version, Frame.products, Frame.semid, Frame.release_date
        )  # fmt: skip
        query = select(*what).where(*mine).order_by(Frame.koaid).limit(KEPT + 1)
        rows = session.execute(query).all()
        items = [
            Kept(
                koaid=koaid, version=version, name=product["name"], size=product["size"],
                sha256=product["sha256"] if is_open_to(caller, semid, release) else None,
            )
            for koaid, version, products, semid, release in rows[:KEPT]
            for product in products
            if product["role"] == "fits"
        ]  # fmt: skip
        return items, rows[KEPT - 1].koaid if len(rows) > KEPT else None


def of_frame(table: Any) -> Any:
    """Return the condition that a row is about a frame in its last generation."""
    return and_(table.frame_id == Frame.frame_id, table.generation == Frame.generation)


def _inventory(state: dict[str, Any], caller: Caller) -> Inventory:
    """Return what a monitor told of the disks; which frames are missing are paths."""
    told = {"at": state.get("at"), "gaps": len(state["frame_gaps"])}
    told |= {name: state[name] for name in ("on_disk", "announced")}
    gaps = state["frame_gaps"] if caller.sees_all else []
    return Inventory.model_validate(told | {"frame_gaps": gaps})
