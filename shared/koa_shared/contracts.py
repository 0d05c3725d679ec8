"""What crosses a service boundary: messages, statuses, problem documents (design 4).

Times are RFC 3339 UTC with milliseconds, durations seconds, sizes bytes, digests
lower-case hex.  Everything here is version 1 of the wire format, under `/v1`.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import pydantic
from pydantic import AwareDatetime, BaseModel, Field, PlainSerializer, WrapValidator


def utcnow() -> datetime:
    """Return the time now, UTC, cut to milliseconds as the wire shows it."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _told_time(value: Any, validate: Callable[[Any], datetime]) -> datetime:
    if not isinstance(value, datetime) and not _RFC3339.match(str(value)):
        raise ValueError("a time is told as 2025-12-08T12:00:00.000Z")
    try:
        return validate(value).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this time is out of the calendar in UTC") from error


def _told_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("Input should be a number")  # noqa: TRY004 (pydantic's own way)
    return value


NUMBER = pydantic.BeforeValidator(_told_number)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d")
MAX_PATH = 1024  # PostgreSQL indexes no text over 2,700 bytes
NAME = r"^[A-Za-z0-9_+-][A-Za-z0-9._+-]*$"  # of a product
EXAMPLES = json.loads((Path(__file__).parent / "data" / "examples.json").read_text())
Time = Annotated[
    AwareDatetime, WrapValidator(_told_time), PlainSerializer(_rfc3339, when_used="json")
]  # fmt: skip
# What 32 and 64 bits of a database hold (9e18 as every JSON reader tells it, too).
Generation = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]
Count = Annotated[int, Field(ge=0, le=2**31 - 1), NUMBER]
Whole = Annotated[int, Field(ge=0, le=9 * 10**18), NUMBER]
Level = Annotated[int, Field(ge=0, le=2), NUMBER]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
FrameId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]

# Who speaks.
Service = StrEnum("Service", ["MONITOR", "PREPARER", "INGESTOR"])
# How a frame came to be announced.
Origin = StrEnum("Origin", ["LIVE", "RECOVERED", "MANUAL", "REPROCESS", "CANARY"])
# What a finding does: ends the frame, parks it, or only stands on record.
Severity = StrEnum("Severity", ["INVALID", "ERROR", "WARNING"])


class Status(StrEnum):
    """Where a frame is; the order of declaration is the order of rank (design 4)."""

    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    TRANSFERRING = "TRANSFERRING"
    TRANSFERRED = "TRANSFERRED"
    INGESTING = "INGESTING"
    COMPLETE = "COMPLETE"
    INVALID = "INVALID"
    ERROR = "ERROR"
    DUPLICATE = "DUPLICATE"

    @property
    def rank(self) -> int:
        """Position on the road; the ends share that of the first, COMPLETE."""
        order = list(Status)
        return min(order.index(self), order.index(Status.COMPLETE))

    @property
    def is_end(self) -> bool:
        """Whether only a new generation leaves this status."""
        return self.rank == Status.COMPLETE.rank


# Who may set what (design 4); one table for the code, its tests and the docs.
MAY_SET = {
    Service.MONITOR: {"QUEUED"},
    Service.PREPARER: {"PROCESSING", "TRANSFERRING", "TRANSFERRED", "INVALID", "ERROR"},
    Service.INGESTOR: {"INGESTING", "COMPLETE", "DUPLICATE", "INVALID", "ERROR"},
}


def may_follow(old: tuple[int, Status] | None, new: tuple[int, Status], by: Service) -> bool:
    """Tell whether `by` may move a frame from `old` to `new` (generation, status).

    Order is (generation, rank), never time: a later generation always wins, an
    earlier one never; within one, only a higher rank does, so nothing leaves an end.
    """
    if new[1] not in MAY_SET[by]:
        return False
    return old is None or (new[0], new[1].rank) > (old[0], old[1].rank)


def _with_example(schema: dict[str, Any]) -> None:
    """Put the example of data/examples.json into a model's schema."""
    if schema["title"] in EXAMPLES:
        schema["example"] = EXAMPLES[schema["title"]]


class Message(BaseModel, frozen=True, extra="forbid", json_schema_extra=_with_example):
    """A frozen message; unknown fields are refused so that drift is seen at once."""


