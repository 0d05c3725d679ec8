"""What rules see of a frame (`View`, `Frame`) and what they may do (`Effect`)."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

from koa_shared.contracts import Severity
from koa_shared.fits import Buffer, Hdu, Value, pixels
from koa_shared.instruments import Case, Instrument, Range, Test, When, compute, fields_of

from ..providers import Facts
from .pixels import Statistics

NOTHING = ("", "nan", "-nan", "null")  # texts that mean "no value" (facts 3.8)
ANGLE = re.compile(r"([+-]?)(\d+)[: ]+(\d+)[: ]+(\d+(?:\.\d*)?)", re.ASCII)


class Set(NamedTuple):
    """Write a header keyword; None becomes `null`, "" takes the usual comment."""

    keyword: str
    value: Value
    comment: str = ""


class Extra(NamedTuple):
    """Tell later rules and the metadata what stands in no header (PROPINT, PROGTITL)."""

    keyword: str
    value: Value


class Note(NamedTuple):
    """Report something with a code of facts 4.3."""

    code: str
    message: str
    severity: Severity = Severity.WARNING


Effect = Set | Extra | Note
Effects = Iterator[Effect]  # what a rule yields


def sets(**values: Value) -> Iterator[Set | Extra]:
    """Write several keywords with their usual comments; names in lower case are extras."""
    return (Extra(k, v) if k.islower() else Set(k, v) for k, v in values.items())


@dataclass
class View:
    """A file's headers as rules read them: what was set already hides the original."""

    hdus: Sequence[Hdu]
    path: str
    mtime: datetime  # UTC
    instrument: Instrument
    values: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tables = sum("TABLE" in hdu.kind for hdu in self.hdus)
        own: dict[str, Value] = {"hdus": len(self.hdus), "tables": tables}
        own |= {"basename": self.basename, "ra": self.degrees("RA"), "dec": self.degrees("DEC")}
        self.values = own | {"path": self.path} | self.values

    @property
    def basename(self) -> str:
        """The file's name, as if it were not compressed."""
        return self.path.rpartition("/")[2].removesuffix(".gz")

    @property
    def telescope(self) -> int | None:
        """Keck 1 or 2: the instrument's, else what TELESCOP says."""
        known = {"keck i": 1, "keck ii": 2}
        return self.instrument.telescope or known.get(self.text("TELESCOP").lower())

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
        for value in map(self.get, keywords):
            with suppress(ValueError, OverflowError):
                if not (value is None or isinstance(value, bool)) and math.isfinite(float(value)):
                    return float(value)
        return None

    def compute(self, expression: str) -> float | None:
        """Return what an expression over keywords gives, None if one is no number."""
        return compute(expression, self.number)

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

    def fill(self, template: str) -> str | None:
        """Return a template with its keywords' values, None if one has none."""
        values = {name: self.get(name) for name in fields_of(template)}
        whole = {k: int(v) for k, v in values.items() if isinstance(v, float) and v.is_integer()}
        texts = {k: str(v) for k, v in (values | whole).items()}
        return None if None in values.values() else template.format_map(texts)

    def holds(self, when: When) -> bool:
        """Tell whether all tests of a condition are true."""
        return all(self._passes(key, test) for key, test in when.items())

    def _passes(self, key: str, test: Test) -> bool:
        match test:
            case bool() if key[0] == "@":
                return any(map(self.holds, self.instrument.flags[key[1:]])) is test
            case bool():
                return self.get(key) is test
            case str():
                pattern = test.removeprefix("!").lower().replace("[", "[[]")  # no wildcard here
                return fnmatchcase(self.text(key).lower(), pattern) is not test.startswith("!")
            case tuple():
                return any(self._passes(key, one) for one in test)
            case Range():
                number = self.compute(key)
                return number is not None and test.min <= number <= test.max
            case int() | float():
                return self.compute(key) == test

    def resolve(self, cases: Iterable[Case]) -> Value:
        """Return the value of the first case that holds and has one, else None."""
        values = (self._value(case) for case in cases if self.holds(case.when))
        return next((value for value in values if value is not None), None)

    def _value(self, case: Case) -> Value:
        if case.expr is not None:
            return self.compute(case.expr)
        if case.text is not None:
            return self.fill(case.text)
        if case.copy_of is None:
            return case.value
        if case.match is None:
            return self.get(case.copy_of)
        if (found := case.match.search(self.text(case.copy_of))) is None:
            return None
        text = found[found.lastindex or 0]
        return int(text) if text.isdecimal() else text


class Identity(NamedTuple):
    """Who a frame is, and how its header was mended for it."""

    koaid: str
    ut: datetime
    effects: tuple[Set | Note, ...] = ()


@dataclass(kw_only=True)
class Frame(View):
    """An identified frame, its facts, and `data`, the bytes of its file."""

    identity: Identity
    facts: Facts
    data: Buffer

    image: Hdu | None = None  # whose statistics are asked for, else the primary HDU's

    @cached_property
    def statistics(self) -> Statistics | None:
        """Statistics of an image, None if there is none."""
        hdu = self.image or self.hdus[0]
        raw, header = pixels(self.data, hdu), hdu.header
        known = {"scale": header.get("BSCALE"), "zero": header.get("BZERO")}
        # A text is none: the preview does not read it either.
        told = {key: float(n) for key, n in known.items() if isinstance(n, int | float)}
        return None if raw is None else Statistics(raw, **told)

    def images(self) -> Iterator["Frame"]:
        """Yield a frame for each image; `hdu` is its number, its own keywords come first."""
        for number, hdu in enumerate(self.hdus):
            if pixels(self.data, hdu) is not None:
                own = {card.keyword: card.value for card in reversed(hdu.header.cards)}
                yield replace(self, image=hdu, values=self.values | own | {"hdu": number})
