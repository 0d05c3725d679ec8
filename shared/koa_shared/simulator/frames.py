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
from typing import Any
from zlib import crc32

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..ids import koaid, normal_path
from .cards import BLOCK, Value, checksummed, header, padding
from .faults import FAULTS
from .pixels import pixels
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

MIN_SIDE = 16  # pixels; below that there is no image to speak of
WRITE = 4 * 2**20  # bytes a time, as an instrument's writer does
EVENTS = 12  # rows of the table that some KCWI frames carry


class Data(BaseModel):
    """A frozen table of a template; a key nobody knows is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Camera(Data):
    """One source's detector: names, shape and own cards."""

    prefix: str
    suffix: str = ""
    file: str
    axes: tuple[int, ...]
    bitpix: int
    extension: tuple[int, ...] | None = None
    table: bool = False
    checksum: bool = False
    bare_outdir: bool = False
    auto: bool = True
    kinds: tuple[str, ...] = ()
    cards: dict[str, Value] = {}


class Kind(Data):
    """One type of image: what is seen, how bright (counts), how often."""

    scene: str
    level: float
    weight: int = 1
    position: str = "sky"
    only: bool = False
    cards: dict[str, Value] = {}


class Template(Data):
    """One instrument of the simulator."""

    program: str
    observer: str
    account: str
    disk: str
    default: str
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
    files = sorted((Path(__file__).parent / "templates").glob("*.toml"))
    return {f.stem: Template.model_validate(tomllib.loads(f.read_text())) for f in files}


def build(instrument: str, request: Request) -> Exposure:
    """Return the frame that a request asks for; the same request, the same bytes."""
    template = templates()[instrument]
    camera = template.camera[request.source]
    kind = template.kinds(request.source)[request.kind]
    rng = np.random.default_rng([request.seed, crc32(request.source.encode()), request.frameno])
    facts = _facts(template, request, rng, kind.position)
    cards = _cards(template, request, facts, rng)
    units = _units(camera, kind, cards, request.size, rng)
    fault = FAULTS[request.fault] if request.fault else None
    if fault is not None:
        data = b"".join(units)
        units = [fault.spoil(data, len(units[-1]))]
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
        tuple(memoryview(unit).cast("B") for unit in units),
    )


def path_of(instrument: str, request: Request) -> str:
    """Return the path, in its normal form, that a request's frame will have."""
    names = _names(templates()[instrument], request)
    return normal_path(f"{names['outdir']}/{names['name']}")


def _names(template: Template, request: Request) -> dict[str, Value]:
    at, camera = request.at, template.camera[request.source]
    day = {"yymmdd": f"{at:%y%m%d}", "frameno": request.frameno}
    name = camera.file.format(**day)
    root = "" if camera.bare_outdir else "/s"
    account = request.account or template.account
    return {
        "name": name,
        "stem": name.removesuffix(".fits"),
        "outfile": camera.file.partition("{frameno")[0].format(**day),
        "outdir": f"{root}/{template.disk}/{account}/{at:%Y%b%d}".lower(),
        "frameno": request.frameno,
    }


