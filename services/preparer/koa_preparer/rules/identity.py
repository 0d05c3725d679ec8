"""Who a frame is: KOAID, time, instrument, original name (facts 2.1-2.3, 2.6)."""

import re
from datetime import UTC, date, datetime, time

from koa_shared.errors import FrameFault
from koa_shared.ids import Fraction, koaid, safe_name
from koa_shared.instruments import Suffix

from .frame import Identity, Note, Set, View

STEP = "identity"
ISO = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)", re.ASCII)
SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{2})", re.ASCII)
CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d*))?", re.ASCII)
KOAID = re.compile(r"([A-Z][A-Z0-9])\.(\d{8})\.\d{5}\.\d{2}(_[A-Za-z0-9._+-]*)?", re.ASCII)


def identify(view: View, fraction: Fraction = "production") -> Identity:
    """Return a frame's identity; the view shows the repairs from then on.

    Raises FrameFault with FILEPATH_REJECT, SET_INSTR_ERROR, KOAID_CREATE_FAIL,
    BAD_OFNAME or MISMATCHED_FILENAME.
    """
    for part in view.instrument.paths.reject:
        if part in view.path:
            raise _fault("FILEPATH_REJECT", f"The path holds {part}.")
    notes: list[Note] = []
    day, updates = _date(view, notes)
    clock, more = _clock(view, notes)
    updates += more
    ut = datetime.combine(day or view.mtime.astimezone(UTC).date(), clock, UTC)
    given = _given_koaid(view, notes)
    if given is None:
        updates += _instrume(view)
        _show(view, updates)
        given = _named_koaid(view, day) or _new_koaid(view, ut, fraction)
        updates.append(Set("KOAID", f"{given}.fits"))
    ofname = _ofname(view)
    updates.append(Set("OFNAME", ofname))
    _show(view, updates)
    return Identity(
        koaid=given,
        prefix=given[:2],
        ut=ut,
        date_obs=f"{ut:%Y-%m-%d}",
        utc=view.text("UTC"),
        instrume=view.text("INSTRUME"),
        ofname=ofname,
        updates=tuple(updates),
        notes=tuple(notes),
    )


def _fault(code: str, message: str) -> FrameFault:
    return FrameFault(code, message, STEP)


def _show(view: View, updates: list[Set]) -> None:
    view.values |= {update.keyword: update.value for update in updates}


def _date(view: View, notes: list[Note]) -> tuple[date | None, list[Set]]:
    """Return the observing date, None where only the file's own time is left."""
    text = view.text("DATE-OBS")
    day = _read_date(text)
    if day is None:
        written = f"{view.mtime.astimezone(UTC):%Y-%m-%d}"
        message = f"DATE-OBS is {text[:40]!r}; the file's time is taken."
        notes.append(Note("SET_DATEOBS_WARN", message))
        return None, [Set("DATE-OBS", written)]
    if text == day.isoformat():
        return day, []
    return day, [Set("DATE-OBS", day.isoformat(), f"Value corrected ({text[:30]})")]


def _read_date(text: str) -> date | None:
    """Read yyyy-mm-dd, whatever follows, or dd/mm/yy with the century at 50."""
    try:
        if found := ISO.match(text):
            return date(int(found[1]), int(found[2]), int(found[3]))
        if found := SLASHED.fullmatch(text):
            year = int(found[3])
            century = 2000 if year < 50 else 1900
            return date(century + year, int(found[2]), int(found[1]))
    except ValueError:
        pass
    return None


def _clock(view: View, notes: list[Note]) -> tuple[time, list[Set]]:
    """Return the time of day; only an absent UTC is looked for under other names."""
    text = next((t for key in view.instrument.naming.utc if (t := view.text(key))), "")
    found = CLOCK.fullmatch(text)
    if found is None:
        clock = view.mtime.astimezone(UTC).time().replace(microsecond=0)
        message = f"UTC is {text[:40]!r}; the file's time is taken."
        notes.append(Note("SET_UTC_WARN", message))
        return clock, [Set("UTC", f"{clock:%H:%M:%S}.00")]
    hour, minute, second = (int(found[n]) for n in (1, 2, 3))
    clock = time(hour, minute, second, int((found[4] or "")[:6].ljust(6, "0")))
    if not found[4]:
        notes.append(Note("SET_UTC_WARN", f"UTC {text!r} has no fraction; 0 is taken."))
        text = f"{clock:%H:%M:%S}.00"
    return clock, [] if text == view.text("UTC") else [Set("UTC", text)]


