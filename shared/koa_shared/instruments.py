"""Instruments are data: reads and checks `data/instruments/*.toml` (design 7)."""

import ast
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from operator import add, mod, mul, sub, truediv
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from .products import Reduced

DATA = Path(__file__).parent / "data"
DEFAULTS = tomllib.loads((DATA / "defaults.toml").read_text())
OPERATORS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv, ast.Mod: mod}
FUNCTIONS: dict[str, Any] = {"abs": abs, "ceil": math.ceil, "floor": math.floor, "round": round}
FUNCTIONS["sqrt"] = math.sqrt
FUNCTIONS["cos"] = lambda degrees: math.cos(math.radians(degrees))
FUNCTIONS["sin"] = lambda degrees: math.sin(math.radians(degrees))


class InstrumentError(Exception):
    """An instrument file can't be used."""


def explain(error: ValidationError) -> str:
    """Return a line for each thing that is wrong, with its place."""
    places = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
    return "\n".join(f"  {place}: {message}" for place, message in places)


def compute(expression: str, number: Callable[[str], float | None]) -> float | None:
    """Return the value of an expression over the numbers of keywords, None if it has none."""
    try:
        result = _evaluate(ast.parse(expression, mode="eval").body, number)
        return result if math.isfinite(result) else None
    except (ArithmeticError, ValueError):  # by zero, too large, of nothing
        return None


def _evaluate(node: ast.expr, number: Callable[[str], float | None]) -> Any:
    # Not a closure that calls itself: that would keep the frame behind `number` alive.
    match node:
        case ast.Constant(int() | float() as constant):
            return constant
        case ast.Name(keyword):
            return math.nan if (found := number(keyword)) is None else found
        case ast.BinOp(left, sign, right):
            return OPERATORS[type(sign)](_evaluate(left, number), _evaluate(right, number))
        case ast.UnaryOp(ast.USub(), operand):
            return -_evaluate(operand, number)
        case ast.Call(ast.Name(function), operands):
            return FUNCTIONS[function](*(_evaluate(operand, number) for operand in operands))
        case _:
            raise TypeError(ast.unparse(node))


def _computable(expression: str) -> str:
    try:
        compute(expression, lambda _: 1.0)
    except (SyntaxError, KeyError, TypeError) as error:
        raise ValueError(f"{expression!r} can't be computed: {error!r}") from error
    return expression


# Numbers, keywords, `+ - * / %`, brackets and FUNCTIONS.
Expression = Annotated[str, AfterValidator(_computable)]


def fields_of(template: str) -> tuple[str, ...]:
    """Return the names that a template such as `{OUTFILE}{FRAMENO:0>4}` takes."""
    return tuple(name for _, name, _, _ in Formatter().parse(template) if name)


def _fillable(template: str) -> str:
    try:
        template.format_map(dict.fromkeys(fields_of(template), ""))
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"{template!r} can't be filled: {error!r}") from error
    return template


Template = Annotated[str, AfterValidator(_fillable)]
# A keyword that rules set, or a name in lower case for later rules.
Name = Annotated[str, Field(pattern=r"^([A-Z0-9_-]{1,8}|[a-z][a-z0-9_]*)$")]
Scalar = bool | int | float | str


class Data(BaseModel, frozen=True, extra="forbid"):
    """A frozen table of a TOML file; a key nobody knows is a mistake."""


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
    path: Template = "{value}"
    heartbeat: Heartbeat | None = None
    test: bool = False  # heard only when named

    @property
    def path_keywords(self) -> tuple[str, ...]:
        """Keywords that are read from the same service to build the path."""
        return tuple(name for name in fields_of(self.path) if name != "value")

    def build_path(self, value: str, read: Mapping[str, str]) -> str:
        """Return the announced path for a trigger value and the keywords read."""
        return self.path.format(value=value, **{k: text.strip() for k, text in read.items()})


class PathRules(Data):
    """Which announced paths are looked at (facts 1.2 steps 7 and 8, 2.6)."""

    contains_one_of: tuple[str, ...] = ()
    ignore: tuple[re.Pattern[str], ...] = ()
    reject: tuple[str, ...] = ()  # frames under such a path end INVALID (FILEPATH_REJECT)

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


# What a keyword's value, or an expression's, must be: docs/instruments.md.
Test = bool | int | float | str | Range | tuple[str | int | float, ...]


def _numbers_of_expressions(when: dict[str, Test]) -> dict[str, Test]:
    for key, test in when.items():
        if key[:1] in ("", "@") and not (key and isinstance(test, bool)):
            raise ValueError(f"{key!r} is asked for as {test!r}, but a flag is true or false")
        if isinstance(test, Range | int | float) and not isinstance(test, bool):
            _computable(key)
    return when


When = Annotated[dict[str, Test], AfterValidator(_numbers_of_expressions)]


class Prefix(Data):
    """A KOAID prefix and when it is the one; `suffix`, a template, comes behind the KOAID."""

    prefix: str = Field(pattern=r"^[A-Z][A-Z0-9]$")
    suffix: Template = Field(default="", pattern=r"^(_|$)")
    when: When = {}


class Case(Data):
    """One value: `value`, that of keyword `copy`, what `expr` gives, or `text`, a template."""

    value: str | int | float | None = None
    copy_of: str | None = Field(default=None, alias="copy")
    match: re.Pattern[str] | None = None  # of a copy: takes a part, a pattern's group
    expr: Expression | None = None
    text: Template | None = None
    when: When = {}

    @model_validator(mode="after")
    def _has_a_value(self) -> Self:
        if [self.value, self.copy_of, self.expr, self.text].count(None) != 3:
            raise ValueError("a case has either `value`, `copy`, `expr` or `text`")
        return self


