"""The metadata table of a frame and the columns it has (facts 3.8, 8.2).

Nothing a header says keeps its frame out of the archive: what production refuses
(METADATA_ERROR) is written as `null` here, and is a warning that names the keyword.
"""

import csv
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from koa_shared.contracts import Finding
from koa_shared.fits import Value
from koa_shared.instruments import Data, InstrumentError, explain

from .tables import ipac_text, warning

NULL = "null"
# Texts that stand for no value; the last is what a dead keyword server writes.
NULLS = (NULL, "NaN", "-NaN", "#### Error ###")
CLOCKS = {"date": "%Y-%m-%d", "time": "%H:%M:%S.%f"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
PART, SIXTIETHS = r"(?:\d+\.?\d*|\.\d+)", r"(?:[0-5]?\d(?:\.\d*)?|60(?:\.0*)?)"
ANGLE = re.compile(
    rf"[+-]? *{PART}(?:[:dh ] *{SIXTIETHS}(?:[:m ] *{SIXTIETHS})?)?[dhms]?", re.ASCII
)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
Remark = tuple[str, str]  # the code of a finding, and what is odd


def _listed(value: object) -> object:
    """Read a JSON list, or names between commas, where it is text."""
    if not isinstance(value, str):
        return value
    names = json.loads(value) if value.startswith("[") else value.split(",")
    return [str(name).strip() for name in names]


class Column(Data):
    """One column of the metadata table; `[[column]]` of an instrument file.

    Aliases are the heads of KOA's definition files.  Limits count only where `check` is set.
    """

    model_config = ConfigDict(allow_inf_nan=False, validate_by_name=True)

    keyword: str = Field(alias="FITSKeyword", min_length=1, pattern=r"^[!-{}~]+$")
    type: Literal["char", "integer", "double", "date"] = Field(alias="MetadataDatatype")
    width: int = Field(alias="MetadataWidth", ge=1, le=4096)
    nulls_allowed: bool = Field(default=True, alias="NullsAllowed")
    input_format: Literal["", "date", "time", "angle"] = Field(default="", alias="InputFormat")
    check: bool = Field(default=False, alias="CheckValues")
    min: float = Field(default=-math.inf, alias="MinValue")
    max: float = Field(default=math.inf, alias="MaxValue")
    discrete: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(), alias="DiscreteValues"
    )

    @property
    def size(self) -> int:
        """Characters of a cell: the width, more if keyword or type are longer."""
        return max(self.width, len(self.keyword), len(self.type))


def columns_of(
    instrument: str, tables: Path | None = None, own: Iterable[Mapping[str, Any]] = ()
) -> tuple[Column, ...]:
    """Return KOA's published columns of an instrument, else the core with its `own` laid over.

    Raises InstrumentError for what can't be used.
    """
    published = tables and tables / f"KOA_{instrument}_Keyword_Table.txt"
    if published and published.exists():
        return read_keyword_table(published)
    core = read_keyword_table(Path(str(resources.files("koa_shared"))) / "data/core_columns.tsv")
    try:
        columns = [*core, *map(Column.model_validate, own)]
    except ValidationError as error:
        raise InstrumentError(f"{instrument}: column:\n{explain(error)}") from error
    return tuple({column.keyword: column for column in columns}.values())