def _given_koaid(view: View, notes: list[Note]) -> str | None:
    """Return the KOAID that the header already has (facts 2.2)."""
    text = view.text("KOAID").removesuffix(".fits")
    found = KOAID.fullmatch(text)
    known = {p.prefix for p in view.instrument.naming.prefixes}
    if text and (found is None or found[1] not in known):
        message = f"The header's KOAID {text[:40]!r} is none of {view.instrument.name}."
        notes.append(Note("INVALID_KOAID", message))
        return None
    return text or None


def _instrume(view: View) -> list[Set]:
    """Check and mend INSTRUME (facts 2.1)."""
    name, how = view.instrument.name, view.instrument.naming.instrume
    text = view.text("INSTRUME")
    if how.force:
        saved = [Set(how.save_as, text)] if how.save_as and text not in ("", name) else []
        return saved if text == name else [*saved, Set("INSTRUME", name)]
    accept = how.accept or (name,)
    right = text in accept if how.exact else text.startswith(accept)
    if text and right and "/mira" not in view.text("OUTDIR"):
        return [] if how.keep or text == name else [Set("INSTRUME", name)]
    if how.copy_from and (text or view.text(how.copy_from)):
        return [] if text else [Set("INSTRUME", view.text(how.copy_from))]
    if view.any_holds(how.evidence):
        return [Set("INSTRUME", name, "Fixing INSTRUME keyword")]
    raise _fault("SET_INSTR_ERROR", f"INSTRUME {text[:40]!r} is not {name}.")


def _named_koaid(view: View, day: date | None) -> str | None:
    """Return the KOAID that the original name is (KPF, facts 2.2)."""
    naming = view.instrument.naming
    if not naming.koaid_from or not (text := view.text(naming.koaid_from)):
        return None
    name = text.removesuffix(".fits")
    for prefix in naming.prefixes:
        name = name[max(0, name.rfind(f"{prefix.prefix}.")) :]
    found = KOAID.fullmatch(name)
    if found is None or found[1] not in {p.prefix for p in naming.prefixes}:
        raise _fault("KOAID_CREATE_FAIL", f"{text[:60]!r} is no KOAID.")
    if day and found[2] != f"{day:%Y%m%d}":
        raise _fault("KOAID_CREATE_FAIL", f"{text[:60]!r} is not of DATE-OBS {day}.")
    return name


def _new_koaid(view: View, ut: datetime, fraction: Fraction) -> str:
    naming = view.instrument.naming
    fitting = (p.prefix for p in naming.prefixes if view.holds(p.when))
    if (prefix := next(fitting, None)) is None:
        raise _fault("KOAID_CREATE_FAIL", "No KOAID prefix fits this header.")
    suffix = "".join(_suffix(view, s) for s in naming.suffixes if view.holds(s.when))
    return koaid(prefix, ut.date(), ut.time(), suffix, fraction)


def _suffix(view: View, suffix: Suffix) -> str:
    keywords = re.findall(r"{([^}]+)}", suffix.suffix)
    values = {key: safe_name(view.text(key)) for key in keywords if view.text(key)}
    if len(values) < len(keywords):
        raise _fault("KOAID_CREATE_FAIL", f"{', '.join(keywords)} must have a value.")
    return suffix.suffix.format_map(values)


def _ofname(view: View) -> str:
    """Return the original name, which must be that of the file (facts 2.6)."""
    basename = view.path.rsplit("/", 1)[-1].removesuffix(".gz")
    for template in view.instrument.naming.ofname:
        if name := _built(view, template, basename):
            break
    else:
        raise _fault("BAD_OFNAME", "The header does not tell the file's name.")
    if name != basename:
        message = f"The header says {name[:80]!r}, the file is {basename[:80]!r}."
        raise _fault("MISMATCHED_FILENAME", message)
    return name


def _built(view: View, template: str, basename: str) -> str | None:
    zfill = view.instrument.naming.zfill
    values = {"basename": basename}
    for key in set(re.findall(r"{([^}]+)}", template)) - {"basename"}:
        if not (text := view.text(key)):
            return None
        values[key] = text.removesuffix(".0").zfill(zfill.get(key, 0))
    name = template.format_map(values)
    return name if name.endswith(".fits") else f"{name}.fits"
