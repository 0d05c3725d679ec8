"""Who a frame is: KOAID, time, instrument, original name (facts 2.1-2.3, 2.6)."""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime

from koa_shared.contracts import Severity
from koa_shared.errors import FrameFault
from koa_shared.ids import Fraction, koaid, safe_name

from .frame import Identity, Note, Set, View

ISO = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)", re.ASCII)
SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{2})", re.ASCII)
CLOCK = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d*)?", re.ASCII)


def identify(view: View, fraction: Fraction = "production") -> Identity:
    """Return a frame's identity, or raise FrameFault; the view shows the repairs from then on.

    What an operator may waive (a path or a name that is not archived) is an invalid note.
    """
    effects = list[Set | Note]()
    for effect in _mend(view, fraction):
        effects.append(effect)
        if isinstance(effect, Set):
            view.values[effect.keyword] = effect.value
    return Identity(view.text("KOAID").removesuffix(".fits"), _ut(view), tuple(effects))


def _mend(view: View, fraction: Fraction) -> Iterator[Set | Note]:
    """Yield the repairs in order; each step sees what those before it have set."""
    for part in view.instrument.paths.reject:
        if part in view.path:
            yield Note("FILEPATH_REJECT", f"The path holds {part}.", Severity.INVALID)
    yield from _instant(view)
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


def _instant(view: View) -> Iterator[Set]:
    """Take date and time from the one value that tells both, if both are good."""
    day, _, text = str(view.resolve(view.instrument.naming.instant)).partition("T")
    if _read_date(day) and (found := CLOCK.fullmatch(text)):
        yield Set("DATE-OBS", day, "Created from DATE keyword value")
        yield Set("UTC", text if found[1] else f"{text}.00", "Created from DATE keyword value")


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
        why = f"INSTRUME {text[:40]!r} is not {view.instrument.name}."
        raise FrameFault("SET_INSTR_ERROR", why, "identity")
    if naming.instrume_was:
        yield Set(naming.instrume_was, text or None)
    if text != str(new):
        yield Set("INSTRUME", new, "" if text.startswith(str(new)) else "Fixing INSTRUME keyword")


def _koaid(view: View, day: date | None, fraction: Fraction) -> str:
    """Return the KOAID that the original name is (KPF), else a new one (facts 2.2)."""
    naming, ut = view.instrument.naming, _ut(view)
    if naming.koaid_from and (text := view.text(naming.koaid_from)):
        found = re.search(f"{_koaids(view)}$", text.removesuffix(".fits"))
        with suppress(ValueError):  # no such date
            same = found and found[1] == f"{day or date.fromisoformat(found[1]):%Y%m%d}"
            if found and same and "_" not in found[0]:
                return found[0]
        why = f"{text[:60]!r} is no KOAID of DATE-OBS {day}."
    elif (fits := next((p for p in naming.prefixes if view.holds(p.when)), None)) is None:
        why = "No KOAID prefix fits this header."
    elif (suffix := view.fill(fits.suffix)) is None:
        why = f"{fits.suffix} must have a value."
    else:
        return safe_name(koaid(fits.prefix, ut.date(), ut.time(), suffix, fraction))
    raise FrameFault("KOAID_CREATE_FAIL", why, "identity")


def _ofname(view: View) -> Iterator[Set | Note]:
    """Yield the original name, which must be that of the file (facts 2.6)."""
    name = next(filter(None, map(view.fill, view.instrument.naming.ofname)), None)
    if name is None:
        why = "The header does not tell the file's name."
        yield Note("BAD_OFNAME", why, Severity.INVALID)
    elif (name := f"{name.removesuffix('.fits')}.fits") != view.basename:
        why = f"The header says {name[:80]!r}, the file is {view.basename[:80]!r}."
        yield Note("MISMATCHED_FILENAME", why, Severity.INVALID)
    yield Set("OFNAME", name or view.basename)
