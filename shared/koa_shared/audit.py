"""What operators did and what they hold back, in each service's own database."""

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session

from .contracts import utcnow
from .db import JsonColumn, UtcDateTime, insert_new

Deed = tuple[str, str]  # who, why
SELVES = ("retention", "koa-preparer")  # who act by themselves, thousands of times a night


class Audit:
    """The two tables of a service; the methods are functions of a session."""

    def __init__(self, metadata: sa.MetaData) -> None:
        def texts(*names: str) -> list[sa.Column[Any]]:
            return [sa.Column(n, sa.String, nullable=False, index=n == "target") for n in names]

        def at() -> sa.Column[Any]:
            return sa.Column("at", UtcDateTime, nullable=False)

        key = sa.Column("id", sa.Integer, primary_key=True)
        name = sa.Column("name", sa.String, primary_key=True)
        what = (*texts("who", "verb", "target", "why"), sa.Column("changed", JsonColumn))
        self.deeds = sa.Table("audit", metadata, key, at(), *what)
        self.holds = sa.Table("hold", metadata, name, at(), *texts("who", "why"))

    def record(self, session: Session, verb: str, target: str, deed: Deed, **changed: Any) -> None:
        """Note who did what to which frame, source or instrument, why, and what it changed."""
        what = {"at": utcnow(), "who": deed[0], "why": deed[1], "verb": verb, "target": target}
        session.execute(sa.insert(self.deeds).values(**what, changed=changed))

    def last(self, session: Session, target: str | None = None) -> list[dict[str, Any]]:
        """Return the last 200 deeds of one target, or of all operators, newest first."""
        query = sa.select(self.deeds).order_by(self.deeds.c.id.desc()).limit(200)
        c = self.deeds.c
        query = query.where(c.target == target if target else c.who.not_in(SELVES))
        return [dict(row) for row in session.execute(query).mappings()]

    def hold(self, session: Session, verb: str, name: str, deed: Deed) -> None:
        """Hold a source or an instrument back (`pause`), or let it go on (`resume`)."""
        session.execute(sa.delete(self.holds).where(self.holds.c.name == name))
        if verb == "pause":
            values = {"name": name, "at": utcnow(), "who": deed[0], "why": deed[1]}
            insert_new(session, self.holds, values)
        self.record(session, verb, name, deed)

    def held(self, session: Session) -> dict[str, str]:
        """Return what is held back, and by whom, since when and why."""
        rows = session.execute(sa.select(self.holds))
        return {r.name: f"by {r.who} since {r.at:%Y-%m-%d %H:%M} UTC: {r.why or '-'}" for r in rows}
