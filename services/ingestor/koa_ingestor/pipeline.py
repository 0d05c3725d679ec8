"""What the ingestor decides: values in, values out."""

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from koa_shared.contracts import FilePrepared, Finding, Severity, Timeline

# Live before backlog (design 5).
BACKLOG = {"live": 0, "canary": 0, "manual": 1, "recovered": 2, "reprocess": 3}
# What becomes of a prepared frame; ORPHAN: the raw frame of a reduced one is not archived.
Verdict = StrEnum("Verdict", "NEW RESUME WAIT DUPLICATE CONFLICT ORPHAN")


class Claimed(NamedTuple):
    """A version of a KOAID: whose it is, of which bytes, whether it is kept or still may be."""

    version: int
    frame_id: str
    generation: int
    raw_sha256: str
    committed: bool
    alive: bool = True


def judge(
    frame: FilePrepared, versions: Sequence[Claimed], *, accepted: bool
) -> tuple[Verdict, Claimed | None]:
    """Compare a frame with what its KOAID holds already (design 4, "same bytes").

    `accepted` is an operator's word that other raw bytes are the next version; of a reduced
    frame nobody is asked.
    """
    mine = [held for held in versions if held.frame_id == frame.frame_id]
    kept = [held for held in versions if held.committed]
    begun = [held for held in versions if held.alive and not held.committed and held not in mine]
    same = [held for held in kept if held.raw_sha256 == frame.raw.sha256]
    if ours := [held for held in mine if held.generation == frame.generation]:
        return Verdict.RESUME, ours[0]
    if not any(held.committed for held in mine):
        if same:
            return Verdict.DUPLICATE, same[0]
        if kept and not (accepted or frame.level):
            return Verdict.CONFLICT, kept[-1]
    return (Verdict.WAIT, begun[0]) if begun else (Verdict.NEW, None)


def clock_skew(timeline: Timeline) -> list[Finding]:
    """Return the finding that a clock was set, if the timeline does not only go on."""
    known = [(name, at) for name, at in timeline if at is not None]
    back = [(a, b) for a, b in pairwise(known) if b[1] < a[1]][:1]
    texts = [f"{b} is {(t - u).total_seconds():.3f} s before {a}" for (a, t), (b, u) in back]
    why = {"code": "CLOCK_SKEW", "severity": Severity.WARNING, "step": "timeline"}
    return [Finding(**why, message=text) for text in texts]


def archive_key(where: tuple[str, int, str, int], name: str) -> str:
    """Return where a product is kept (design 6): (instrument, level, KOAID, version)."""
    instrument, level, koaid, version = where
    return f"{instrument}/{koaid.split('.')[1]}/lev{level}/{koaid}/v{version}/{name}"


def priority(frame: FilePrepared) -> int:
    """Return a job's priority: live before backlog, science before calibrations."""
    return BACKLOG[frame.origin] * 2 + (not frame.is_science)
