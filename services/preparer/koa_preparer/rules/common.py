"""The rules that instrument files name, with parameters (facts 3.3, 3.10, 3.11)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from itertools import starmap
from typing import Annotated

import numpy as np
from pydantic import Field

from koa_shared.fits import Value
from koa_shared.instruments import Expression

from ..providers import WEATHER_KEYS, Weather
from .frame import Effects, Extra, Frame, Note, Set, sets
from .registry import NULL, Choices, Table, rule

VERSION = version("koa-rti")
STATISTICS = (("MN", "Mean"), ("SD", "Standard deviation"), ("MD", "Median"))
NONE = (None,) * len(STATISTICS)
NUMBERS = {*range(100)}  # of CCDs and amplifiers
Box = tuple[Expression, Expression, Expression, Expression]  # x1, x2, y1, y2, from 0; x2 is outside
Boxes = dict[Annotated[str, Field(pattern="^[A-Z]{2}$")], Box]
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
def box_stats(
    frame: Frame, *, boxes: Boxes, ccd: Expression, amplifier: Expression, amplifiers: int = 0
) -> Effects:
    """Statistics of boxes in every image: IM01MN02 is the mean in IM of CCD 1, amplifier 2.

    So many `amplifiers` of CCD 1 are told in any case, null if they are not there (HIRES).
    """
    parts: dict[tuple[float | None, float | None], Frame | None]
    parts = {(1, number): None for number in range(1, amplifiers + 1)}
    parts |= {(part.compute(ccd), part.compute(amplifier)): part for part in frame.images()}
    for (chip, output), part in parts.items():
        for box, edges in boxes.items() if {chip, output} <= NUMBERS else ():
            numbers = part and _measured(part, edges)
            if part and not numbers:
                yield Note("SET_IMAGE_STATS_ERROR", f"HDU {part.values['hdu']} has no {box}.")
            for (name, what), value in zip(STATISTICS, numbers or NONE, strict=True):
                keyword = f"{box}{int(chip or 0):02}{name}{int(output or 0):02}"
                yield Set(keyword, value, f"{what} of the pixels {box}")


def _measured(part: Frame, edges: Box) -> tuple[float, ...]:
    """Return mean, standard deviation and median, nothing if the box leaves the image."""
    x1, x2, y1, y2 = (-1 if n is None else int(n) for n in map(part.compute, edges))
    found = part.statistics
    if found is None or found.raw.ndim != 2:
        return ()
    if not (0 <= x1 < x2 <= found.raw.shape[1] and 0 <= y1 < y2 <= len(found.raw)):
        return ()
    with np.errstate(all="ignore"):
        box = found.raw[y1:y2, x1:x2].astype(np.float64) * found.scale + found.zero
        return tuple(round(float(n), 2) for n in (box.mean(), box.std(), np.median(box)))


@rule
def npixsat(
    frame: Frame, *, level: Expression, count: str = "NPIXSAT", mosaic: bool = False
) -> Effects:
    """Count the pixels that are `level` or more; in a `mosaic` all images are counted."""
    lowest, parts = frame.compute(level), frame.images() if mosaic else [frame]
    found = [part.statistics for part in parts if part.statistics]
    if not lowest or not found:
        yield Note(f"SET_{count}_ERROR", f"No image, or no {level}.")
    else:
        yield Set(count, sum(statistics.count_from(lowest) for statistics in found))


@rule
def sig2nois(
    frame: Frame, *, hdu: Expression = "0", centre: Expression = "NAXIS2 / 2", along_x: bool = False
) -> Effects:
    """SIG2NOIS: root of the range of medians, one for each row (or, `along_x`, each column).

    They are of the 20 pixels around `centre`; as in production that of a row is half the
    number of rows.
    """
    number = frame.compute(hdu)
    part = next((part for part in frame.images() if part.values["hdu"] == number), frame)
    found, at = part.statistics, part.compute(centre)
    if found is None or at is None or found.raw.ndim != 2 or min(found.raw.shape) <= 2 * WINDOW:
        yield Note("SET_SIG2NOIS_ERROR", f"HDU {number} holds no image to measure.")
        return
    raw, first = found.raw.T if along_x else found.raw, int(at) - WINDOW
    pixels = raw[WINDOW:-WINDOW, max(0, first) : max(0, first + 2 * WINDOW)]
    if not pixels.size:
        yield Set("SIG2NOIS", None)
        return
    with np.errstate(all="ignore"):
        flux = np.median(pixels.astype(np.float64) * found.scale + found.zero, axis=1)
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
