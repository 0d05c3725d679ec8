"""Instruments are data: reads and checks `data/instruments/*.toml` (design 7).

The monitor uses the sources and path rules, the preparer everything else.  A file
that can't be used stops the service at start, with a sentence that says why.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "Heartbeat",
    "Instrument",
    "InstrumentError",
    "PathRules",
    "RuleCall",
    "Source",
    "load_instruments",
    "shipped_dir",
]


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
    test: bool = Field(default=False, description="heard only when named")

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
    ignore: tuple[str, ...] = (
        "/osiris/test/",
        "/mira/",
        "/hireseng/xdchange/",
        "TEMPFITS.fits",
    )
    ignore_pattern: str = r"KP\.\d{8}\.\d{5}\.\d{2}-\d\.fits"

    def refusal(self, path: str) -> str | None:
        """Return why this announced path is ignored, None if it is not."""
        if not any(part in path for part in self.contains_one_of):
            return f"the path holds none of {', '.join(self.contains_one_of)}"
        for part in self.ignore:
            if part in path:
                return f"the path holds {part}"
        if re.search(self.ignore_pattern, path):
            return "a guider or exposure-meter sub-file of KPF"
        return None


class RuleCall(Data):
    """One line of the ordered list of rules: which, how, and how much it matters."""

    rule: str
    critical: bool = False
    params: dict[str, Any] = {}


class Instrument(Data):
    """One instrument, as its TOML file tells it."""

    name: str
    telescope: int | None = Field(
        default=None, description="Keck number; None: told by TELESCOP")
    roots: tuple[str, ...] = Field(description="announced directories of its data")
    names: str = Field(default="*.fits", description="file names a rescan looks at")
    paths: PathRules = PathRules()
    min_hdus: int = 1
    sources: tuple[Source, ...] = Field(alias="source", default=())


def shipped_dir() -> Path:
    """Return the directory of the shipped instrument files."""
    return Path(__file__).parent / "data" / "instruments"


def _read(path: Path) -> Instrument:
    try:
        return Instrument.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError) as error:
        raise InstrumentError(f"{path}: {error}") from error


def load_instruments(extra: Path | None = None) -> dict[str, Instrument]:
    """Return all instruments by name; files in `extra` add to or replace shipped ones.

    Raises InstrumentError, with the file's name, when anything can't be used.
    """
    files = {f.name: f for f in sorted(shipped_dir().glob("*.toml"))}
    if extra is not None:
        files |= {f.name: f for f in sorted(extra.glob("*.toml"))}
    instruments: dict[str, Instrument] = {}
    for path in files.values():
        instrument = _read(path)
        if f"{instrument.name}.toml" != path.name:
            raise InstrumentError(f"{path}: name is {instrument.name!r}")
        instruments[instrument.name] = instrument
    _check_unique(instruments)
    return instruments


def _check_unique(instruments: Mapping[str, Instrument]) -> None:
    seen: dict[str, str] = {}
    for instrument in instruments.values():
        for source in instrument.sources:
            if source.name in seen:
                raise InstrumentError(
                    f"{instrument.name}: source {source.name!r} belongs to "
                    f"{seen[source.name]} already"
                )
            seen[source.name] = instrument.name
