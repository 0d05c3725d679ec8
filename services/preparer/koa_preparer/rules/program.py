"""Whose a frame is and how long it is theirs (facts 3.3 SEMESTER, 3.4, 3.5)."""

import re
from datetime import datetime, time, timedelta
from typing import NamedTuple

from ..providers import Facts, Night, Slot
from .frame import Effects, Extra, Frame, Note, View, sets
from .registry import rule

NONE, ENGINEERING = "NONE", "ENG"
PROPINT = 18  # months, where nobody has approved another period
PART = 50  # characters of a title in each of three keywords


class ProgramId(NamedTuple):
    """A program, and `notes` on what was wrong with it."""

    semester: str
    progid: str
    notes: tuple[Note, ...] = ()

    @property
    def semid(self) -> str:
        """Semester and program, such as `2019A_C257`, `2019A_ENG`, `2020B_NONE`."""
        return f"{self.semester}_{self.progid}"

    @property
    def proposal(self) -> str | None:
        """The `semid` to ask the proposals API for, None if there is no proposal."""
        return None if self.progid in (NONE, ENGINEERING) else self.semid


def identify_program(view: View, ut: datetime, facts: Facts) -> ProgramId:
    """Return the program of a frame; of `facts` only night and override count.

    Before KOAIMTYP is known, daytime calibrations are not yet told apart.
    """
    outdir = (view.text("OUTDIR") or view.path.rpartition("/")[0]).rstrip("/")
    text, how = _claimed(view, outdir, ut, facts)
    engineering = any(map(view.holds, view.instrument.programs.engineering))
    if "_ToO_" not in outdir and (engineering or is_open_calibration(view, ut, facts.night)):
        return ProgramId(semester(ut), ENGINEERING)
    text = text.strip().upper()
    if not is_valid(text):
        note = Note("INVALID_PROGID_WARN", f"{text[:40]!r} ({how}) is no program.")
        return ProgramId(semester(ut), NONE, (note,))
    term, _, progid = text.rpartition("_")
    return ProgramId(term or semester(ut), progid)


def schedule_of(view: View) -> str:
    """Return the instrument whose schedule tells the program, "" if none does."""
    cases = view.instrument.programs.schedule
    return str(view.resolve(cases) or "") if cases else view.instrument.name


def semester(ut: datetime) -> str:
    """Return the semester: A is Feb 2 to Aug 1 UT, days begin at 10:00 HST."""
    day = ut - timedelta(hours=20)
    half = "A" if 2 <= day.month < 8 else "B"
    return f"{day.year - (day.month == 1)}{half}"


def is_valid(text: str) -> bool:
    """Tell whether a text can be a program, `PROG` or `YYYYS_PROG`."""
    found = re.fullmatch(r"([^_]{5}_)?[^_]{3,5}", text, re.DOTALL)
    return bool(found) and text != NONE and " " not in text and "PROGID" not in text


def _claimed(view: View, outdir: str, ut: datetime, facts: Facts) -> tuple[str, str]:
    """Return who claims the frame, and how that is known."""
    if facts.override:
        return facts.override, "override"
    for keyword in view.instrument.programs.progname:
        if text := view.text(keyword):
            return text, keyword
    if "_ToO_" in outdir:
        return outdir.rpartition("_")[2], "OUTDIR"
    slots = facts.night.slots if facts.night and schedule_of(view) else ()
    return (_scheduled(view, outdir, ut, slots) if slots else NONE), "schedule"


def _scheduled(view: View, outdir: str, ut: datetime, slots: tuple[Slot, ...]) -> str:
    """Return the slot by OUTDIR's letter, by the time, outside all of them the nearest."""
    if len(slots) == 1:
        return slots[0].project
    if found := re.search("_([A-E])$", outdir):
        place = "ABCDE".index(found[1])
        return slots[place].project if place < len(slots) else NONE
    now = ut.time().replace(second=0, microsecond=0)
    during = [s for s in slots if (s.start or time.min) <= now <= (s.end or time.max)]
    before = slots[:1] if now < (slots[0].start or time.min) else ()
    after = slots[-1:] if now > (slots[-1].end or time.max) else ()
    usual = not view.instrument.programs.only_classical
    outside = [slot for slot in (*before, *after) if usual or slot.kind == "Classical"]
    return next((slot.project for slot in (*during, *outside)), NONE)


def is_open_calibration(view: View, ut: datetime, night: Night | None) -> bool:
    """Tell whether this is a calibration by day that betrays no target (DKOA-82).

    Production takes a frame whose type is not known yet for one (facts 7.3 P8).
    """
    if night is None or night.sunset is None or night.sunrise is None:
        return False
    kind = view.text("KOAIMTYP")
    calibration = not kind.startswith("object") and kind not in ("", "unknown", "undefined")
    secret = any(map(view.holds, view.instrument.programs.target_info))
    return calibration and not secret and not night.sunset <= ut.time() <= night.sunrise


@rule
def program(frame: Frame) -> Effects:
    """SEMESTER and PROG*; SEMID, PROGTITL and PROPINT, months, for the metadata.

    Runs after `image_type`, which tells a calibration (facts 7.3 P8).
    """
    found, known = identify_program(frame, frame.identity.ut, frame.facts), frame.facts.proposal
    yield from found.notes
    pi, institution, title, months = NONE, NONE, "", PROPINT
    if found.progid == ENGINEERING:
        name = frame.instrument.name
        pi, institution, title = f"{name.lower()}eng", "KECK", f"{name} Engineering"
    elif found.proposal and known:
        pi, institution = known.pi or NONE, (known.institution or NONE).replace(" ", "")
        title = known.title or ""
    elif found.proposal and "proposal" in frame.facts.missing:
        yield Note("PROP_API_ERROR", f"Nobody could tell about {found.semid}.")
    if found.proposal and known and known.propint is not None:
        months = known.propint
    elif found.proposal and not found.progid.startswith("E"):
        yield Note("PROPINT_ERROR", f"{PROPINT} months are taken for {found.progid}.")
    if is_open_calibration(frame, frame.identity.ut, frame.facts.night):
        months = 0
    title = title.encode("ascii", "xmlcharrefreplace").decode()
    parts = {f"PROGTL{n + 1}": title[n * PART : (n + 1) * PART] for n in range(3)}
    yield from sets(SEMESTER=found.semester, PROGID=found.progid, PROGPI=pi)
    yield from sets(PROGINST=institution, **parts)
    yield Extra("PROGTITL", title)
    yield Extra("SEMID", found.semid)
    yield Extra("PROPINT", months)
