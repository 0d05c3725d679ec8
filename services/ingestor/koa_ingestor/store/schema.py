"""The ingestor's tables."""

from typing import Any

from sqlalchemy import Index, UniqueConstraint, text
from sqlalchemy.orm import registry
from sqlmodel import BigInteger, Field, SQLModel

from koa_shared.audit import Audit
from koa_shared.contracts import Time
from koa_shared.db import json_field, time_field
from koa_shared.jobs.queue import job_table


class Base(SQLModel, registry=registry()):
    """The ingestor's own tables."""


metadata = Base.metadata
audit = Audit(metadata)
jobs = job_table(metadata)
# Columns that lists filter by; those that hide frames, and that many frames share.
LISTED = ("instrument", "status", "night", "level", "path", "name", "koaid")
HIDING = ("semid", "koaimtyp", "origin")
NEWEST = ("acquired", "frame_id")  # how lists are ordered


def _index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Frame(Base, table=True):
    """A frame as it stands now; one row from its first event on."""

    __table_args__ = (
        Index("frame_newest", *NEWEST),
        *(Index(f"frame_{column}", column, *NEWEST) for column in LISTED + HIDING),
        # One condition that both engines see in `released_at <= now`.
        *(_index(f"frame_open_{c}", c, *NEWEST, where="released_at IS NOT NULL") for c in HIDING),
        _index("frame_closed", "release_date", where="released_at IS NULL"),
    )
    frame_id: str = Field(primary_key=True)
    koaid: str | None = None
    instrument: str
    level: int
    generation: int
    version: int | None = None
    status: str
    step: str
    origin: str
    source: str
    path: str
    name: str
    night: str | None = None
    acquired: Time = time_field()
    updated: Time = time_field()  # no index: it would make every update touch all indexes
    timeline: dict[str, Any] = json_field()
    findings: list[Any] = json_field()
    products: list[Any] = json_field()
    program: dict[str, Any] | None = json_field()
    recipe: dict[str, Any] | None = json_field()
    core: dict[str, Any] | None = json_field()
    semid: str | None = None
    koaimtyp: str | None = None
    object: str | None = None
    ra: float | None = None
    dec: float | None = None
    exposure: float | None = None
    release_date: Time | None = time_field(default=None)
    released_at: Time | None = time_field(default=None)  # `release_date` once that has passed
    accepted: bool = False
    attempt: int = 0
    next_attempt_at: Time | None = time_field(default=None)
    fingerprint: str | None = Field(default=None, index=True)  # of an ERROR


class FrameCode(Base, table=True):
    """The codes of a frame's findings, to look frames up by."""

    __table_args__ = (Index("framecode_newest", "code", "acquired", "frame_id"),)
    frame_id: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)
    code: str = Field(primary_key=True)
    acquired: Time = time_field()


class Version(Base, table=True):
    """A claim on a version of a KOAID; kept for ever once committed."""

    __table_args__ = (UniqueConstraint("koaid", "level", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    koaid: str
    level: int = 0
    version: int
    frame_id: str = Field(index=True)
    generation: int
    raw_sha256: str = Field(index=True)
    raw_size: int = Field(sa_type=BigInteger)
    committed_at: Time | None = time_field(default=None)
    # When its archived bytes were last read whole; after `committed_at`: by a scrub.
    scrubbed_at: Time | None = time_field(default=None, index=True)
    deleted_at: Time | None = time_field(default=None)  # by retention; then `scrubbed_at` is None
    recipe: dict[str, Any] | None = json_field()
    products: list[Any] = json_field()
    header: list[Any] | None = json_field()
    core: dict[str, Any] | None = json_field()


class Damage(Base, table=True):
    """An archived object that is not what the catalogue says; it is not served."""

    koaid: str = Field(primary_key=True)
    level: int = Field(default=0, primary_key=True)
    version: int = Field(primary_key=True)
    product: str = Field(primary_key=True)
    instrument: str
    at: Time = time_field()
    found: str


class Prepared(Base, table=True):
    """A FilePrepared as it was accepted; the first for its generation wins."""

    frame_id: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)
    body: dict[str, Any] = json_field()


class EventSeen(Base, table=True):
    """An event that was applied; drops repeats and is the frame's history."""

    frame_id: str = Field(primary_key=True)
    service: str = Field(primary_key=True)
    seq: int = Field(primary_key=True)
    generation: int
    at: Time = time_field()
    status: str
    step: str


class Stream(Base, table=True):
    """The live stream; ids are given in the order of commits."""

    id: int | None = Field(default=None, primary_key=True)
    frame_id: str
    status: str
    at: Time = time_field(index=True)


class SourceSeen(Base, table=True):
    """The last report about a keyword source."""

    name: str = Field(primary_key=True)
    at: Time = time_field()
    state: dict[str, Any] = json_field()


class NightSeen(Base, table=True):
    """What the last rescan of a night and instrument found."""

    night: str = Field(primary_key=True)
    instrument: str = Field(primary_key=True)
    state: dict[str, Any] = json_field()
