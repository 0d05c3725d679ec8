"""The ingestor's tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Index, UniqueConstraint
from sqlalchemy.orm import registry
from sqlmodel import BigInteger, Field, SQLModel

from koa_shared.db import JsonColumn, UtcDateTime
from koa_shared.jobs.queue import job_table

__all__ = [
    "Audit",
    "EventSeen",
    "Frame",
    "Inventories",
    "Prepared",
    "SourceSeen",
    "Stream",
    "Version",
    "jobs",
    "metadata",
]


class Base(SQLModel, registry=registry()):
    """The ingestor's own tables."""


metadata = Base.metadata
jobs = job_table(metadata)


def _json() -> Any:
    return Field(default=None, sa_column=Column(JsonColumn))


def _time(*, index: bool = False) -> Any:
    return Field(default=None, sa_type=UtcDateTime, index=index)  # type: ignore[call-overload]


class Frame(Base, table=True):
    """A frame as it stands now; one row from its first event on."""

    __tablename__ = "frame"
    __table_args__ = (
        Index("frame_newest", "acquired", "frame_id"),
        Index("frame_instrument", "instrument", "acquired", "frame_id"),
        Index("frame_status", "status", "acquired", "frame_id"),
        Index("frame_night", "night", "acquired", "frame_id"),
        Index("frame_program", "semid", "acquired", "frame_id"),
        Index("frame_type", "koaimtyp", "acquired", "frame_id"),
    )

    frame_id: str = Field(primary_key=True)
    koaid: str | None = Field(default=None, index=True)
    instrument: str
    level: int
    generation: int
    version: int | None = None
    status: str
    step: str
    origin: str
    source: str
    path: str = Field(index=True)
    name: str = Field(index=True)
    night: str | None = None
    acquired: datetime = Field(sa_type=UtcDateTime)  # type: ignore[call-overload]
    updated: datetime = Field(sa_type=UtcDateTime, index=True)  # type: ignore[call-overload]
    timeline: dict[str, Any] = _json()
    findings: list[Any] = _json()
    products: list[Any] = _json()
    program: dict[str, Any] | None = _json()
    core: dict[str, Any] | None = _json()
    semid: str | None = None
    koaimtyp: str | None = None
    object: str | None = None
    ra: float | None = None
    dec: float | None = None
    exposure: float | None = None
    release_date: datetime | None = _time()
    accepted: bool = False
    attempt: int = 0
    next_attempt_at: datetime | None = _time()


class Version(Base, table=True):
    """A claim on a version of a KOAID; kept for ever once committed."""

    __tablename__ = "version"
    __table_args__ = (UniqueConstraint("koaid", "version"),)

    id: int | None = Field(default=None, primary_key=True)
    koaid: str
    version: int
    frame_id: str = Field(index=True)
    generation: int
    raw_sha256: str = Field(index=True)
    raw_size: int = Field(sa_type=BigInteger)
    committed_at: datetime | None = _time()
    products: list[Any] = _json()
    header: list[Any] | None = _json()
    core: dict[str, Any] | None = _json()


class Prepared(Base, table=True):
    """A FilePrepared as it was accepted; the first for its generation wins."""

    __tablename__ = "prepared"

    frame_id: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)
    body: dict[str, Any] = _json()


class EventSeen(Base, table=True):
    """An event that was applied; drops repeats and is the frame's history."""

    __tablename__ = "event"

    frame_id: str = Field(primary_key=True)
    service: str = Field(primary_key=True)
    seq: int = Field(primary_key=True)
    generation: int
    at: datetime = Field(sa_type=UtcDateTime)  # type: ignore[call-overload]
    status: str
    step: str


class Stream(Base, table=True):
    """The live stream; ids are given in the order of commits."""

    __tablename__ = "stream"

    id: int | None = Field(default=None, primary_key=True)
    frame_id: str
    status: str
    at: datetime = Field(sa_type=UtcDateTime, index=True)  # type: ignore[call-overload]


class SourceSeen(Base, table=True):
    """The last report about a keyword source."""

    __tablename__ = "source"

    name: str = Field(primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)  # type: ignore[call-overload]
    state: dict[str, Any] = _json()


class Inventories(Base, table=True):
    """What the last rescan of a night and instrument found."""

    __tablename__ = "inventory"

    night: str = Field(primary_key=True)
    instrument: str = Field(primary_key=True)
    state: dict[str, Any] = _json()


class Audit(Base, table=True):
    """An operator's deed."""

    __tablename__ = "audit"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime)  # type: ignore[call-overload]
    who: str
    verb: str
    target: str = Field(index=True)
    why: str = ""
    changed: dict[str, Any] = _json()
