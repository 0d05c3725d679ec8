"""Rules that every instrument uses, with parameters (facts 3.3, 3.10, 3.11)."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version

import numpy as np

from koa_shared.fits import Value

from ..providers import WEATHER_KEYS, Weather
from .frame import Effects, Frame, Note, Set, sets
from .registry import Choice, Keys, Table, rule

VERSION = version("koa-rti")
WINDOW = 10  # pixels on both sides of the centre, and left out at both ends (SIG2NOIS)


@rule("ut")
def ut(frame: Frame) -> Effects:
    """UT, a copy of UTC where there is none."""
    if not frame.text("UT"):
        yield Set("UT", frame.identity.utc)


@rule("frameno")
def frameno(frame: Frame, *, keyword: str = "FRAMENUM", name: str = "DATAFILE") -> Effects:
    """FRAMENO, from another keyword or the digits after the last `_` of a name."""
    if frame.text("FRAMENO"):
        return
    number = frame.number(keyword)
    if number is None:
        digits = frame.text(name).removesuffix(".fits").rpartition("_")[2]
        if not re.fullmatch("[0-9]+", digits):
            yield Note("SET_FRAMENO_ERROR", f"Neither {keyword} nor {name} tells the number.")
            return
        number = int(digits[:18])
        yield Set(keyword, number)
    yield Set("FRAMENO", int(number))


@rule("elaptime")
def elaptime(frame: Frame, *, products: tuple[Keys, ...], digits: int = 4) -> Effects:
    """ELAPTIME in seconds, the first product whose keywords are all there."""
    if frame.text("ELAPTIME"):
        return
    times = (time for time in map(frame.product, products) if math.isfinite(time))
    if (seconds := next(times, None)) is None:
        yield Note("SET_ELAPTIME_ERROR", f"None of {products} is there.")
    else:
        yield Set("ELAPTIME", round(seconds, digits or None))


@rule("image_type")
def image_type(frame: Frame) -> Effects:
    """KOAIMTYP, by the instrument's cases of that name (facts 3.10)."""
    cases = frame.instrument.choices.get("KOAIMTYP", ())
    kind = str(frame.resolve(cases) or "undefined").lower()
    if kind == "undefined":
        yield Note("KOAIMTYP_UDF", "The header does not tell the image type.")
    yield Set("KOAIMTYP", kind)


@rule("choose")
def choose(frame: Frame, *, keyword: Choice) -> Effects:
    """Set a keyword to the value of its first case that holds, or to null."""
    yield Set(keyword, frame.resolve(frame.instrument.choices[keyword]))


@rule("constants")
def constants(frame: Frame, *, values: Mapping[str, Value], missing: bool = False) -> Effects:
    """Set keywords to fixed values; with `missing` only those that are not there."""
    yield from sets(**{k: v for k, v in values.items() if not (missing and frame.text(k))})


@rule("lookup")
def lookup(frame: Frame, *, keywords: Keys, table: Table, null: bool = False) -> Effects:
    """Set what a row says; its name is the keywords' values, or the first ones, joined by `/`.

    Without a row the table's keywords become null, if `null`, or stay as they are.
    """
    rows = {name.lower(): row for name, row in frame.instrument.tables[table].items()}
    parts = [frame.text(keyword).lower() for keyword in keywords]
    names = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
    nulls: dict[str, Value] = {key: None for row in rows.values() for key in row if null}
    yield from sets(**next((rows[name] for name in names if name in rows), nulls))


@rule("image_stats")
def image_stats(frame: Frame) -> Effects:
    """IMAGEMN, IMAGESD, IMAGEMD with two decimals."""
    if (found := frame.statistics) is None:
        yield Note("SET_IMAGE_STATS_ERROR", "The primary HDU holds no image.")
        return
    mean, sd, median = (round(n, 2) for n in (found.mean, found.sd, found.median))
    yield from sets(IMAGEMN=mean, IMAGESD=sd, IMAGEMD=median)


@rule("npixsat")
def npixsat(
    frame: Frame, *, level: float = 1, keywords: Keys = (), count: str = "NPIXSAT", limit: str = ""
) -> Effects:
    """Count the pixels at `level` times the keywords' values or above, the `limit`."""
    lowest, found = level * frame.product(keywords), frame.statistics
    if not lowest or not math.isfinite(lowest) or found is None:
        yield Note(f"SET_{count}_ERROR", f"No image, or no {', '.join(keywords)}.")
        return
    yield Set(count, found.count_from(lowest))
    if limit:
        yield Set(limit, int(lowest))


@rule("sig2nois")
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


@rule("weather")
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


@rule("oa")
def oa(frame: Frame) -> Effects:
    """OA, the observing assistant's alias."""
    night = frame.facts.night
    yield Set("OA", (night and night.oa) or "None")


@rule("stamp")
def stamp(frame: Frame) -> Effects:
    """DATLEVEL, DQA_VERS and DQA_DATE; the date is UTC (facts 7.3 P5)."""
    at = f"{frame.facts.prepared_at:%Y-%m-%dT%H:%M:%S}"
    yield from sets(DATLEVEL=0, DQA_VERS=VERSION, DQA_DATE=at)
