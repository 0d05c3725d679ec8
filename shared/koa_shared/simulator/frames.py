"""Frames of the simulated instruments: a template (TOML), a request, and the bytes.

Sizes are the real ones unless a size is asked for (facts 0, 8.3, 8.4); the axes are
then scaled alike.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from pydantic import Field

from ..ids import koaid, normal_path
from .cards import Card, Value
from .faults import FAULTS
from .hdus import Data, Detector, units
from .sky import mjd, pointing

__all__ = [
    "Camera",
    "Exposure",
    "Kind",
    "Request",
    "Template",
    "build",
    "path_of",
    "templates",
]

WRITE = 4 * 2**20  # bytes a time, as an instrument's writer does
HERE = Path(__file__).parent


class Camera(Detector):
    """One source's detector: names, shape and own cards.

    `folder` comes behind the night's directory; `whole_seconds` is a clock without
    fractions; `without` are cards of the template that this one does not write.
    """

    prefix: str
    suffix: str = ""
    file: str
    folder: str = ""
    bare_outdir: bool = False
    whole_seconds: bool = False
    auto: bool = True
    kinds: tuple[str, ...] = ()
    cards: dict[str, Value] = Field(default={})
    without: tuple[str, ...] = ()


class Kind(Data):
    """One type of image: what is seen, how bright (counts), how often."""

    scene: str
    level: float
    weight: int = 1
    position: str = "sky"
    only: bool = False
    cards: dict[str, Value] = Field(default={})


class Template(Data):
    """One instrument of the simulator; `dcs` is the telescope whose cards it has, too."""

    dcs: Literal[1, 2] | None = None
    program: str
    observer: str
    account: str
    disk: str
    default: str
    quick_look: str = "{koaid}_drp.fits"  # its name below its directory; "" if there is none
    camera: dict[str, Camera]
    kind: dict[str, Kind]
    cards: dict[str, Value | list[Value]]

    def kinds(self, source: str) -> dict[str, Kind]:
        """Return what a source can take, the default first."""
        named = self.camera[source].kinds
        return {
            name: kind
            for name, kind in self.kind.items()
            if (name in named if named else not kind.only)
        }


@dataclass(frozen=True, slots=True)
class Request:
    """One exposure; `at` is its start (UT), `size` in bytes, None is the real one."""

    source: str
    kind: str
    frameno: int
    at: datetime
    size: int | None = None
    seed: int = 0
    program: str | None = None
    account: str | None = None
    fault: str | None = None
    cards: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exposure:
    """A finished frame in memory.

    `outdir`, `outfile` and `name` are as the keywords announce them, `path` is the
    normal form; `koaid` is None where the header does not give the one meant.
    """

    instrument: str
    source: str
    kind: str
    frameno: int
    outdir: str
    outfile: str
    name: str
    koaid: str | None
    parts: tuple[memoryview, ...]

    @property
    def announced(self) -> str:
        """The path as the keyword server tells it."""
        return f"{self.outdir}/{self.name}"

    @property
    def path(self) -> str:
        """The path in its normal form, under /s/sdataNNN."""
        return normal_path(self.announced)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(len(part) for part in self.parts)

    @property
    def sha256(self) -> str:
        """Digest of the whole file."""
        digest = sha256()
        for part in self.parts:
            digest.update(part)
        return digest.hexdigest()

    def chunks(self, size: int = WRITE) -> Iterator[memoryview]:
        """Yield the file in pieces of `size` bytes at most."""
        for part in self.parts:
            for start in range(0, len(part), size):
                yield part[start : start + size]


@lru_cache(maxsize=1)
def templates() -> dict[str, Template]:
    """Return the instruments that can be simulated, by name."""
    files = sorted((HERE / "templates").glob("*.toml"))
    return {f.stem: Template.model_validate(tomllib.loads(f.read_text())) for f in files}


@lru_cache(maxsize=2)
def _dcs(telescope: int) -> dict[str, Any]:
    """Return the cards of a telescope's own server."""
    cards: dict[str, Any] = tomllib.loads((HERE / "telescope.toml").read_text())
    return {"TELESCOP": ["Keck " + "I" * telescope, "telescope"], **cards}


