"""The rules that instrument files name, with parameters (facts 3.3, 3.10, 3.11)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from itertools import starmap

import numpy as np

from koa_shared.fits import Value
from koa_shared.instruments import Expression

from ..providers import WEATHER_KEYS, Weather
from .frame import Effects, Extra, Frame, Note, Set, sets
from .registry import NULL, Choices, Table, rule

VERSION = version("koa-rti")
WINDOW = 10  # pixels on both sides of the centre, and left out at both ends (SIG2NOIS)


@rule
def choose(frame: Frame, *, keywords: Choices, error: str = "", header: bool = True) -> Effects:
    """Set keywords to the value of their first case that holds, or to null, the `error`.

    Without `header` they stand in the metadata alone.
    """
    values = dict(_resolved(frame, keywords))
    yield from sets(**values) if header else starmap(Extra, values.items())
    if error and None in values.values():
        unknown = ", ".join(keyword for keyword, value in values.items() if value is None)
        yield Note(error, f"The header does not tell {unknown}.")


@rule
def choose_each(frame: Frame, *, keywords: Choices, count: int) -> Effects:
    """Set <keyword>01, 02, ... by the headers of so many extensions; null without a value."""
    for number in range(1, count + 1):
        found: dict[str, Value] = dict.fromkeys(keywords)
        if number < len(frame.hdus):
            found |= _resolved(replace(frame, hdus=frame.hdus[number : number + 1]), keywords)
        yield from sets(**{f"{keyword}{number:02}": value for keyword, value in found.items()})


@rule
def fill(frame: Frame, *, keywords: Choices) -> Effects:
    """Set the keywords that are not there; one without a value is SET_<keyword>_ERROR."""
    for keyword, value in _resolved(frame, [key for key in keywords if not frame.text(key)]):
        if value is None:
            yield Note(f"SET_{keyword}_ERROR", f"The header does not tell {keyword}.")
        else:
            yield Set(keyword, value)


def _resolved(frame: Frame, keywords: Iterable[str]) -> Iterator[tuple[str, Value]]:
    """Yield keywords and values; each sees those before it."""
    view = replace(frame, values={**frame.values})
    for keyword in keywords:
        value = view.resolve(frame.instrument.choices[keyword])
        view.values[keyword] = NULL if value is None else value
        yield keyword, value


@rule
def lookup(frame: Frame, *, keyword: str, table: Table, null: bool = False) -> Effects:
    """Set what the table's row named by a keyword's value says; without one null, if `null`."""
    rows = {name.lower(): row for name, row in frame.instrument.tables[table].items()}
    nulls: dict[str, Value] = {key: None for row in rows.values() for key in row if null}
    yield from sets(**rows.get(frame.text(keyword).lower(), nulls))


@rule
def image_type(frame: Frame) -> Effects:
    """KOAIMTYP, by the instrument's cases of that name (facts 3.10)."""
    cases = frame.instrument.choices.get("KOAIMTYP", ())
    kind = str(frame.resolve(cases) or "undefined").lower()
    if kind == "undefined":
        yield Note("KOAIMTYP_UDF", "The header does not tell the image type.")
    yield Set("KOAIMTYP", kind)


@rule
def image_stats(frame: Frame) -> Effects:
    """IMAGEMN, IMAGESD, IMAGEMD with two decimals."""
    if (found := frame.statistics) is None:
        yield Note("SET_IMAGE_STATS_ERROR", "The primary HDU holds no image.")
        return
    mean, sd, median = (round(n, 2) for n in (found.mean, found.sd, found.median))
    yield from sets(IMAGEMN=mean, IMAGESD=sd, IMAGEMD=median)


@rule
def npixsat(frame: Frame, *, level: Expression, count: str = "NPIXSAT") -> Effects:
    """Count the pixels that are `level` or more."""
    lowest, found = frame.compute(level), frame.statistics
    if not lowest or found is None:
        yield Note(f"SET_{count}_ERROR", f"No image, or no {level}.")
    else:
        yield Set(count, found.count_from(lowest))


@rule
def sig2nois(frame: Frame) -> Effects:
    """SIG2NOIS: root of the range of row medians near the centre."""
    found = frame.statistics
    if found is None or found.raw.ndim != 2 or min(found.raw.shape) <= 2 * WINDOW:
        yield Note("SET_SIG2NOIS_ERROR", "The primary HDU holds no image to measure.")
        return
    # As in production the centre along a row is half the number of rows.
    centre = found.raw.shape[0] // 2
    part = found.raw[WINDOW:-WINDOW, centre - WINDOW : centre + WINDOW]
    if not part.size:
        yield Set("SIG2NOIS", None)
        return
    with np.errstate(all="ignore"):
        flux = np.median(part.astype(np.float64) * found.scale + found.zero, axis=1)
        yield Set("SIG2NOIS", float(np.fix(np.sqrt(abs(flux.max() - flux.min())))))


@rule
def weather(frame: Frame) -> Effects:
    """WX*, GUIDFWHM, GUIDTIME; what is not known is null (facts 3.3)."""
    known = frame.facts.weather
    if known is None and "weather" in frame.facts.missing:
        yield Note("WEATHER_DATA_FAIL", "The weather could not be asked for in time.")
    known = known or Weather(values={})
    yield from sets(**{key: known.values.get(key) for key in WEATHER_KEYS})
    yield from sets(WXTIME=_clock(known.time), GUIDTIME=_clock(known.guidtime))


def _clock(at: datetime | None) -> str | None:
    return f"{at:%H:%M:%S.%f}"[:-4] if at else None


@rule
def stamp(frame: Frame) -> Effects:
    """OA, the observing assistant; DATLEVEL, DQA_VERS and DQA_DATE, UTC (facts 7.3 P5)."""
    night, at = frame.facts.night, f"{frame.facts.prepared_at:%Y-%m-%dT%H:%M:%S}"
    yield Set("OA", (night and night.oa) or "None")
    yield from sets(DATLEVEL=0, DQA_VERS=VERSION, DQA_DATE=at)
