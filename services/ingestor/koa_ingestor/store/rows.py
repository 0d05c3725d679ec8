"""How rows of the catalogue come about and grow."""

import re
from collections.abc import Sequence

from sqlalchemy import text
from sqlmodel import Session, update

from koa_shared.contracts import FilePrepared, Finding, Program, Timeline, utcnow
from koa_shared.db import insert_new, is_postgresql, safe_json

from ..pipeline import clock_skew
from .schema import Frame, FrameCode, Version

DATE = re.compile(r"\.(\d{4})(\d\d)(\d\d)\.")  # in a KOAID
DESCRIBED = ("koaimtyp", "object", "ra", "dec", "exposure")


def take_turns(session: Session) -> None:
    """Let one transaction at a time write frames, before it locks anything else.

    So stream ids are given in the order of commits, two frames of one KOAID are judged
    one after the other, and batches that meet in other orders do not deadlock.
    """
    if is_postgresql(session):
        session.execute(text("SELECT pg_advisory_xact_lock(5264)"))


def merge(
    session: Session, frame: Frame, timeline: Timeline, findings: Sequence[Finding] = ()
) -> None:
    """Add what is new to a frame's timeline and findings; nothing is rewritten."""
    merged = Timeline.model_validate(frame.timeline or {}).merged(timeline)
    frame.timeline = merged.model_dump(mode="json", exclude_none=True)
    before, frame.updated = frame.acquired, utcnow()
    frame.acquired = merged.acquired or before
    # A reduced frame is of its raw frame's night, whenever it was reduced.
    day = DATE.search(frame.koaid or "") if frame.level else None
    night = "-".join(day.groups()) if day else frame.acquired.date().isoformat()
    frame.night = frame.night or night
    known = list(frame.findings or [])
    skewed = any(finding["code"] == "CLOCK_SKEW" for finding in known)
    findings = [*findings, *([] if skewed else clock_skew(merged))]
    told = [finding.model_dump(mode="json") for finding in findings]
    frame.findings = known + [finding for finding in told if finding not in known]
    mine = {"frame_id": frame.frame_id, "generation": frame.generation}
    for code in {finding["code"] for finding in told}:
        insert_new(session, FrameCode, mine | {"code": code, "acquired": frame.acquired})
    if known and frame.acquired != before:
        session.execute(update(FrameCode).filter_by(**mine).values(acquired=frame.acquired))


def new_version(prepared: FilePrepared, number: int) -> Version:
    """Return a claim on a version of a KOAID."""
    raw = {"raw_sha256": prepared.raw.sha256, "raw_size": prepared.raw.size}
    mine = prepared.model_dump(include={"koaid", "level", "frame_id", "generation", "recipe"})
    return Version.model_validate(mine | raw | {"version": number})


def set_program(frame: Frame, program: Program) -> None:
    """Say whose data a frame is."""
    frame.program = program.model_dump(mode="json")
    frame.semid, frame.release_date = program.semid, program.release_date
    released = frame.release_date is not None and frame.release_date <= utcnow()
    frame.released_at = frame.release_date if released else None


def inherit(frame: Frame, raw: Frame) -> None:
    """Make a reduced frame as open as its raw frame, and say of it what only that tells."""
    set_program(frame, Program.model_validate(raw.program or {}))
    for column in DESCRIBED:
        if getattr(frame, column) is None:
            setattr(frame, column, getattr(raw, column))


def describe(frame: Frame, prepared: FilePrepared) -> None:
    """Fill the catalogue's core columns."""
    frame.koaid, frame.core = prepared.koaid, prepared.metadata
    frame.recipe = prepared.recipe.model_dump() if prepared.recipe else None
    frame.night = prepared.utdatetime.date().isoformat()
    set_program(frame, prepared.program)
    for column in DESCRIBED:
        setattr(frame, column, safe_json(prepared.metadata.get(column)))
