"""The one durable queue: jobs in the service's own database (design 5).

A job is claimed with a lease and a fencing token, settled in the same transaction as
what it did, and woken without a polling delay.  Leases are on the database's clock; on
SQLite, which one process owns, they end with that process instead.
"""

import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session

from ..db import JsonColumn, after_commit, insert_new, is_postgresql, notify
from ..errors import LeaseLost
from .fingerprint import DIED

LATER = 2  # the priority from which on nobody waits for a job: it is no live frame's
LATE_SECONDS = 10.0  # after its file a job is backlog, whatever it was put as
LEASE_SECONDS = 60.0  # a worker renews it every third of that
Paused = Callable[[Session], frozenset[str]]  # the groups that are held back


def job_table(metadata: sa.MetaData) -> sa.Table:
    """Declare the table of jobs in a service's schema."""
    kinds: dict[str, Any] = {
        "queue": sa.String(32), "key": sa.String(200), "grp": sa.String(32),
        "state": sa.String(8), "priority": sa.Integer, "sort_at": sa.Float,
        "size": sa.BigInteger, "payload": JsonColumn, "created_at": sa.Float,
        "not_before": sa.Float, "lease_until": sa.Float, "owner": sa.String(64),
        "token": sa.Integer, "attempts": sa.Integer, "error": sa.Text, "trace": sa.String(64),
        "fingerprint": sa.String(64),
    }  # fmt: skip
    find = "fingerprint"  # the one that is looked for
    columns = [sa.Column(n, k, nullable=False, index=n == find) for n, k in kinds.items()]
    key = sa.Column("id", sa.Integer, primary_key=True)
    once = sa.UniqueConstraint("queue", "key")
    # An id is never given twice: it fences with the token.
    return sa.Table("job", metadata, key, *columns, once, sqlite_autoincrement=True)


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
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job; `token` fences everything done in its name."""

    id: int
    queue: str
    key: str
    grp: str
    priority: int
    size: int
    payload: dict[str, Any]
    token: int
    attempts: int
    trace: str
    fingerprint: str  # of the last failure that counted

    @property
    def is_suspect(self) -> bool:
        """Whether its worker died the last time: then it runs alone."""
        return self.fingerprint.startswith(DIED)


class JobQueue:
    """The jobs of one service; its methods are functions of a session."""

    def __init__(self, table: sa.Table, lease: float = LEASE_SECONDS) -> None:
        self.table, self.lease, self.owner = table, lease, str(uuid.uuid4())
        self._served: dict[tuple[str, str], float] = {}
        # The workshop's: may a new job start at once; start it; look for jobs.
        self.may_start: Callable[[Session, NewJob], bool] = lambda *_: False
        self.start: Callable[[Job], object] = lambda _: None
        self.wake: Callable[[str], object] = lambda _: None

    @staticmethod
    def now(session: Session) -> Any:
        """Return the time in seconds on the clock of the jobs, as an expression or a number."""
        if is_postgresql(session):
            return sa.func.extract("epoch", sa.func.clock_timestamp())
        # The host's monotonic clock: a stepped wall clock delays no retry.
        return time.monotonic()

    def _lease(self, session: Session) -> dict[str, Any]:
        until = self.now(session) + self.lease
        return {"state": "leased", "owner": self.owner, "lease_until": until}

    def _rank(self) -> Any:
        """Return a job's priority as of now: what has waited for long is no longer live."""
        t, old = self.table.c, time.time() - LATE_SECONDS
        is_late = sa.and_(t.priority < LATER, t.sort_at > 0, t.sort_at < old)
        return (t.priority + sa.case((is_late, LATER), else_=0)).label("priority")

    def recover(self, session: Session) -> None:
        """At start on SQLite: delays were on a clock that may have begun anew with the host."""
        if not is_postgresql(session):
            at, now = self.table.c.not_before, self.now(session)
            kept = sa.case((at > now + 60, 0), else_=at)  # no failure's delay is longer
            session.execute(sa.update(self.table).values(not_before=kept, created_at=now))

    def orphans(self, session: Session) -> list[Job]:
        """Return what is leased by a worker that died: on SQLite by any other process."""
        t = self.table.c
        dead = [t.state == "leased", t.owner != self.owner]
        if is_postgresql(session):
            dead.append(t.lease_until < self.now(session))
        rows = session.execute(sa.select(*(t[name] for name in Job.__slots__)).where(*dead))
        return [Job(*row) for row in rows]

    def put(self, session: Session, job: NewJob) -> bool:
        """Add a job; False if one with its key is there already.

        Once that is committed the job starts, if nothing else waits, or wakes its lane.
        """
        started = session.info.setdefault("started", set())  # one of each queue is enough
        late = 0 < job.sort_at < time.time() - LATE_SECONDS  # it waits as backlog does
        at_once = not (job.delay or late or job.queue in started) and self.may_start(session, job)
        values = asdict(job) | {"created_at": self.now(session), "attempts": 0, "error": ""}
        values["not_before"] = values["created_at"] + values.pop("delay")
        values |= {"state": "ready", "owner": "", "lease_until": 0.0, "token": int(at_once)}
        values |= self._lease(session) if at_once else {}
        if (number := insert_new(session, self.table, values, self.table.c.id)) is None:
            return False
        if at_once:
            started.add(job.queue)
            mine = {name: values[name] for name in Job.__slots__ if name != "id"}
            after_commit(session, partial(self.start, Job(id=number, **mine)))
        else:
            self.nudge(session, job.queue)
        return True

    def nudge(self, session: Session, queue: str) -> None:
        """Have all replicas look at a queue once the transaction is durable."""
        after_commit(session, partial(self.wake, queue))
        notify(session, queue)

    def claim(  # noqa: PLR0913 (keyword-only)
        self, session: Session, queue: str, room: int | None = None,
        paused: Paused = lambda _: frozenset(), *, alone: bool = True, live: bool = False,
    ) -> Job | None:  # fmt: skip
        """Take the next job: by priority, fair between groups, newest first; `live` ones only.

        None if the next one is larger than `room`, or a suspect and others run (not
        `alone`): no other one of its priority overtakes it for ever.
        """
        t = self.table.c
        can = sa.and_(t.state == "ready", t.not_before <= self.now(session))
        if live:
            can = sa.and_(can, self._rank() < LATER)
        group = self._next_group(session, queue, paused(session), can)
        if group is None:
            return None
        pick = sa.select(t.id).where(t.queue == queue, t.grp == group, can).limit(1)
        pick = pick.order_by(self._rank(), t.sort_at.desc(), t.id).with_for_update(skip_locked=True)
        fits = [t.size <= (sys.maxsize if room is None else room)]
        fits += [] if alone else [~t.fingerprint.startswith(DIED)]
        row = session.execute(
            sa.update(self.table)
            .where(t.id == pick.scalar_subquery(), *fits)
            .values(self._lease(session) | {"token": t.token + 1})
            .returning(*(t[n] if n != "priority" else self._rank() for n in Job.__slots__))
        ).first()
        if row is None:
            return None
        self._served[queue, group] = time.monotonic()
        job = Job(*row)
        after_commit(session, partial(self.start, job))
        return job

    def _next_group(
        self, session: Session, queue: str, paused: frozenset[str], can: Any
    ) -> str | None:
        t = self.table.c
        first = sa.func.min(sa.case((can, self._rank())))
        running = sa.func.sum(sa.case((t.state == "leased", 1), else_=0))
        mine = sa.select(t.grp, first, running).where(t.queue == queue).group_by(t.grp)
        waiting = [
            (priority, leased, self._served.get((queue, grp), 0.0), grp)
            for grp, priority, leased in session.execute(mine)
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
        self._settle(session, job, sa.update(self.table).values(self._lease(session)))

    def finish(self, session: Session, job: Job) -> None:
        """The work is done, in this transaction; what failed like it is tried in full again."""
        self._settle(session, job, sa.delete(self.table))
        self.open_group(session, job.fingerprint)

    def again(
        self, session: Session, job: Job, delay: float | None, error: str,
        fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        """Put the job back for later, or (None) park it; one with a `fingerprint` counts."""
        values = {
            "state": "parked" if delay is None else "ready", "owner": "",
            "not_before": self.now(session) + (delay or 0), "error": error[:2000],
            # What ran when the process died may be why it died: others go first.
            "priority": self.table.c.priority + int(error.startswith(DIED)),
        }  # fmt: skip
        if fingerprint is not None:
            values |= {"attempts": self.table.c.attempts + 1, "fingerprint": fingerprint}
        self._settle(session, job, sa.update(self.table).values(values))
        self.nudge(session, job.queue)

    def alike(self, session: Session, job: Job, fingerprint: str) -> int:
        """Count this job and the others that failed like it and did not get over it."""
        t = self.table.c
        others = sa.select(sa.func.count()).where(t.fingerprint == fingerprint, t.id != job.id)
        if fingerprint.startswith(DIED):  # one death hits many: only the parked ones count
            others = others.where(t.state == "parked")
        return 1 + (session.scalar(others) or 0)

    def open_group(self, session: Session, fingerprint: str) -> None:
        """What failed like this is over: failures are counted anew."""
        if fingerprint and not fingerprint.startswith(DIED):
            mine = self.table.c.fingerprint == fingerprint
            session.execute(sa.update(self.table).where(mine).values(fingerprint=""))

    def unpark(self, session: Session, queue: str, key: str) -> bool:
        """An operator says: try again, from the first attempt."""
        t = self.table.c
        mine = sa.update(self.table).where(t.queue == queue, t.key == key, t.state == "parked")
        result = session.execute(mine.values(state="ready", attempts=0, not_before=0))
        after_commit(session, partial(self.wake, queue))
        return bool(result.rowcount)  # type: ignore[attr-defined]

    def drop(self, session: Session, queue: str, keys: Any) -> None:
        """Forget jobs, whoever holds them (their lease is lost); `keys` may be a SELECT."""
        t = self.table.c
        mine = t.key.in_([keys] if isinstance(keys, str) else keys)
        session.execute(sa.delete(self.table).where(t.queue == queue, mine))

    def next_in(self, session: Session, queue: str) -> float | None:
        """Return the seconds until a waiting job is due, None if none waits."""
        t = self.table.c
        due = sa.func.min(t.not_before) - self.now(session)
        found = session.scalar(sa.select(due).where(t.queue == queue, t.state == "ready"))
        return None if found is None else max(0.0, float(found))

    def depths(self, session: Session) -> list[tuple[str, str, int, float]]:
        """Return (queue, state, how many, age in seconds of the oldest)."""
        t = self.table.c
        age = self.now(session) - sa.func.min(t.created_at)
        counted = sa.select(t.queue, t.state, sa.func.count(), age).group_by(t.queue, t.state)
        rows = session.execute(counted)
        return [(q, s, int(n), max(0.0, float(seconds))) for q, s, n, seconds in rows]
