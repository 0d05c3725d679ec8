"""The report of a night (a UT date), as the ingestor tells it and `koa night` shows it."""

from enum import StrEnum

from pydantic import Field

from .contracts import Count, Inventory, Message, Time, Whole

# Whether anything is missing, the worse behind; UNPROVEN: nobody compared the disks.
Verdict = StrEnum("Verdict", "COMPLETE UNPROVEN UNFINISHED INCOMPLETE")


class TypeTotal(Message):
    """Archived frames of an image type; None for those whose type the caller may not see."""

    type: str | None
    frames: Count
    exposure_seconds: float | None
    bytes: Whole = Field(description="of the raw files")


class Latency(Message):
    """Acquisition to availability of live and recovered frames of generation 1."""

    at: Time | None = Field(description="where its ten minutes begin; None: of the whole night")
    frames: Count
    within_minute: Count
    p50: float
    p90: float
    p99: float
    max: float


class InstrumentNight(Message):
    """A night of an instrument at one level; the states but `missing` add up to `announced`."""

    instrument: str
    level: int
    announced: Count
    archived: Count
    invalid: Count
    duplicate: Count
    parked: Count
    unfinished: Count
    missing: Count = Field(description="archived science frames of which no set came")
    pipelines: list[str] = Field(description="that made its sets, of what the caller may see")
    found: Count = Field(description="of `announced`: found by a rescan, no keyword told of them")
    bytes: Whole = Field(description="of the raw files that are archived")
    exposure_seconds: float | None = Field(description="of what the caller may see")
    types: list[TypeTotal]
    latency: Latency | None
    hours: list[Count] = Field(description="frames acquired in each hour UT")
    inventory: Inventory | None = Field(description="of the disks; `frame_gaps` for operators")
    gaps: Count = Field(description="runs of frame numbers that are not on the disks")
    verdict: Verdict
    reasons: list[str]


class Slow(Message):
    """A frame that took long, and the longest step between two points of its timeline."""

    frame_id: str
    koaid: str | None
    instrument: str
    latency_seconds: float
    hop: str
    hop_seconds: float


class FindingCount(Message):
    """How many frames have a finding, tonight and in the seven nights before."""

    instrument: str
    code: str
    frames: Count
    week: Count


class NightReport(Message):
    """`GET /v1/nights/{date}`."""

    night: str
    made: Time
    verdict: Verdict
    reasons: list[str]
    instruments: list[InstrumentNight]
    worst: list[Slow]
    findings: list[FindingCount]
    latencies: list[Latency]


class Kept(Message):
    """A FITS file that the archive keeps; `sha256` is None for whom the frame is hidden."""

    koaid: str
    version: int
    name: str
    size: Whole
    sha256: str | None = None
