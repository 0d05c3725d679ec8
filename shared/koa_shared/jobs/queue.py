"""The one durable queue: jobs in the service's own database (design 5).

A job is claimed with a lease and a fencing token, settled in the same transaction as
what it did, and woken without a polling delay.  Leases are on the database's clock; on
SQLite, which one process owns, they end with that process instead.
"""

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
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlmodel import Session

from ..db import JsonColumn
from ..errors import LeaseLost

__all__ = ["Claim", "Job", "JobQueue", "NewJob", "job_table"]

LEASE_SECONDS = 60.0  # a worker renews it every third of that


def job_table(metadata: MetaData) -> Table:
    """Declare the table of jobs in a service's schema."""
    return Table(
        "job",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("queue", String(32), nullable=False),
        Column("key", String(200), nullable=False),
        Column("grp", String(32), nullable=False),
        Column("state", String(8), nullable=False),
        Column("priority", Integer, nullable=False),
        Column("sort_at", Float, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("payload", JsonColumn, nullable=False),
        Column("created_at", Float, nullable=False),
        Column("not_before", Float, nullable=False),
        Column("lease_until", Float, nullable=False),
        Column("owner", String(64), nullable=False),
        Column("token", Integer, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("error", Text, nullable=False),
        Column("trace", String(64), nullable=False),
        UniqueConstraint("queue", "key"),
    )


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
    created_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker may take now."""

    queue: str
    room: int | None = None
    paused: frozenset[str] = frozenset()
    groups: tuple[str, ...] = ()


class JobQueue:
    """The jobs of one service; all methods are functions of a session."""

    def __init__(self, table: Table, instance: str = "") -> None:
        self.table = table
        self.owner = f"{instance[:24]}/{uuid.uuid4()}".lstrip("/")
        self._served: dict[tuple[str, str], float] = {}

    @staticmethod
    def _now(session: Session) -> Any:
        if session.get_bind().dialect.name == "postgresql":
            return func.extract("epoch", func.clock_timestamp())
        # The host's monotonic clock: a stepped wall clock delays no retry.
        return time.monotonic()

    def recover(self, session: Session) -> int:
        """At start on SQLite: take back what the dead process held; return how many."""
        if session.get_bind().dialect.name == "postgresql":
            return 0
        t = self.table.c
        held = session.execute(
            update(self.table).where(t.state == "leased").values(state="ready")
        )
        # Delays were on a clock that may have started anew with the host.
        session.execute(
            update(self.table).values(not_before=0, created_at=self._now(session))
        )
        return int(held.rowcount)  # type: ignore[attr-defined]

    def put(self, session: Session, job: NewJob) -> bool:
        """Add a job; False if one with its key is there already."""
        now = self._now(session)
        values = {
            "queue": job.queue, "key": job.key, "grp": job.grp, "state": "ready",
            "priority": job.priority, "sort_at": job.sort_at, "size": job.size,
            "payload": job.payload, "created_at": now, "not_before": now + job.delay,
            "lease_until": 0.0, "owner": "", "token": 0, "attempts": 0, "error": "",
            "trace": job.trace,
        }  # fmt: skip
        is_pg = session.get_bind().dialect.name == "postgresql"
        statement = (pg_insert if is_pg else sqlite_insert)(self.table).values(values)
        result = session.execute(statement.on_conflict_do_nothing())
        return bool(result.rowcount)  # type: ignore[attr-defined]

    def claim(self, session: Session, want: Claim) -> Job | None:
        """Take the next job: by priority, fair between groups, newest first."""
        t = self.table.c
        now = self._now(session)
        free = or_(t.state == "ready", and_(t.state == "leased", t.lease_until < now))
        if session.get_bind().dialect.name != "postgresql":
            free = t.state == "ready"
        can = and_(free, t.not_before <= now)
        if want.room is not None:
            can = and_(can, t.size <= want.room)
        group = self._next_group(session, want, can)
        if group is None:
            return None
        pick = (
            select(t.id)
            .where(t.queue == want.queue, t.grp == group, can)
            .order_by(t.priority, t.sort_at.desc(), t.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = session.execute(
            update(self.table)
            .where(t.id == pick.scalar_subquery())
            .values(
                state="leased", owner=self.owner, token=t.token + 1,
                lease_until=now + LEASE_SECONDS,
            )
            .returning(
                t.id, t.queue, t.key, t.grp, t.size, t.payload, t.token, t.attempts,
                t.trace, t.created_at,
            )
        ).first()  # fmt: skip
        if row is None:
            return None
        self._served[want.queue, group] = time.monotonic()
        return Job(*row)

    def _next_group(self, session: Session, want: Claim, can: Any) -> str | None:
        t = self.table.c
        rows = session.execute(
            select(
                t.grp,
                func.min(case((can, t.priority))),
                func.sum(case((t.state == "leased", 1), else_=0)),
            )
            .where(t.queue == want.queue)
            .group_by(t.grp)
        ).all()
        open_ = [
            (priority, leased, self._served.get((want.queue, grp), 0.0), grp)
            for grp, priority, leased in rows
            if priority is not None and grp not in want.paused
            and (not want.groups or grp in want.groups)
        ]  # fmt: skip
        return min(open_)[3] if open_ else None

    def _mine(self, job: Job) -> Any:
        t = self.table.c
        return and_(t.id == job.id, t.token == job.token, t.state == "leased")

    def _fenced(self, result: Any) -> None:
        if not result.rowcount:
            raise LeaseLost

    def renew(self, session: Session, job: Job) -> None:
        """Keep the lease; raises LeaseLost when another worker holds the job."""
        until = self._now(session) + LEASE_SECONDS
        self._fenced(
            session.execute(
                update(self.table).where(self._mine(job)).values(lease_until=until)
            )
        )

    def finish(self, session: Session, job: Job) -> None:
        """The work is done, in this transaction; raises LeaseLost if it is not ours."""
        self._fenced(session.execute(delete(self.table).where(self._mine(job))))

    def again(
        self, session: Session, job: Job, delay: float, error: str, *, counts: bool
    ) -> None:
        """Put the job back for later; `counts` if this attempt counts to parking."""
        t = self.table.c
        values: dict[Any, Any] = {
            "state": "ready", "owner": "", "error": error[:2000],
            "not_before": self._now(session) + delay,
            "attempts": t.attempts + int(counts),
        }  # fmt: skip
        self._fenced(
            session.execute(update(self.table).where(self._mine(job)).values(values))
        )

    def park(self, session: Session, job: Job, error: str) -> None:
        """Set the job aside for an operator."""
        self._fenced(
            session.execute(
                update(self.table)
                .where(self._mine(job))
                .values(state="parked", owner="", error=error[:2000])
            )
        )

    def unpark(self, session: Session, queue: str, key: str) -> bool:
        """An operator says: try again, from the first attempt."""
        t = self.table.c
        result = session.execute(
            update(self.table)
            .where(t.queue == queue, t.key == key)
            .where(t.state != "leased")
            .values(state="ready", attempts=0, not_before=0)
        )
        return bool(result.rowcount)  # type: ignore[attr-defined]

    def hurry(self, session: Session, queue: str) -> None:
        """Let jobs that wait for a dependency go now."""
        t = self.table.c
        session.execute(
            update(self.table)
            .where(t.queue == queue, t.state == "ready")
            .values(not_before=0)
        )

    def drop(self, session: Session, queue: str, key: str) -> None:
        """Forget a job, whoever holds it (its lease is lost)."""
        t = self.table.c
        session.execute(delete(self.table).where(t.queue == queue, t.key == key))

    def next_in(self, session: Session, queue: str) -> float | None:
        """Return the seconds until a waiting job is due, None if none waits."""
        t = self.table.c
        due = session.execute(
            select(func.min(t.not_before)).where(t.queue == queue, t.state == "ready")
        ).scalar_one()
        if due is None:
            return None
        now = session.execute(select(self._now(session))).scalar_one()
        return max(0.0, float(due) - float(now))

    def depths(self, session: Session) -> list[tuple[str, str, int, float]]:
        """Return (queue, state, how many, age in seconds of the oldest)."""
        t = self.table.c
        rows = session.execute(
            select(
                t.queue,
                t.state,
                func.count(),
                self._now(session) - func.min(t.created_at),
            ).group_by(t.queue, t.state)
        ).all()
        return [(q, s, int(n), max(0.0, float(age))) for q, s, n, age in rows]