def read_keyword_table(path: Path) -> tuple[Column, ...]:
    """Read a definition file as KOA publishes it (facts 3.8), or raise InstrumentError."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            columns = tuple(_columns(csv.DictReader(file, delimiter="\t")))
    except (OSError, KeyError, csv.Error, ValidationError) as error:
        raise InstrumentError(f"{path}: {error!r}") from error
    keywords = [column.keyword for column in columns]
    if keywords[:1] != ["KOAID"] or len(set(keywords)) < len(keywords):
        raise InstrumentError(f"{path}: KOAID must be the first column, and each stand there once")
    return columns


def _columns(rows: Iterable[Mapping[str, str | None]]) -> Iterator[Column]:
    heads = [str(field.alias) for field in Column.model_fields.values()]
    for row in rows:
        # Some rows of KPF's table end early; spaces stand around a few flags.
        cell = {name: (text or "").strip() for name, text in row.items() if name}
        if cell["ValidateFormat"].upper() != "Y":
            cell["InputFormat"] = ""
        if cell["FITSKeyword"] and cell["Source"].upper() != "NEXSCI":
            yield Column.model_validate({head: cell[head] for head in heads if cell[head]})


def metadata_table(
    values: Mapping[str, Value], columns: Sequence[Column], unreadable: Collection[str] = ()
) -> tuple[bytes, list[Finding]]:
    """Return the table's five lines (facts 8.2) and what was noticed about the values.

    `unreadable` are keywords whose card can't be read.
    """
    row, findings = list[str](), list[Finding]()
    for column in columns:
        key, remarks = column.keyword, list[Remark]()
        if key in unreadable:
            remarks.append(("MD_HEADER_KEYWORD_UNREADABLE", "the card can't be read"))
        row.append(_cell(column, None if remarks else values.get(key), remarks))
        findings += [warning(code, "metadata", f"{key}: {odd}") for code, odd in remarks]
    heads = zip(*((c.keyword, c.type, "", NULL * c.nulls_allowed) for c in columns), strict=True)
    return ipac_text([column.size for column in columns], heads, [row]).encode("ascii"), findings


def _cell(column: Column, value: Value, remarks: list[Remark]) -> str:
    """Return a value as its column writes it; what is odd is added to the remarks."""
    value = _cleaned(column, value)
    if value is None or value == "":
        if column.nulls_allowed:
            return NULL if value is None else ""
        remarks.append(("METADATA_ERROR", "there must be a value"))
        return NULL
    try:
        typed = _typed(column, value)
    except (ValueError, OverflowError):
        kind = column.input_format or column.type
        remarks.append(("METADATA_ERROR", f"{value!r:.80} is no {kind}; null is written"))
        return NULL
    text = _fitted(typed, column.size)
    if text is None or (isinstance(typed, str) and text != typed):
        remarks.append(("MD_TRUNCATE", f"{typed!r:.80} is longer than {column.size}"))
    elif isinstance(typed, int) and typed != _number(value):
        remarks.append(("MD_TRUNCATE", f"{value!r:.80} is written as {typed}"))
    remarks += _outside(column, typed) if column.check else ()
    return text or NULL


def _cleaned(column: Column, value: Value) -> Value:
    if isinstance(value, str):
        value = CONTROL.sub(" ", value).rstrip(" ")
        value = value.encode("ascii", "xmlcharrefreplace").decode()  # facts 3.3
    if value in NULLS or (isinstance(value, float) and not math.isfinite(value)):
        value = None
    return 0 if value is None and column.keyword == "EQUINOX" else value


def _typed(column: Column, value: str | float) -> str | int | float:
    """Return the value in its column's type; raises ValueError where it has none."""
    if column.type in ("integer", "double"):
        number = _number(value)
        return int(number) if column.type == "integer" else float(number)
    text = "FT"[value] if isinstance(value, bool) else str(value)
    kind = column.input_format or column.type
    if kind in CLOCKS:
        datetime.strptime(text, CLOCKS[kind])  # noqa: DTZ007 its form alone counts
    elif kind == "angle" and not ANGLE.fullmatch(text.strip()):
        raise ValueError(text)
    return text


def _number(value: str | float) -> int | float:
    if not isinstance(value, str):
        return value
    if not NUMBER.fullmatch(text := value.strip()):
        raise ValueError(value)
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def _fitted(value: str | float, size: int) -> str | None:
    """Return the value's text in `size` characters, None if no text of it fits.

    Text is cut at the end; a double loses digits but no power of ten (facts 3.8).
    """
    text = str(value)
    if len(text) <= size or isinstance(value, str):
        return text[:size]
    mantissa, e, power = text.partition("e")
    cut = mantissa[: max(0, size - len(e + power))]
    if isinstance(value, int) or cut.split(".")[0] != mantissa.split(".")[0]:
        return None
    tidy = str(float(cut + e + power))  # production casts again: no zeros at the end
    return tidy if len(tidy) <= size else cut + e + power


def _outside(column: Column, value: str | float) -> Iterator[Remark]:
    if not isinstance(value, str) and not column.min <= value <= column.max:
        yield "MD_RANGE_ERROR", f"{value!r} is not from {column.min:g} to {column.max:g}"
    allowed = {name.casefold() for name in column.discrete}
    if allowed and str(value).casefold() not in allowed:
        yield "MD_DISCRETE_VAL_ERROR", f"{value!r:.80} is none of the values it may have"