class Finding(Message):
    """One thing that was noticed about a frame; all are kept (facts 4.3)."""

    code: str = Field(max_length=64, examples=["KOAIMTYP_UDF"])
    severity: Severity
    step: str = Field(max_length=64)
    message: str


class Timeline(Message):
    """When a frame passed each point of the road; never rewritten (design 4)."""

    acquired: Time | None = None
    detected: Time | None = None
    queued: Time | None = None
    process_start: Time | None = None
    process_end: Time | None = None
    transfer_start: Time | None = None
    transfer_end: Time | None = None
    notified: Time | None = None
    ingest_start: Time | None = None
    copy_start: Time | None = None
    copy_end: Time | None = None
    available: Time | None = None

    def merged(self, other: "Timeline") -> "Timeline":
        """Return this timeline with the gaps filled from `other`."""
        return other.model_copy(update=self.model_dump(exclude_none=True))

    @property
    def latency_seconds(self) -> float | None:
        """Acquisition to availability in seconds, None while it is not available."""
        if self.acquired is None or self.available is None:
            return None
        return (self.available - self.acquired).total_seconds()


class Trigger(Message):
    """The keyword broadcast that announced a file; `time` is the server's stamp."""

    service: str
    keyword: str
    value: str
    time: Time


class FrameMessage(Message):
    """What every message about a frame says."""

    frame_id: FrameId
    instrument: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,16}$")]
    level: Level = 0
    origin: Origin
    path: str = Field(max_length=MAX_PATH)


class FileWritten(FrameMessage):
    """Monitor to preparer, `POST /v1/files`: an instrument has written a file."""

    source: str
    size: Whole
    mtime_ns: Whole
    detected: Time
    trigger: Trigger | None = None


class RawFile(Message):
    """The file as the instrument wrote it."""

    size: Whole
    sha256: Sha256
    md5: Md5


class Product(RawFile):
    """One file of a prepared frame, as it lies in the staging bucket."""

    name: str = Field(max_length=255, pattern=NAME)
    role: str = Field(max_length=32, examples=["fits", "preview", "metadata"])
    key: str = Field(min_length=1, max_length=1024)


class Program(Message):
    """Whose data it is; an unknown release date is closed (design 10)."""

    semid: str | None = None
    progid: str | None = None
    pi: str | None = None
    institution: str | None = None
    title: str | None = None
    propint: Annotated[int, NUMBER] | None = Field(default=None, description="months")
    release_date: Time | None = None


class Recipe(Message):
    """What made a frame's products; `rules` is a digest of the instrument's file and rules."""

    software: str = Field(max_length=160, examples=["koa-rti 0.1.0"])
    rules: str = Field(pattern=r"^[0-9a-f]{16}$")


class FilePrepared(FrameMessage):
    """Preparer to ingestor, `POST /v1/frames`: products lie in staging (design 4)."""

    generation: Generation
    attempt: Count = Field(ge=1, description="the fencing token; part of every key")
    koaid: str = Field(max_length=64, pattern=r"^[A-Za-z0-9_+-]+\.\d{8}\.[A-Za-z0-9._+-]+$")
    utdatetime: Time
    products: list[Product] = Field(min_length=1)
    raw: RawFile
    metadata: dict[str, Any] = Field(description="the catalogue's core columns")
    header: list[list[Any]] = Field(description="[keyword, value, comment], in order")
    program: Program
    findings: list[Finding] = []
    timeline: Timeline
    recipe: Recipe | None = None

    @property
    def is_science(self) -> bool:
        """Whether it is no calibration, as far as its header tells."""
        return self.metadata.get("koaimtyp") in (None, "object", "undefined")


class Accepted(Message):
    """What a post between services answers: 202 new, 200 known."""

    frame_id: FrameId
    generation: int
    status: Status


class Event(FrameMessage):
    """Monitor and preparer to ingestor: what happened to a frame."""

    generation: Generation
    seq: Count = Field(description="counts per frame and service; drops repeats")
    at: Time
    service: Service
    status: Status
    step: str
    source: str
    koaid: str | None = None
    findings: list[Finding] = []
    timeline: Timeline = Timeline()
    attempt: Count = 0
    next_attempt_at: Time | None = None
    fingerprint: str | None = Field(default=None, description="of an ERROR: alike is equal")
    program: Program | None = Field(default=None, description="facts that came after the hand-over")
    weather: dict[str, Any] | None = None


