"""What rules see of a frame (`View`, `Frame`) and what they may do (`Effect`)."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from koa_shared.contracts import Severity
from koa_shared.fits import Buffer, Hdu, Value, pixels
from koa_shared.instruments import Case, Instrument, Range, Test, When

from ..providers import Facts
from .pixels import Statistics

NOTHING = ("", "nan", "-nan", "null")  # texts that mean "no value" (facts 3.8)
# Dome-flat elevations by telescope, both limits left out (facts 3.10).
DOMEFLAT_EL = {1: (66.99, 67.03), 2: (44.99, 45.03)}
ANGLE = re.compile(r"([+-]?)(\d+)[: ]+(\d+)[: ]+(\d+(?:\.\d*)?)", re.ASCII)


class Set(NamedTuple):
    """Write a header keyword; None becomes `null`, "" takes the usual comment."""

    keyword: str
    value: Value
    comment: str = ""


class Extra(NamedTuple):
    """Tell the metadata something that stands in no header (PROPINT, PROGTITL)."""

    keyword: str
    value: Value


class Note(NamedTuple):
    """Report something with a code of facts 4.3."""

    code: str
    message: str
    severity: Severity = Severity.WARNING


Effect = Set | Extra | Note
Effects = Iterator[Effect]  # what a rule yields


def sets(**values: Value) -> Iterator[Set]:
    """Write several keywords, with their usual comments."""
    return (Set(keyword, value) for keyword, value in values.items())


def number_of(value: Value) -> float | None:
    """Return a value as a finite number, None if it is none."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


@dataclass
class View:
    """A file's headers as rules read them: what was set already hides the original."""

    hdus: Sequence[Hdu]
    path: str
    mtime: datetime  # UTC
    instrument: Instrument
    values: dict[str, Value] = field(default_factory=dict)

    def get(self, keyword: str) -> Value:
        """Return a value; absent, blank and `NaN` ones are None."""
        value = self.values.get(keyword)
        if value is None:
            value = self.hdus[0].header.get(keyword)
        if isinstance(value, str):
            value = value.strip()
            return None if value.lower() in NOTHING else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def text(self, *keywords: str) -> str:
        """Return the first value there is as text, "" if there is none."""
        return next((str(v) for key in keywords if (v := self.get(key)) is not None), "")

    def number(self, *keywords: str) -> float | None:
        """Return the first value that is a finite number, None if there is none."""
        numbers = (number_of(self.get(key)) for key in keywords)
        return next((number for number in numbers if number is not None), None)

    def product(self, keywords: Iterable[str]) -> float:
        """Return the product of the keywords' numbers, NaN if one has none."""
        numbers = map(self.number, keywords)
        return float(math.prod(math.nan if n is None else n for n in numbers))

    def degrees(self, keyword: str) -> float | None:
        """Return an angle in degrees; sexagesimal text is in hours for RA.

        The sign holds for all three parts: `-00:30:00` is -0.5 (not so in production).
        """
        if (number := self.number(keyword)) is not None:
            return number
        if (found := ANGLE.fullmatch(self.text(keyword))) is None:
            return None
        whole, minutes, seconds = map(float, found.groups()[1:])
        value = whole + minutes / 60 + seconds / 3600
        return value * (15 if keyword == "RA" else 1) * (-1 if found[1] == "-" else 1)

    @property
    def telescope(self) -> int | None:
        """Keck 1 or 2: the instrument's, else what TELESCOP says."""
        known = {"keck i": 1, "keck ii": 2}
        return self.instrument.telescope or known.get(self.text("TELESCOP").lower())

    def holds(self, when: When) -> bool:
        """Tell whether all tests of a condition are true."""
        return all(self._passes(keyword, test) for keyword, test in when.items())

    def _passes(self, keyword: str, test: Test) -> bool:
        match test:
            case bool():
                actual = self._flag(keyword) if keyword[0] == "@" else self.get(keyword)
                return actual is test
            case str():
                # `[` is no wildcard here.
                pattern = test.removeprefix("!").lower().replace("[", "[[]")
                equal = fnmatchcase(self.text(keyword).lower(), pattern)
                return equal is not test.startswith("!")
            case tuple():
                return any(self._passes(keyword, one) for one in test)
            case Range():
                number = len(self.hdus) if keyword == "@hdus" else self.number(keyword)
                return number is not None and test.min <= number <= test.max
            case int() | float():
                return self.number(keyword) == test

    def _flag(self, name: str) -> bool:
        match name:
            case "@domeflat":
                low, high = DOMEFLAT_EL.get(self.telescope or 0, (0.0, 0.0))
                az, el, dome = (self.number(key) or 0.0 for key in ("AZ", "EL", "DOMEPOSN"))
                return low < el < high and 83 < abs(dome - az % 360) < 93
            case "@tables":
                return any("TABLE" in hdu.kind for hdu in self.hdus)
            case _:
                return any(map(self.holds, self.instrument.flags[name[1:]]))

    def resolve(self, cases: Iterable[Case]) -> Value:
        """Return the value of the first case that holds and has one, else None."""
        for case in (case for case in cases if self.holds(case.when)):
            value = case.value if case.copy_of is None else self.get(case.copy_of)
            if case.map is not None:
                value = self.instrument.maps[case.map].get(str(value).lower())
            if value is not None:
                return value
        return None


class Identity(NamedTuple):
    """Who a frame is; `updates` mend its header, `notes` say what was wrong."""

    koaid: str
    ut: datetime
    date_obs: str
    utc: str
    instrume: str
    ofname: str
    updates: tuple[Set, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(kw_only=True)
class Frame(View):
    """An identified frame, its facts, and `data`, the bytes of its file."""

    identity: Identity
    facts: Facts
    data: Buffer

    @cached_property
    def statistics(self) -> Statistics | None:
        """Statistics of the primary image, None if there is none."""
        raw, get = pixels(self.data, self.hdus[0]), self.hdus[0].header.get
        scale, zero = (  # a text is none: the preview does not read it either
            float(value) if isinstance(value := get(keyword), int | float) else usual
            for keyword, usual in (("BSCALE", 1.0), ("BZERO", 0.0))
        )
        return None if raw is None else Statistics(raw, scale, zero)
