"""The HDUs of a frame as bytes: pixels and tables, at their real size or scaled down."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .cards import BLOCK, Card, Value, checksummed, header, padding
from .pixels import ZERO, pixels

__all__ = ["Data", "Detector", "units"]

MIN_SIDE = 16  # pixels; below that there is no image to speak of
TYPES = {"E": ">f4", "D": ">f8", "J": ">i4", "I": ">i2"}  # of a table's columns; nA is text

Axes = tuple[int, ...]
Random = np.random.Generator


class Data(BaseModel):
    """A frozen table of a template; a key nobody knows is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Extension(Data):
    """One more HDU: an image of `axes`, or a table of `rows` with `columns` (name to format).

    `place` is the detector pixel that is read first, and the steps from one pixel of the
    image to the next: they give DATASEC and DETSEC, whatever the size.  `pre` and `post`
    are the columns before and behind the light.
    """

    name: str
    axes: Axes = ()
    bitpix: int = 0  # that of the primary HDU
    pre: int = 0
    post: int = 0
    place: tuple[int, int, int, int] | None = None
    rows: int = 0
    columns: dict[str, str] = {}
    cards: dict[str, Value] = {}


class Detector(Data):
    """What one source's files hold: pixels of the primary HDU, unless it has none, and more."""

    axes: Axes = ()
    bitpix: int = 16
    extensions: tuple[Extension, ...] = Field(alias="hdu", default=())
    checksum: bool = False

    @property
    def size(self) -> int:
        """Bytes of the pixels, at the real size."""
        images = [(self.axes, self.bitpix)]
        images += [(e.axes, e.bitpix or self.bitpix) for e in self.extensions]
        return sum(int(np.prod(axes)) * abs(bits) // 8 for axes, bits in images if axes)


def units(
    detector: Detector,
    light: tuple[str, float],
    cards: Mapping[str, Card],
    size: int | None,
    rng: Random,
) -> list[Any]:
    """Return header, data and fill of each HDU in turn; the last one is fill.

    `light` is the scene and how bright it is, in the primary HDU or, where that has no
    pixels, in all of them.
    """
    (scene, level), axes, bitpix = light, detector.axes, detector.bitpix
    tables = {e.name: _table(e) for e in detector.extensions if e.rows}
    scale = 1.0 if size is None else _scale(detector, size, len(header(cards)), tables)
    shape = _scaled(axes, scale)
    image = pixels(shape[::-1], bitpix, level, scene, rng) if axes else np.empty(0, ">i2")
    full = _structure(shape, bitpix, extend=bool(detector.extensions)) | dict(cards)
    found = _unit(full, image, checks=detector.checksum)
    for extension in detector.extensions:
        if extension.rows:
            found += tables[extension.name]
            continue
        shape, bits = _scaled(extension.axes, scale), extension.bitpix or bitpix
        image = pixels(shape[::-1], bits, level, "none" if axes else scene, rng)
        full = _structure(shape, bits) | _own(extension, shape, bits, scale)
        found += _unit(full, image, checks=detector.checksum)
    return found


def _scale(detector: Detector, size: int, head: int, tables: Mapping[str, list[bytes]]) -> float:
    """Return what part of each axis makes a file of `size` bytes."""
    images = len(detector.extensions) - len(tables)
    other = head + sum(len(part) for parts in tables.values() for part in parts)
    other += BLOCK * images + BLOCK // 2 * (images + bool(detector.axes))
    return math.sqrt(max(size - other, 1) / detector.size)


def _unit(
    cards: Mapping[str, Card], data: np.ndarray[Any, np.dtype[Any]], *, checks: bool
) -> list[Any]:
    head = checksummed(cards, data) if checks else header(cards)
    return [head, data, padding(data.nbytes)]


def _scaled(axes: Axes, scale: float) -> Axes:
    """Return the axes of a window; cubes keep how deep they are."""
    return (*(max(MIN_SIDE, int(a * scale)) for a in axes[:2]), *axes[2:])


def _own(extension: Extension, shape: Axes, bitpix: int, scale: float) -> dict[str, Card]:
    """Return the cards of an image extension."""
    values: dict[str, Value] = {"BZERO": ZERO, "BSCALE": 1} if bitpix == 16 else {}
    values["EXTNAME"] = extension.name
    if extension.place:
        x, y, right, up = extension.place
        first = int(extension.pre * scale) + 1
        last = shape[0] - int(extension.post * scale)
        values["DATASEC"] = f"[{first}:{last},1:{shape[1]}]"
        columns = f"{x}:{_end(x, right, last - first + 1)}"
        values["DETSEC"] = f"[{columns},{y}:{_end(y, up, shape[1])}]"
    return {key: (value, "") for key, value in (values | extension.cards).items()}


def _end(start: int, step: int, count: int) -> int:
    """Return the last detector pixel of `count` image pixels, each of them `step` wide."""
    return start + step * count - (1 if step > 0 else -1)


def _structure(axes: Axes, bitpix: int, *, extend: bool | None = None) -> dict[str, Card]:
    """Return the mandatory cards; without `extend` they are an extension's."""
    first: tuple[str, Value] = ("SIMPLE", True)
    last: dict[str, Value] = {"EXTEND": extend} if extend is not None else {}
    if extend is None:
        first, last = ("XTENSION", "IMAGE"), {"PCOUNT": 0, "GCOUNT": 1}
    sides = {f"NAXIS{i}": side for i, side in enumerate(axes, 1)}
    values = dict([first]) | {"BITPIX": bitpix, "NAXIS": len(axes)} | sides | last
    return {key: (value, "") for key, value in values.items()}


def _table(extension: Extension) -> list[bytes]:
    """Return a binary table: texts are the column's name, numbers count the rows."""
    forms = extension.columns
    row = np.dtype([(n, TYPES.get(f) or f"S{f.removesuffix('A')}") for n, f in forms.items()])
    rows = np.zeros(extension.rows, row)
    for name in forms:
        is_text = row[name].kind == "S"
        rows[name] = name.lower().encode() if is_text else np.arange(extension.rows)
    values: dict[str, Value] = {
        "XTENSION": "BINTABLE",
        "BITPIX": 8,
        "NAXIS": 2,
        "NAXIS1": row.itemsize,
        "NAXIS2": extension.rows,
        "PCOUNT": 0,
        "GCOUNT": 1,
        "TFIELDS": len(forms),
    }
    for number, (name, form) in enumerate(forms.items(), 1):
        values |= {f"TTYPE{number}": name, f"TFORM{number}": form}
    values |= {"EXTNAME": extension.name, **extension.cards}
    data = rows.tobytes()
    return [header({k: (v, "") for k, v in values.items()}), data, padding(len(data))]
