"""The one durable queue: jobs in the service's own database (design 5).

A job is claimed with a lease and a fencing token, settled in the same transaction as
what it did, and woken without a polling delay.  Leases are on the database's clock; on
SQLite, which one process owns, they end with that process instead.
"""

import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    case,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlmodel import Session

from ..db import JsonColumn, insert_new, is_postgresql
from ..errors import LeaseLost

LEASE_SECONDS = 60.0  # a worker renews it every third of that


def job_table(metadata: MetaData) -> Table:
    """Declare the table of jobs in a service's schema."""
    kinds: dict[str, Any] = {
        "queue": String(32), "key": String(200), "grp": String(32), "state": String(8),
        "priority": Integer, "sort_at": Float, "size": BigInteger, "payload": JsonColumn,
        "created_at": Float, "not_before": Float, "lease_until": Float, "owner": String(64),
        "token": Integer, "attempts": Integer, "error": Text, "trace": String(64),
    }  # fmt: skip
    columns = [Column(name, kind, nullable=False) for name, kind in kinds.items()]
    key = Column("id", Integer, primary_key=True)
    return Table("job", metadata, key, *columns, UniqueConstraint("queue", "key"))


@dataclass(frozen=True, slots=True)
class NewJob:
    """What to put into a queue; `grp` is the instrument, for fairness."""

    queue: str
    key: str
    grp: str
    payload: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    sort_at: float = 0.0
    size: int = 0
    trace: str = ""
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job; `token` fences everything done in its name."""

    id: int
    queue: str
    key: str
    grp: str
    size: int
    payload: dict[str, Any]
    token: int
    attempts: int
    trace: str


class JobQueue:
    """The jobs of one service; all methods are functions of a session."""

    def __init__(self, table: Table, instance: str = "") -> None:
        self.table = table
        self.owner = f"{instance[:24]}/{uuid.uuid4()}"
        self._served: dict[tuple[str, str], float] = {}

    @staticmethod
    def _now(session: Session) -> Any:
        if is_postgresql(session):
            return func.extract("epoch", func.clock_timestamp())
        # The host's monotonic clock: a stepped wall clock delays no retry.
        return time.monotonic()

    def recover(self, session: Session) -> None:
        """At start on SQLite: take back what the dead process held."""
        if not is_postgresql(session):
            t = self.table.c
            state = case((t.state == "leased", "ready"), else_=t.state)
            # Delays were on a clock that may have started anew with the host.
            values = {"state": state, "not_before": 0, "created_at": self._now(session)}
            session.execute(update(self.table).values(values))

    def put(self, session: Session, job: NewJob) -> bool:
        """Add a job; False if one with its key is there already."""
        now = self._now(session)
        names = ("queue", "key", "grp", "payload", "priority", "sort_at", "size", "trace")
        values: dict[str, Any] = {name: getattr(job, name) for name in names}
        values |= {"state": "ready", "created_at": now, "not_before": now + job.delay}
        values |= {"lease_until": 0.0, "owner": "", "token": 0, "attempts": 0, "error": ""}
        return insert_new(session, self.table, values)

    def claim(
        self, session: Session, queue: str, room: int | None = None,
        paused: frozenset[str] = frozenset(),
    ) -> Job | None:  # fmt: skip
        """Take the next job: by priority, fair between groups, newest first."""
        t, now = self.table.c, self._now(session)
        free: Any = t.state == "ready"
        if is_postgresql(session):
            free = or_(free, and_(t.state == "leased", t.lease_until < now))
        can = and_(free, t.not_before <= now, t.size <= (sys.maxsize if room is None else room))
        group = self._next_group(session, queue, paused, can)
        if group is None:
            return None
        pick = select(t.id).where(t.queue == queue, t.grp == group, can).limit(1)
        pick = pick.order_by(t.priority, t.sort_at.desc(), t.id)
        mine = {"state": "leased", "owner": self.owner, "token": t.token + 1}
        row = session.execute(
            update(self.table)
            .where(t.id == pick.with_for_update(skip_locked=True).scalar_subquery())
            .values(mine | {"lease_until": now + LEASE_SECONDS})
            .returning(*(t[name] for name in Job.__slots__))
        ).first()
        if row is None:
            return None
        self._served[queue, group] = time.monotonic()
        return Job(*row)

    def _next_group(
        self, session: Session, queue: str, paused: frozenset[str], can: Any
    ) -> str | None:
        t = self.table.c
        first, running = func.min(case((can, t.priority))), func.sum(
            case((t.state == "leased", 1), else_=0)
        )  # fmt: skip
        rows = session.execute(
            select(t.grp, first, running).where(t.queue == queue).group_by(t.grp)
        )
        waiting = [
            (priority, leased, self._served.get((queue, grp), 0.0), grp)
            for grp, priority, leased in rows
            if priority is not None and grp not in paused
        ]
        return min(waiting)[3] if waiting else None

    def _settle(self, session: Session, job: Job, statement: Any) -> None:
        """Run a statement on a job that is still ours; raises LeaseLost if it is not."""
        t = self.table.c
        mine = statement.where(t.id == job.id, t.token == job.token, t.state == "leased")
        if not session.execute(mine).rowcount:  # type: ignore[attr-defined]
            raise LeaseLost

    def renew(self, session: Session, job: Job) -> None:
        """Keep the lease."""
        until = self._now(session) + LEASE_SECONDS
        self._settle(session, job, update(self.table).values(lease_until=until))

    def finish(self, session: Session, job: Job) -> None:
        """The work is done, in this transaction."""
        self._settle(session, job, delete(self.table))

    def again(
        self, session: Session, job: Job, delay: float | None, error: str, *, counts: bool
    ) -> None:
        """Put the job back for later, or (None) park it; `counts` towards parking."""
        values = {
            "state": "parked" if delay is None else "ready", "owner": "",
            "not_before": self._now(session) + (delay or 0), "error": error[:2000],
            "attempts": self.table.c.attempts + int(counts),
        }  # fmt: skip
        self._settle(session, job, update(self.table).values(values))

    def unpark(self, session: Session, queue: str, key: str) -> bool:
        """An operator says: try again, from the first attempt."""
        t = self.table.c
        mine = update(self.table).where(t.queue == queue, t.key == key, t.state != "leased")
        result = session.execute(mine.values(state="ready", attempts=0, not_before=0))
        return bool(result.rowcount)  # type: ignore[attr-defined]

    def drop(self, session: Session, queue: str, key: str) -> None:
        """Forget a job, whoever holds it (its lease is lost)."""
        t = self.table.c
        session.execute(delete(self.table).where(t.queue == queue, t.key == key))

    def next_in(self, session: Session, queue: str) -> float | None:
        """Return the seconds until a waiting job is due, None if none waits."""
        t = self.table.c
        due = func.min(t.not_before) - self._now(session)
        found = session.scalar(select(due).where(t.queue == queue, t.state == "ready"))
        return None if found is None else max(0.0, float(found))

    def depths(self, session: Session) -> list[tuple[str, str, int, float]]:
        """Return (queue, state, how many, age in seconds of the oldest)."""
        t = self.table.c
        age = self._now(session) - func.min(t.created_at)
        rows = session.execute(
            select(t.queue, t.state, func.count(), age).group_by(t.queue, t.state)
        )
        return [(q, s, int(n), max(0.0, float(seconds))) for q, s, n, seconds in rows]
