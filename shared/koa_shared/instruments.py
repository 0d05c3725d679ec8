"""Instruments are data: reads and checks `data/instruments/*.toml` (design 7)."""

import re
import tomllib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class InstrumentError(Exception):
    """An instrument file can't be used."""


class Data(BaseModel):
    """A frozen table of a TOML file; a key nobody knows is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Heartbeat(Data):
    """A keyword that its server writes every `seconds`."""

    keyword: str
    seconds: float


class Source(Data):
    """One keyword whose broadcast says that a file is written (facts 1.1)."""

    name: str
    service: str
    keyword: str
    required: str | None = None
    path: str = "{value}"
    zfill: dict[str, int] = {}
    heartbeat: Heartbeat | None = None
    test: bool = False  # heard only when named

    @property
    def path_keywords(self) -> tuple[str, ...]:
        """Keywords that are read from the same service to build the path."""
        return tuple(k for k in re.findall(r"{(\w+)}", self.path) if k != "value")

    def build_path(self, value: str, read: Mapping[str, str]) -> str:
        """Return the announced path for a trigger value and the keywords read."""
        texts = {k: v.strip().zfill(self.zfill.get(k, 0)) for k, v in read.items()}
        return self.path.format(value=value, **texts)


class PathRules(Data):
    """Which announced paths are looked at (facts 1.2 steps 7 and 8, 2.6)."""

    contains_one_of: tuple[str, ...] = ("/sdata", "/operations")
    # Patterns; the last is a guider or exposure-meter sub-file of KPF.
    ignore: tuple[str, ...] = (
        *("/osiris/test/", "/mira/", "/hireseng/xdchange/", r"TEMPFITS\.fits"),
        r"KP\.\d{8}\.\d{5}\.\d{2}-\d\.fits",
    )
    # Frames under such a path end INVALID (FILEPATH_REJECT).
    reject: tuple[str, ...] = ("mira", "savier-protected", "SPEC/ORP", "/subtracted", "idf")

    def refusal(self, path: str) -> str | None:
        """Return why this announced path is ignored, None if it is not."""
        if not any(part in path for part in self.contains_one_of):
            return f"the path holds none of {', '.join(self.contains_one_of)}"
        found = next((found for part in self.ignore if (found := re.search(part, path))), None)
        return f"the path holds {found[0]}" if found else None


class Range(Data):
    """Numbers from `min` to `max`, both included; no limit where one is left out."""

    min: float = float("-inf")
    max: float = float("inf")


# What a keyword's value must be (docs/instruments.md).  Text: equal, blanks around it
# and case left out; `*` and `?` are wildcards, `!` in front means not, `""` absent or
# blank, `"!"` there.  A list: one of them.  Number, Range: a number; `{}`: any.
# true, false: a flag (`"@name"`).
Test = bool | int | float | str | Range | tuple[str | int | float, ...]
When = dict[str, Test]


class Prefix(Data):
    """A KOAID prefix and when it is the one; the first that fits is taken."""

    prefix: str = Field(pattern=r"^[A-Z][A-Z0-9]$")
    when: When = {}


class Suffix(Data):
    """Text behind a KOAID, `{KEYWORD}` filled in from the header; all that fit."""

    suffix: str = Field(pattern=r"^_")
    when: When = {}


class Case(Data):
    """One value out of several: `value`, or that of the keyword `copy`, by `map`."""

    value: str | int | float | None = None
    copy_of: str | None = Field(default=None, alias="copy")
    map: str | None = None  # one of `maps`
    when: When = {}

    @model_validator(mode="after")
    def _has_a_value(self) -> Self:
        if (self.value is None) == (self.copy_of is None):
            raise ValueError("a case has either `value` or `copy`")
        return self


class Naming(Data):
    """Where a frame's identity comes from (facts 2.1-2.3).

    INSTRUME becomes what the first of its cases that holds says; without one the frame
    is another instrument's.  Keyword `instrume_was` keeps what it was before.
    """

    prefixes: tuple[Prefix, ...] = ()
    suffixes: tuple[Suffix, ...] = ()
    instrume: tuple[Case, ...] = ()
    instrume_was: str | None = None
    utc: tuple[str, ...] = ("UTC",)
    ofname: tuple[str, ...] = ("{OFNAME}",)
    zfill: dict[str, int] = {}
    koaid_from: str | None = None  # keyword of a name that is a KOAID


class Programs(Data):
    """Whose frames are whose (facts 3.4, 3.5)."""

    progname: tuple[str, ...] = ("PROGNAME",)
    # Any means engineering; the account osrseng is none since 2024-07-19.
    engineering: tuple[When, ...] = (
        {"PROGNAME": ("*eng*", "*calibrations*", "*my program*")},
        {"OUTDIR": ("*kpfeng*", "*kpfdev*", "*kcwieng*", "*kcwirun*", "*hireseng*", "*nspeceng*")},
        {"OUTDIR": ("*nirc2eng*", "*dmoseng*", "*lriseng*", "*esieng*", "*nireseng*")},
        {"OUTDIR": ("*osiriseng*", "*moseng*")},
        {"OBSERVER": ("*keck ipdm*", "*nirspec*")},
        {"CAMERA": "*fpc*"},
    )
    only_classical: bool = False  # outside all slots only classical nights count
    target_info: tuple[When, ...] = ({},)  # any means that calibrations tell a secret target


class RuleCall(Data):
    """One line of the ordered list of rules: which, how, when, how much it matters."""

    rule: str
    critical: bool = False
    when: When = {}
    params: dict[str, Any] = {}


class Instrument(Data):
    """One instrument, as its TOML file tells it."""

    name: str
    telescope: int | None = None  # of Keck's two; None: TELESCOP tells it
    roots: tuple[str, ...]  # announced directories of its data
    names: str = "*.fits"  # file names a rescan looks at
    paths: PathRules = PathRules()
    min_hdus: int = 1
    sources: tuple[Source, ...] = Field(alias="source", default=())
    naming: Naming = Naming()
    programs: Programs = Programs()
    flags: dict[str, tuple[When, ...]] = {}  # `@name` in a condition: any of these
    # Keyword to its cases; the first that holds and has a value counts.
    choices: dict[str, tuple[Case, ...]] = Field(alias="choose", default={})
    rules: tuple[RuleCall, ...] = ()
    maps: dict[str, dict[str, str]] = {}
    tables: dict[str, dict[str, dict[str, Any]]] = {}  # table to row to what it tells
    wave_unit: Literal["angstrom", "micron", "nm"] | None = None
    catalogue: dict[str, tuple[str, ...]] = {}  # core column to the keywords it is read from
    columns: tuple[dict[str, Any], ...] = Field(alias="column", default=())
    preview: dict[str, Any] = {}  # see PreviewSpec
    extension_tables: bool = True

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known, parts = {"@hdus", "@tables", "@domeflat"}, self.model_dump()
        # A flag may name those before it, everything else all of them.
        for where, part in (*parts.pop("flags").items(), (self.name, parts)):
            if unknown := _flags_in(part) - known:
                raise ValueError(f"{where}: nothing before it defines {sorted(unknown)}")
            known.add(f"@{where}")
        for case in (*self.naming.instrume, *chain.from_iterable(self.choices.values())):
            if case.map is not None and case.map not in self.maps:
                raise ValueError(f"there is no map {case.map!r}")
        return self


def _flags_in(part: object) -> set[str]:
    """Return the flags that conditions anywhere in a part name."""
    match part:
        case dict():
            return {key for key in part if key.startswith("@")} | _flags_in([*part.values()])
        case list() | tuple():
            return {flag for inner in part for flag in _flags_in(inner)}
        case _:
            return set()


def load_instruments(extra: Path | None = None) -> dict[str, Instrument]:
    """Return all instruments; files in `extra` add to the shipped or replace them.

    Raises InstrumentError, with the file's name, when anything can't be used.
    """
    places = (Path(__file__).parent / "data" / "instruments", extra)
    files = {f.name: f for place in places if place for f in sorted(place.glob("*.toml"))}
    instruments, owners = dict[str, Instrument](), dict[str, str]()
    for path in files.values():
        try:
            found = Instrument.model_validate(tomllib.loads(path.read_text()))
        except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError) as error:
            raise InstrumentError(f"{path}: {error}") from error
        if (name := found.name) != path.stem:
            raise InstrumentError(f"{path}: name is {name!r}")
        claims = [f"prefix {p.prefix!r}" for p in found.naming.prefixes]
        for claim in claims + [f"source {source.name!r}" for source in found.sources]:
            if (owner := owners.setdefault(claim, name)) != name:
                raise InstrumentError(f"{path}: {claim} belongs to {owner} already")
        instruments[name] = found
    return instruments