class SourceState(Message):
    """The state of one keyword source; sent every 10 s."""

    name: str
    instrument: str
    connected: bool = Field(strict=True)
    heartbeat_age: float | None = Field(default=None, strict=True, description="seconds")
    last_value: str | None = None
    last_frame_at: Time | None = None
    paused: bool = Field(default=False, strict=True)
    paused_why: str | None = Field(default=None, description="by whom, since when, why")


class Inventory(Message):
    """What a rescan found for one night and instrument."""

    night: str
    instrument: str
    at: Time | None = Field(default=None, description="when the disks were read")
    on_disk: Count
    announced: Count
    frame_gaps: list[str] = []


class EventBatch(Message):
    """`POST /v1/events`."""

    events: list[Event] = Field(default=[], max_length=1000)
    sources: list[SourceState] = []
    inventory: Inventory | None = None


class Submission(Message):
    """`POST /v1/files` on the monitor: a person names a file."""

    path: str = Field(max_length=MAX_PATH)
    instrument: str | None = None
    source: str | None = None
    why: str = ""


class Submitted(Message):
    """What the monitor decided about a submission or a broadcast."""

    frame_id: str | None
    decision: Literal["accepted", "duplicate", "ignored"]
    reason: str


class Link(Message):
    """A raw frame, or the newest reduced products of one level, of the same KOAID."""

    frame_id: str
    koaid: str
    level: int
    version: int | None = Field(default=None, description="None while it is on its way")
    status: Status
    pipeline: str | None = None


class FrameView(Message, extra="ignore"):
    """A frame as the status API shows it; hidden fields are None (design 10)."""

    frame_id: str
    koaid: str | None = None
    instrument: str
    level: int
    version: int | None = None
    generation: int | None = None
    status: Status
    step: str
    night: str | None = Field(default=None, description="UT date, YYYY-MM-DD")
    origin: Origin | None = None
    path: str | None = None
    findings: list[Finding]
    timeline: Timeline
    latency_seconds: float | None = None
    products: list[dict[str, Any]] = []
    program: Program | None = None
    recipe: Recipe | None = None
    pipeline: str | None = Field(default=None, description="that reduced it, and its version")
    links: list[Link] = Field(default=[], description="a raw frame's products, a product's raw")
    metadata: dict[str, Any] = Field(default={}, description="core columns")
    attempt: int | None = None
    next_attempt_at: Time | None = None
    fingerprint: str | None = Field(default=None, description="of an ERROR: alike is equal")


class Filters(BaseModel, extra="forbid"):
    """Conditions on frames; those on hidden columns match only what you may see."""

    instrument: str | None = Field(default=None, description="its name: NIRC2")
    night: str | None = Field(None, pattern=r"^\d{4}-\d{2}-\d{2}$", description="UT date")
    status: Status | None = Field(default=None, description="where it is")
    program: str | None = Field(default=None, description="semester and program: 2026B_U294")
    level: int | None = Field(default=None, ge=0, le=2, description="0 is raw, 1 and 2 are reduced")
    type: str | None = Field(default=None, description="KOA's image type: object, bias, arclamp")
    origin: str | None = Field(default=None, description="how it came: live, recovered, manual")
    path: str | None = Field(default=None, description="path as announced")
    name: str | None = Field(default=None, description="file name")
    koaid: str | None = Field(default=None, description="KOAID; all that hold a version of it")
    finding: str | None = Field(default=None, description="code of a finding")
    since: Time | None = Field(default=None, description="written since: 2026-11-23T06:00:00Z")
    limit: int = Field(default=100, ge=1, le=1000, description="frames on a page")
    cursor: str | None = Field(default=None, description="`next` of the page before")


Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list, newest acquired first."""

    items: list[Item]
    next: str | None = Field(default=None, description="cursor of the next page")


class Problem(BaseModel):
    """RFC 9457 problem document; `retryable` decides whether a sender goes on."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    errors: list[dict[str, Any]] | None = None