def _koaid(camera: Camera, at: datetime) -> str:
    cut = at.replace(microsecond=at.microsecond // 10_000 * 10_000)
    return koaid(camera.prefix, cut.date(), cut.time(), camera.suffix)


def _facts(
    template: Template, request: Request, rng: np.random.Generator, position: str
) -> dict[str, Value]:
    """Return everything a card may name in braces."""
    at = request.at
    iso = at.isoformat(timespec="milliseconds").replace("+00:00", "")
    end = (at + timedelta(milliseconds=900)).isoformat(timespec="milliseconds")
    return {
        **pointing(position, at, rng),
        **_names(template, request),
        "date_obs": f"{at:%Y-%m-%d}",
        "ut": f"{at:%H:%M:%S}.{at.microsecond // 10_000:02}",
        "date_beg": iso,
        "date_end": end.replace("+00:00", ""),
        "mjd": round(mjd(at), 6),
        "observer": template.observer,
        "program": template.program if request.program is None else request.program,
    }


def _cards(
    template: Template,
    request: Request,
    facts: Mapping[str, Value],
    rng: np.random.Generator,
) -> dict[str, tuple[Value, str]]:
    """Return the cards by keyword: template, then camera, kind, fault and request."""
    cards: dict[str, tuple[Value, str]] = {}
    for key, entry in template.cards.items():
        value, comment = entry if isinstance(entry, list) else (entry, "")
        cards[key] = (_filled(value, facts, rng), str(comment))
    changes: dict[str, Any] = {
        **template.camera[request.source].cards,
        **template.kind[request.kind].cards,
    }
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


def _units(
    camera: Camera,
    kind: Kind,
    cards: Mapping[str, tuple[Value, str]],
    size: int | None,
    rng: np.random.Generator,
) -> list[Any]:
    """Return header, data and fill of each HDU in turn; the last one is fill."""
    shapes = [camera.axes, *([camera.extension] if camera.extension else [])]
    scale = 1.0
    if size is not None:
        whole = sum(int(np.prod(axes)) for axes in shapes) * abs(camera.bitpix) // 8
        blocks = 2 * len(shapes) + (2 if camera.table else 0)  # headers and fill
        rest = size - len(header(cards)) - BLOCK * (blocks - 1)
        scale = (max(rest, 1) / whole) ** 0.5
    units: list[Any] = []
    for number, axes in enumerate(shapes):
        shape = (*(max(MIN_SIDE, int(a * scale)) for a in axes[:2]), *axes[2:])
        scene = "none" if number else kind.scene
        image = pixels(shape[::-1], camera.bitpix, kind.level, scene, rng)
        own: dict[str, tuple[Value, str]] = {"EXTNAME": ("READS", "")} if number else dict(cards)
        more = bool(camera.table or camera.extension)
        full = _structure(shape, camera.bitpix, extend=None if number else more) | own
        head = checksummed(full, image) if camera.checksum and not number else None
        units += [head or header(full), image, padding(image.nbytes)]
    return units + (_table() if camera.table else [])


def _structure(
    axes: tuple[int, ...], bitpix: int, *, extend: bool | None
) -> dict[str, tuple[Value, str]]:
    """Return the mandatory cards; `extend` None is an extension's."""
    first: tuple[str, Value] = ("SIMPLE", True)
    last: dict[str, Value] = {"EXTEND": extend} if extend is not None else {}
    if extend is None:
        first, last = ("XTENSION", "IMAGE"), {"PCOUNT": 0, "GCOUNT": 1}
    sides = {f"NAXIS{i}": side for i, side in enumerate(axes, 1)}
    values = dict([first]) | {"BITPIX": bitpix, "NAXIS": len(axes)} | sides | last
    return {key: (value, "") for key, value in values.items()}


def _table() -> list[bytes]:
    """Return a small binary table: what the detector server did, and when."""
    columns = {"EVENT": "16A", "SECONDS": "E", "COUNT": "J"}
    row = np.dtype([("EVENT", "S16"), ("SECONDS", ">f4"), ("COUNT", ">i4")])
    rows = np.zeros(EVENTS, row)
    rows["EVENT"], rows["SECONDS"] = b"shutter", np.arange(EVENTS)
    values: dict[str, Value] = {
        "XTENSION": "BINTABLE",
        "BITPIX": 8,
        "NAXIS": 2,
        "NAXIS1": row.itemsize,
        "NAXIS2": EVENTS,
        "PCOUNT": 0,
        "GCOUNT": 1,
        "TFIELDS": len(columns),
    }
    for number, (name, form) in enumerate(columns.items(), 1):
        values |= {f"TTYPE{number}": name, f"TFORM{number}": form}
    values["EXTNAME"] = "Exposure Events"
    data = rows.tobytes()
    return [header({k: (v, "") for k, v in values.items()}), data, padding(len(data))]
