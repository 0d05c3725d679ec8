"""Who a frame is: KOAID, time, instrument, original name (facts 2.1-2.3, 2.6)."""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial

from koa_shared.contracts import Severity
from koa_shared.errors import FrameFault
from koa_shared.ids import Fraction, koaid, safe_name

from .frame import Identity, Note, Set, View

ISO = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)", re.ASCII)
SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{2})", re.ASCII)
CLOCK = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d*)?", re.ASCII)
_fault = partial(FrameFault, step="identity")
_invalid = partial(Note, severity=Severity.INVALID)


def identify(view: View, fraction: Fraction = "production") -> Identity:
    """Return a frame's identity, or raise FrameFault; the view shows the repairs from then on.

    What an operator may waive (a path or a name that is not archived) is an invalid note.
    """
    rejected = [part for part in view.instrument.paths.reject if part in view.path]
    notes = [_invalid("FILEPATH_REJECT", f"The path holds {part}.") for part in rejected]
    updates = list[Set]()
    for effect in _mend(view, fraction):
        if isinstance(effect, Note):
            notes.append(effect)
        else:
            updates.append(effect)
            view.values[effect.keyword] = effect.value
    name = view.text("KOAID").removesuffix(".fits")
    date_obs, utc, instrume, ofname = map(view.text, ("DATE-OBS", "UTC", "INSTRUME", "OFNAME"))
    return Identity(name, _ut(view), date_obs, utc, instrume, ofname, tuple(updates), tuple(notes))


def _mend(view: View, fraction: Fraction) -> Iterator[Set | Note]:
    """Yield the repairs in order; each step sees what those before it have set."""
    text = view.text("DATE-OBS")
    if (day := _read_date(text)) is None:
        yield Note("SET_DATEOBS_WARN", f"DATE-OBS is {text[:40]!r}; the file's time is taken.")
        yield Set("DATE-OBS", f"{view.mtime:%Y-%m-%d}")
    elif text != day.isoformat():
        yield Set("DATE-OBS", day.isoformat(), f"Value corrected ({text[:30]})")
    yield from _clock(view)
    given = view.text("KOAID").removesuffix(".fits")
    known = re.fullmatch(_koaids(view), given)
    if given and not known:
        yield Note("INVALID_KOAID", f"KOAID {given[:40]!r} is none of {view.instrument.name}.")
    if not known:  # else nothing is computed again (facts 2.2)
        yield from _instrume(view)
        yield Set("KOAID", f"{_koaid(view, day, fraction)}.fits")
    yield from _ofname(view)


def _read_date(text: str) -> date | None:
    """Read yyyy-mm-dd, whatever follows, or dd/mm/yy with the century at 50."""
    with suppress(ValueError):
        if found := ISO.match(text):
            return date(*map(int, found.groups()))
        if found := SLASHED.fullmatch(text):
            day, month, year = map(int, found.groups())
            return date(year + (2000 if year < 50 else 1900), month, day)
    return None


def _clock(view: View) -> Iterator[Set | Note]:
    """Mend the time of day; only an absent UTC is looked for under other names."""
    text = view.text(*view.instrument.naming.utc)
    if (found := CLOCK.fullmatch(text)) is None:
        yield Note("SET_UTC_WARN", f"UTC is {text[:40]!r}; the file's time is taken.")
        text = f"{view.mtime:%H:%M:%S}.00"
    elif found[1] in (None, "."):
        yield Note("SET_UTC_WARN", f"UTC {text!r} has no fraction; 0 is taken.")
        text = f"{text[:8]}.00"
    if text != view.text("UTC"):
        yield Set("UTC", text)


def _ut(view: View) -> datetime:
    """Return the mended time; its digits beyond microseconds are left out."""
    return datetime.fromisoformat(f"{view.text('DATE-OBS')}T{view.text('UTC')}").replace(tzinfo=UTC)


def _koaids(view: View) -> str:
    """Return the pattern of the instrument's KOAIDs; its only group is the date."""
    prefixes = "|".join(p.prefix for p in view.instrument.naming.prefixes)
    return rf"(?:{prefixes})\.([0-9]{{8}})\.[0-9]{{5}}\.[0-9]{{2}}(?:_[A-Za-z0-9._+-]*)?"


def _instrume(view: View) -> Iterator[Set]:
    """Check and mend INSTRUME (facts 2.1)."""
    naming, text = view.instrument.naming, view.text("INSTRUME")
    if (new := view.resolve(naming.instrume)) is None:
        raise _fault("SET_INSTR_ERROR", f"INSTRUME {text[:40]!r} is not {view.instrument.name}.")
    if text != str(new):
        if naming.instrume_was and text:
            yield Set(naming.instrume_was, text)
        yield Set("INSTRUME", new, "" if text.startswith(str(new)) else "Fixing INSTRUME keyword")


def _koaid(view: View, day: date | None, fraction: Fraction) -> str:
    """Return the KOAID that the original name is (KPF), else a new one (facts 2.2)."""
    naming, ut = view.instrument.naming, _ut(view)
    if naming.koaid_from and (text := view.text(naming.koaid_from)):
        found = re.search(f"{_koaids(view)}$", text.removesuffix(".fits"))
        if found is None or (day and found[1] != f"{day:%Y%m%d}"):
            raise _fault("KOAID_CREATE_FAIL", f"{text[:60]!r} is no KOAID of DATE-OBS {day}.")
        return found[0]
    prefix = next((p.prefix for p in naming.prefixes if view.holds(p.when)), None)
    if prefix is None:
        raise _fault("KOAID_CREATE_FAIL", "No KOAID prefix fits this header.")
    suffix = ""
    for text in (s.suffix for s in naming.suffixes if view.holds(s.when)):
        if (filled := _filled(view, text)) is None:
            raise _fault("KOAID_CREATE_FAIL", f"{text} must have a value.")
        suffix += safe_name(filled)
    return koaid(prefix, ut.date(), ut.time(), suffix, fraction)


def _ofname(view: View) -> Iterator[Set | Note]:
    """Yield the original name, which must be that of the file (facts 2.6)."""
    basename = view.path.rpartition("/")[2].removesuffix(".gz")
    names = (_filled(view, template, basename) for template in view.instrument.naming.ofname)
    name = next(filter(None, names), None)
    if name is None:
        yield _invalid("BAD_OFNAME", "The header does not tell the file's name.")
    elif (name := f"{name.removesuffix('.fits')}.fits") != basename:
        why = f"The header says {name[:80]!r}, the file is {basename[:80]!r}."
        yield _invalid("MISMATCHED_FILENAME", why)
    yield Set("OFNAME", name or basename)


def _filled(view: View, template: str, basename: str = "") -> str | None:
    """Return a template with its keywords' values, None if one has none."""
    values, zfill = {"basename": basename}, view.instrument.naming.zfill
    for key in set(re.findall(r"{([^}]+)}", template)) - values.keys():
        if not (text := view.text(key)):
            return None
        values[key] = text.removesuffix(".0").zfill(zfill[key]) if key in zfill else text
    return template.format_map(values)
