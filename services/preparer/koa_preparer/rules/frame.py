"""What rules see of a frame (`View`, `Frame`) and what they may do (`Effect`)."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property

from koa_shared.contracts import Severity
from koa_shared.fits import Buffer, Hdu, Value
from koa_shared.instruments import Case, Instrument, Range, Test, When

from ..providers import Facts
from .pixels import Statistics

# Texts that mean "no value" (facts 3.8); blank ones do too.
NOTHING = ("nan", "-nan", "null")
# Dome-flat elevations by telescope, both limits left out (facts 3.10).
DOMEFLAT_EL = {1: (66.99, 67.03), 2: (44.99, 45.03)}
ANGLE = re.compile(r"([+-]?)(\d+)[: ]+(\d+)[: ]+(\d+(?:\.\d*)?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Set:
    """Write a header keyword; None becomes `null`, "" takes the usual comment."""

    keyword: str
    value: Value
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Extra:
    """Tell the metadata something that stands in no header (PROPINT, PROGTITL)."""

    keyword: str
    value: Value


@dataclass(frozen=True, slots=True)
class Note:
    """Report something with a code of facts 4.3."""

    code: str
    message: str
    severity: Severity = Severity.WARNING


Effect = Set | Extra | Note


@dataclass
class View:
    """A file's headers as rules read them: what was set already hides the original."""

    hdus: Sequence[Hdu]
    path: str
    mtime: datetime
    instrument: Instrument
    values: dict[str, Value] = field(default_factory=dict)

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return a value; absent, blank and `NaN` ones are `default`."""
        value = self.values.get(keyword)
        if value is None:
            value = self.hdus[0].header.get(keyword)
        if isinstance(value, float) and not math.isfinite(value):
            return default
        if isinstance(value, str):
            value = value.strip()
            if not value or value.lower() in NOTHING:
                return default
        return default if value is None else value

    def text(self, keyword: str) -> str:
        """Return a value as text, "" if there is none."""
        return str(self.get(keyword, ""))

    def number(self, keyword: str) -> float | None:
        """Return a value as a finite number, None if it is none."""
        value = self.get(keyword)
        if value is None or isinstance(value, bool):
            return None
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None

    def degrees(self, keyword: str, *, hours: bool = False) -> float | None:
        """Return an angle in degrees; sexagesimal text may be in hours.

        The sign holds for all three parts: `-00:30:00` is -0.5 (not so in production).
        """
        if (number := self.number(keyword)) is not None:
            return number
        if (found := ANGLE.fullmatch(self.text(keyword))) is None:
            return None
        whole, minutes, seconds = (float(part) for part in found.groups()[1:])
        value = whole + minutes / 60 + seconds / 3600
        return value * (15 if hours else 1) * (-1 if found[1] == "-" else 1)

    @property
    def telescope(self) -> int | None:
        """Keck 1 or 2: the instrument's, else what TELESCOP says."""
        known = {"keck i": 1, "keck ii": 2}
        return self.instrument.telescope or known.get(self.text("TELESCOP").lower())

    def holds(self, when: When) -> bool:
        """Tell whether all tests of a condition are true."""
        return all(self._passes(keyword, test) for keyword, test in when.items())

    def any_holds(self, alternatives: Iterable[When]) -> bool:
        """Tell whether one of several conditions is true."""
        return any(self.holds(when) for when in alternatives)

    def _passes(self, keyword: str, test: Test) -> bool:
        match test:
            case bool():
                actual = self._flag(keyword) if keyword[0] == "@" else self.get(keyword)
                return actual is test
            case str():
                text = self.text(keyword).lower()
                return bool(_pattern(test.removeprefix("!")).fullmatch(text)) is not (
                    test.startswith("!")
                )
            case tuple():
                return any(self._passes(keyword, one) for one in test)
            case Range():
                hdus = keyword == "@hdus"
                number = len(self.hdus) if hdus else self.number(keyword)
                return number is not None and test.min <= number <= test.max
            case int() | float():
                return self.number(keyword) == test

    def _flag(self, name: str) -> bool:
        if name == "@domeflat":
            return self._at_domeflat()
        if name == "@tables":
            return any("TABLE" in hdu.kind for hdu in self.hdus)
        return self.any_holds(self.instrument.flags[name[1:]])

    def _at_domeflat(self) -> bool:
        low, high = DOMEFLAT_EL.get(self.telescope or 0, (0.0, 0.0))
        az, dome = self.number("AZ") or 0.0, self.number("DOMEPOSN") or 0.0
        at = low < (self.number("EL") or 0.0) < high
        return at and 83 < abs(dome - az % 360) < 93

    def resolve(self, cases: Iterable[Case]) -> Value:
        """Return the value of the first case that holds and has one, else None."""
        for case in cases:
            if not self.holds(case.when):
                continue
            value: Value = case.value
            if case.copy_of is not None:
                value = self.get(case.copy_of)
                if case.map is not None:
                    value = self.instrument.maps[case.map].get(str(value).lower())
            if value is not None:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a frame is; `updates` mend its header, `notes` say what was wrong."""

    koaid: str
    prefix: str
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
        return Statistics.of(self.data, self.hdus[0])


@cache
def _pattern(test: str) -> re.Pattern[str]:
    text = re.escape(test.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(text, re.DOTALL)