def build(instrument: str, request: Request) -> Exposure:
    """Return the frame that a request asks for; the same request, the same bytes."""
    template = templates()[instrument]
    camera = template.camera[request.source]
    kind = template.kinds(request.source)[request.kind]
    rng = np.random.default_rng([request.seed, crc32(request.source.encode()), request.frameno])
    facts = _facts(template, request, rng, kind.position)
    cards = _cards(template, request, facts, rng)
    parts = units(camera, (kind.scene, kind.level), cards, request.size, rng)
    fault = FAULTS[request.fault] if request.fault else None
    if fault is not None:
        parts = [fault.spoil(b"".join(parts), len(parts[-1]))]
    plain = fault is None and not request.cards
    return Exposure(
        instrument,
        request.source,
        request.kind,
        request.frameno,
        str(facts["outdir"]),
        str(facts["outfile"]),
        str(facts["name"]),
        _koaid(camera, request.at) if plain else None,
        tuple(memoryview(unit).cast("B") for unit in parts if len(unit)),
    )


def path_of(instrument: str, request: Request) -> str:
    """Return the path, in its normal form, that a request's frame will have."""
    names = _names(templates()[instrument], request)
    return normal_path(f"{names['outdir']}/{names['name']}")


def _names(template: Template, request: Request) -> dict[str, Value]:
    at, camera = request.at, template.camera[request.source]
    day = {"yymmdd": f"{at:%y%m%d}", "frameno": request.frameno, "koaid": _koaid(camera, at)}
    name = camera.file.format(**day)
    root = "" if camera.bare_outdir else "/s"
    account = request.account or template.account
    return {
        "name": name,
        "stem": name.removesuffix(".fits"),
        "outfile": camera.file.partition("{frameno")[0].format(**day),
        "outdir": f"{root}/{template.disk}/{account}/{at:%Y%b%d}".lower() + camera.folder,
        "frameno": request.frameno,
    }


def _koaid(camera: Camera, at: datetime) -> str:
    step = 1_000_000 if camera.whole_seconds else 10_000
    cut = at.replace(microsecond=at.microsecond // step * step)
    return koaid(camera.prefix, cut.date(), cut.time(), camera.suffix)


def _facts(
    template: Template, request: Request, rng: np.random.Generator, position: str
) -> dict[str, Value]:
    """Return everything a card may name in braces."""
    at = request.at
    iso = at.isoformat(timespec="milliseconds").replace("+00:00", "")
    end = (at + timedelta(milliseconds=900)).isoformat(timespec="milliseconds")
    return {
        **pointing(position, at, rng, template.dcs or 2),
        **_names(template, request),
        "date_obs": f"{at:%Y-%m-%d}",
        "ut": f"{at:%H:%M:%S}.{at.microsecond // 10_000:02}",
        "date_beg": iso,
        "date_end": end.replace("+00:00", ""),
        "second": f"{at:%Y-%m-%dT%H:%M:%S}",
        "mjd": round(mjd(at), 6),
        "observer": template.observer,
        "program": template.program if request.program is None else request.program,
    }


def _cards(
    template: Template,
    request: Request,
    facts: Mapping[str, Value],
    rng: np.random.Generator,
) -> dict[str, Card]:
    """Return the cards by keyword: template, then camera, kind, fault and request."""
    cards: dict[str, Card] = {}
    camera = template.camera[request.source]
    for key, entry in {**(_dcs(template.dcs) if template.dcs else {}), **template.cards}.items():
        value, comment = entry if isinstance(entry, list) else (entry, "")
        if key not in camera.without:
            cards[key] = (_filled(value, facts, rng), str(comment))
    own = {**camera.cards, **template.kind[request.kind].cards}
    changes: dict[str, Any] = {key: _filled(value, facts, rng) for key, value in own.items()}
    if request.program:
        changes["PROGNAME"] = request.program
    if request.fault:
        faulty = FAULTS[request.fault].cards.items()
        changes |= {key: value for key, value in faulty if key in cards}
    for key, value in {**changes, **request.cards}.items():
        cards[key] = (value, cards.get(key, ("", ""))[1])
    return cards


def _filled(value: Value, facts: Mapping[str, Value], rng: np.random.Generator) -> Value:
    if not isinstance(value, str):
        return value
    if value.startswith("~"):
        return round(float(value[1:]) * (1 + 0.002 * float(rng.standard_normal())), 6)
    if value.startswith("{") and value.endswith("}") and value[1:-1] in facts:
        return facts[value[1:-1]]
    return value.format(**facts)
