"""Rules that every instrument uses, with parameters (facts 3.3, 3.10, 3.11)."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version

from koa_shared.fits import Value

from ..providers import WEATHER_KEYS
from .frame import Effect, Frame, Note, Set
from .registry import ChoiceName, TableName, rule

VERSION = version("koa-rti")


@rule("ut")
def ut(frame: Frame) -> Iterator[Effect]:
    """UT, a copy of UTC where there is none."""
    if not frame.text("UT"):
        yield Set("UT", frame.identity.utc)


@rule("frameno")
def frameno(frame: Frame, *, keyword: str = "FRAMENUM", name: str = "DATAFILE") -> Iterator[Effect]:
    """FRAMENO, from another keyword or the digits after the last `_` of a name."""
    if frame.text("FRAMENO"):
        return
    number = frame.number(keyword)
    if number is None:
        digits = frame.text(name).removesuffix(".fits").rpartition("_")[2]
        if not digits.isdecimal() or not digits.isascii():
            text = f"Neither {keyword} nor {name} tells the frame's number."
            yield Note("SET_FRAMENO_ERROR", text)
            return
        number = int(digits[:18])
        yield Set(keyword, int(number))
    yield Set("FRAMENO", int(number))


@rule("elaptime")
def elaptime(
    frame: Frame, *, products: tuple[tuple[str, ...], ...], digits: int = 4
) -> Iterator[Effect]:
    """ELAPTIME in seconds, the first product whose keywords are all there."""
    if frame.text("ELAPTIME"):
        return
    for keywords in products:
        factors = [n for key in keywords if (n := frame.number(key)) is not None]
        seconds = math.prod(factors)
        if len(factors) == len(keywords) and math.isfinite(seconds):
            yield Set("ELAPTIME", round(seconds, digits or None))
            return
    yield Note("SET_ELAPTIME_ERROR", f"None of {products} is there.")


@rule("image_type")
def image_type(frame: Frame) -> Iterator[Effect]:
    """KOAIMTYP, by the instrument's cases of that name (facts 3.10)."""
    cases = frame.instrument.choices.get("KOAIMTYP", ())
    kind = str(frame.resolve(cases) or "undefined").lower()
    if kind == "undefined":
        yield Note("KOAIMTYP_UDF", "The header does not tell the image type.")
    yield Set("KOAIMTYP", kind)


@rule("choose")
def choose(frame: Frame, *, keyword: ChoiceName) -> Iterator[Effect]:
    """Set a keyword to the value of its first case that holds, or to null."""
    yield Set(keyword, frame.resolve(frame.instrument.choices[keyword]))


@rule("constants")
def constants(
    frame: Frame, *, values: Mapping[str, str | int | float], missing: bool = False
) -> Iterator[Effect]:
    """Set keywords to fixed values; with `missing` only those that are not there."""
    for keyword, value in values.items():
        if not missing or not frame.text(keyword):
            yield Set(keyword, value)


@rule("copy")
def copy(frame: Frame, *, source: str, target: str) -> Iterator[Effect]:
    """Copy a keyword that has a value."""
    if (value := frame.get(source)) is not None:
        yield Set(target, value, f"Copied from {source}")


@rule("lookup")
def lookup(
    frame: Frame, *, keywords: tuple[str, ...], table: TableName, null: bool = False
) -> Iterator[Effect]:
    """Set what a table's row says; rows are named by the keywords' values.

    Names are joined by `/`; a row named by the first ones only serves as well.  Without
    a row the table's keywords become null, if `null`, or stay as they are.
    """
    rows = frame.instrument.tables[table]
    names = {name.lower(): row for name, row in rows.items()}
    parts = [frame.text(keyword).lower() for keyword in keywords]
    row: Mapping[str, Value] = {}
    for n in range(len(parts), 0, -1):
        if found := names.get("/".join(parts[:n])):
            row = found
            break
    else:
        if null:
            row = {key: None for one in rows.values() for key in one}
    for keyword, value in row.items():
        yield Set(keyword, value)


@rule("weather")
def weather(frame: Frame) -> Iterator[Effect]:
    """WX*, GUIDFWHM, GUIDTIME; what is not known is null (facts 3.3)."""
    known = frame.facts.weather
    if known is None and "weather" in frame.facts.missing:
        yield Note("WEATHER_DATA_FAIL", "The weather could not be asked for in time.")
    for key in WEATHER_KEYS:
        yield Set(key, known.values.get(key) if known else None)
    yield Set("WXTIME", _clock(known.time if known else None))
    yield Set("GUIDTIME", _clock(known.guidtime if known else None))


def _clock(at: datetime | None) -> str | None:
    return f"{at:%H:%M:%S}.{at.microsecond // 10000:02}" if at else None


@rule("oa")
def oa(frame: Frame) -> Iterator[Effect]:
    """OA, the observing assistant's alias."""
    night = frame.facts.night
    yield Set("OA", (night and night.oa) or "None")


@rule("stamp")
def stamp(frame: Frame) -> Iterator[Effect]:
    """DATLEVEL, DQA_VERS and DQA_DATE; the date is UTC (facts 7.3 P5)."""
    yield Set("DATLEVEL", 0)
    yield Set("DQA_VERS", VERSION)
    yield Set("DQA_DATE", f"{frame.facts.prepared_at:%Y-%m-%dT%H:%M:%S}")