class Naming(Data):
    """Where a frame's identity comes from (facts 2.1-2.3).

    The first of the `prefixes` that fits is taken.  INSTRUME becomes what the first of its
    cases that holds says; without one the frame is another instrument's.  Keyword
    `instrume_was` keeps what it was before.  `instant` tells date and time together.
    """

    prefixes: tuple[Prefix, ...] = ()
    instrume: tuple[Case, ...] = ()
    instrume_was: str | None = None
    utc: tuple[str, ...] = ("UTC",)
    instant: tuple[Case, ...] = ()
    ofname: tuple[Template, ...] = ("{OFNAME}",)
    koaid_from: str | None = None  # keyword of a name that is a KOAID


class Programs(Data):
    """Whose frames are whose (facts 3.4, 3.5)."""

    progname: tuple[str, ...] = ("PROGNAME",)
    engineering: tuple[When, ...] = ()  # any means the observatory's own data
    schedule: tuple[Case, ...] = ()  # whose schedule counts, "" for none; left out: its own
    only_classical: bool = False  # outside all slots only classical nights count
    target_info: tuple[When, ...] = ({},)  # any means that calibrations tell a secret target


class RuleCall(Data):
    """One line of the ordered list of rules: which, how, when, how much it matters."""

    rule: str
    critical: bool = False
    when: When = {}
    params: dict[str, Any] = {}


Stretch = Literal["asinh", "equalise", "sqrt"]
Turn = Literal["left", "right"] | None


class Picture(Data):
    """One preview of the frames that `when` holds for; `name` stands behind the KOAID.

    Shown is the first image, with `{n}` in `name` each one in its own preview.  Several are
    laid out where their DETSEC says, or in rows, from the bottom, of EXTNAME patterns.
    """

    when: When = {}
    name: str = Field(default="", pattern=r"^([A-Za-z0-9_]|\{n(:0>[1-9])?\})*$")
    layout: Literal["DETSEC"] | tuple[tuple[str, ...], ...] = ()
    overscan: bool = False  # what DATASEC leaves out tells a row's bias and is not shown
    turn: Turn = None  # the whole picture, by 90 degrees
    stretch: Stretch = "asinh"


class Instrument(Data):
    """One instrument, as its TOML file tells it."""

    name: str
    telescope: int | None = None  # of Keck's two; None: TELESCOP tells it
    roots: tuple[str, ...]  # announced directories of its data
    names: str = "*.fits"  # file names a rescan looks at
    paths: PathRules = PathRules()
    min_hdus: tuple[Case, ...] = ()  # of a complete file, by its primary header; none: one
    sources: tuple[Source, ...] = Field(alias="source", default=())
    naming: Naming = Naming()
    programs: Programs = Programs()
    flags: dict[str, tuple[When, ...]] = {}  # `@name` in a condition: any of these
    # Keyword to its cases; the first that holds and has a value counts.
    choices: dict[Name, tuple[Case, ...]] = Field(alias="choose", default={})
    rules: tuple[RuleCall, ...] = ()
    tables: dict[str, dict[str, dict[Name, Scalar]]] = {}  # table to row to what it tells
    wave_unit: Literal["angstrom", "micron", "nm"] | None = None
    catalogue: dict[str, tuple[str, ...]] = {}  # core column to the keywords it is read from
    columns: tuple[dict[str, Any], ...] = Field(alias="column", default=())
    preview: tuple[Picture, ...] = (Picture(),)
    extension_tables: bool = True
    reduced: tuple[Reduced, ...] = ()  # which files make a set of levels 1 and 2
    reduced_roots: tuple[str, ...] = ()  # announced directories of them, besides `roots`

    @model_validator(mode="after")
    def _flags_are_known(self) -> Self:
        known, parts = set[str](), self.model_dump()
        # A flag may name those before it, everything else all of them; conditions stand
        # anywhere in a part, and its text shows them all.
        for name, part in (*parts.pop("flags").items(), (self.name, parts)):
            if unknown := set(re.findall(r"'(@\w+)':", str(part))) - known:
                raise ValueError(f"{name}: nothing before it defines {sorted(unknown)}")
            known.add(f"@{name}")
        return self


def load_instruments(extra: Path | None = None) -> dict[str, Instrument]:
    """Return all instruments; files in `extra` add to the shipped or replace them.

    What a file does not say is as `data/defaults.toml` says it.  Raises InstrumentError,
    with the file's name, when anything can't be used.
    """
    if extra and not extra.is_dir():
        raise InstrumentError(f"{extra} is no directory")
    files = {
        f.name: f for d in (DATA / "instruments", extra) if d for f in sorted(d.glob("*.toml"))
    }
    instruments, owners = dict[str, Instrument](), dict[str, str]()
    for path in files.values():
        try:
            data = DEFAULTS | tomllib.loads(path.read_text())
            tables = {k: DEFAULTS.get(k, {}) | v for k, v in data.items() if isinstance(v, dict)}
            found = Instrument.model_validate(data | tables)
        except ValidationError as error:
            raise InstrumentError(f"{path}:\n{explain(error)}") from error
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InstrumentError(f"{path}: {error}") from error
        if (name := found.name) != path.stem:
            raise InstrumentError(f"{path}: name is {name!r}")
        claims = [f"prefix {p.prefix!r}" for p in found.naming.prefixes]
        for claim in claims + [f"source {source.name!r}" for source in found.sources]:
            if (owner := owners.setdefault(claim, name)) != name:
                raise InstrumentError(f"{path}: {claim} belongs to {owner} already")
        instruments[name] = found
    return instruments
