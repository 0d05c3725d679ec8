"""The preparer's tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import registry
from sqlmodel import BigInteger, Field, SQLModel

from koa_shared.audit import Audit
from koa_shared.contracts import Timeline
from koa_shared.db import json_field, time_field
from koa_shared.jobs.outbox import outbox_table
from koa_shared.jobs.queue import job_table


class Base(SQLModel, registry=registry()):
    """The preparer's own tables."""


metadata = Base.metadata
audit = Audit(metadata)
jobs = job_table(metadata)
outbox = outbox_table(metadata)


class File(Base, table=True):
    """One announced file, or set of reduced products, and the last generation of its preparation.

    Of a set `path` is the directory, `size` the bytes that are held at once.
    """

    frame_id: str = Field(primary_key=True)
    path: str = Field(index=True)
    size: int = Field(sa_type=BigInteger)
    mtime_ns: int = Field(sa_type=BigInteger)
    instrument: str
    source: str
    level: int
    origin: str
    detected: datetime = time_field(index=True)
    trigger: dict[str, Any] | None = json_field()
    generation: int = 1
    status: str
    step: str = "announced"
    seq: int = 0
    koaid: str | None = None
    seen_size: int | None = Field(default=None, sa_type=BigInteger)
    seen_at: datetime | None = time_field(default=None)
    read_size: int | None = Field(default=None, sa_type=BigInteger)
    read_mtime_ns: int | None = Field(default=None, sa_type=BigInteger)
    raw_sha256: str | None = None
    facts: dict[str, Any] | None = json_field()
    options: dict[str, Any] = json_field()
    timeline: dict[str, Any] = json_field()
    findings: list[Any] = json_field()
    prepared: dict[str, Any] | None = json_field()
    attempt: int = 0
    next_attempt_at: datetime | None = time_field(default=None)
    fingerprint: str | None = Field(default=None, index=True)  # of an ERROR
    rules: str | None = None  # digest of what made the last products
    delivery: str | None = Field(default=None, index=True)  # of a set of levels 1 and 2

    def merge(self, timeline: Timeline) -> None:
        """Add what is new to the timeline; nothing is rewritten."""
        merged = Timeline.model_validate(self.timeline or {}).merged(timeline)
        self.timeline = merged.model_dump(mode="json", exclude_none=True)


class Delivery(Base, table=True):
    """A delivery of reduced products, as it was ordered; its sets are files."""

    delivery: str = Field(primary_key=True)
    at: datetime = time_field()
    order: dict[str, Any] = json_field()


class Campaign(Base, table=True):
    """Frames that an operator has prepared anew, many together."""

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = time_field()
    who: str
    why: str
    state: str = "running"  # paused, parked, cancelled, done
    note: str = ""  # why it is parked
    dry_run: bool = False
    wanted: dict[str, Any] = json_field()  # which frames
    options: dict[str, Any] = json_field()  # what is otherwise about them
    per_minute: float
    cursor: str | None = None  # how far the selection is
    is_selected: bool = False
    since: datetime = time_field()  # from when on failures count

    def told(self) -> dict[str, Any]:
        """Return what operators see of it."""
        return {"campaign": self.id} | self.model_dump(exclude={"id", "cursor", "since"})


class CampaignFrame(Base, table=True):
    """A frame of a campaign, and what became of it."""

    __table_args__ = (UniqueConstraint("campaign", "frame_id"),)
    id: int | None = Field(default=None, primary_key=True)
    campaign: int = Field(index=True)
    frame_id: str
    state: str = "waiting"  # ordered, done, failed, skipped
    was: str = ""  # its status before
    generation: int | None = None  # that the campaign made
    fault: str | None = None
    changes: dict[str, Any] | None = json_field()
    at: datetime = time_field()
