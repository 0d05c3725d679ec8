"""The report of a night, as the ingestor tells it and `koa night` shows it.

Times are RFC 3339 UTC, durations and latencies seconds, sizes bytes.  A night is a UT date.
"""

from enum import StrEnum

from pydantic import Field

from .contracts import Count, Message, Time, Whole

# Whether anything of a night is missing; `unproven`: nobody compared the disks.
Verdict = StrEnum("Verdict", "COMPLETE INCOMPLETE UNFINISHED UNPROVEN")


class NightCount(Message):
    """One night that the catalogue has frames of."""

    night: str
    instruments: dict[str, Count] = Field(description="frames announced, by instrument")


class TypeTotal(Message):
    """Archived frames of an image type; `type` is None for those hidden from the caller."""

    type: str | None
    frames: Count
    exposure_seconds: float | None
    bytes: Whole = Field(description="of the FITS files")


class Latency(Message):
    """Acquisition to availability of what came live and was prepared once (as the objective)."""

    frames: Count
    within_minute: Count
    p50: float
    p90: float
    p99: float
    max: float


class Inventory(Message):
    """What the last comparison of the disks with the monitor's ledger found."""

    at: Time | None
    on_disk: Count
    announced: Count
    gaps: Count = Field(description="runs of frame numbers that are not on the disk")
    frame_gaps: list[str] = Field(default=[], description="which; for operators only")


class InstrumentNight(Message):
    """A night of one instrument at one level; the states add up to `announced`."""

    instrument: str
    level: int
    announced: Count
    archived: Count
    invalid: Count
    duplicate: Count
    parked: Count
    unfinished: Count
    found: Count = Field(description="of `announced`: found by a rescan, nobody announced them")
    bytes: Whole = Field(description="of the archived FITS files")
    exposure_seconds: float | None = Field(description="of what the caller may see")
    types: list[TypeTotal]
    latency: Latency | None
    hours: list[Count] = Field(description="frames acquired in each hour UT")
    inventory: Inventory | None
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


class Latencies(Message):
    """The latencies of ten minutes."""

    at: Time
    frames: Count
    p50: float
    max: float


class NightReport(Message):
    """`GET /v1/nights/{date}`."""

    night: str
    made: Time
    verdict: Verdict
    reasons: list[str]
    instruments: list[InstrumentNight]
    worst: list[Slow]
    findings: list[FindingCount]
    latencies: list[Latencies]


class Kept(Message):
    """One FITS file that the archive keeps; `sha256` is None for whom the frame is hidden."""

    koaid: str
    version: int
    name: str
    size: Whole
    sha256: str | None
