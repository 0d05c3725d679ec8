"""Previews of level-0 images as JPEG (facts 3.7): sampled, not plotted (design 9)."""

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from astropy.visualization import AsinhStretch, SqrtStretch, ZScaleInterval
from numpy.typing import NDArray
from PIL import Image

from koa_shared.fits import Hdu
from koa_shared.instruments import Picture, Stretch, Turn

Floats = NDArray[np.floating[Any]]

MAX_SIDE = 1024  # pixels; a page shows no more, and its JPEG is below 0.5 MB
QUALITY = 92  # facts 3.7
SAMPLE = 4_000  # pixels that tell the limits, 2 ms of zscale; production takes 1,000
LEVELS = 65_536  # steps before the stretch: none of the 256 grays is left out
CURVES = {"asinh": AsinhStretch(), "sqrt": SqrtStretch()}  # as production has them
HUGE = 1e100  # beyond it a "pixel" is a bit pattern, and squares overflow
SECTION = re.compile(",".join(["(-?[0-9]{1,9}) *: *(-?[0-9]{1,9}) *"] * 2))
LAST = (10**9, 10**9, 1, 1)  # at the end of the bottom row
TURNS = {None: 0, "right": 1, "left": -1}  # for numpy, which sees row 0 at the top


class Shot(NamedTuple):
    """An image as the file has it, and the number of its HDU."""

    number: int
    hdu: Hdu
    pixels: NDArray[Any]


class Tile(NamedTuple):
    """A part of a picture; a row's median of `bias` is taken off that row."""

    plane: NDArray[Any]
    bias: NDArray[Any]
    flips: tuple[int, int]  # steps along rows and columns, -1 for a mirror image
    sign: int  # of BSCALE; else scaling changes nothing


Rows = Sequence[Sequence[Tile]]  # from the bottom, each from the left


def pictures(picture: Picture, shots: Sequence[Shot]) -> Iterator[tuple[str, Rows]]:
    """Yield what stands behind the KOAID, and of which tiles that picture consists."""
    match picture.layout:
        case _ if "{" in picture.name:
            for shot in shots:
                yield picture.name.format(n=shot.number), [[_tile(picture, shot)]]
            return
        case "DETSEC":
            found = _mosaic(shots)
        case ():
            found = [[*shots[:1]]]
        case names:
            named = [(shot, shot.hdu.name.upper()) for shot in shots]
            found = [[s for p in row for s, name in named if fnmatchcase(name, p)] for row in names]
    if rows := [[_tile(picture, shot) for shot in row] for row in found if row]:
        yield picture.name, rows


def _mosaic(shots: Iterable[Shot]) -> list[list[Shot]]:
    rows, placed = dict[int, list[Shot]](), [(_section(s, "DETSEC") or LAST, s) for s in shots]
    for section, shot in sorted(placed, key=lambda pair: min(pair[0][:2])):
        rows.setdefault(min(section[2:]), []).append(shot)
    return [rows[bottom] for bottom in sorted(rows)]


def _section(shot: Shot, keyword: str) -> tuple[int, ...] | None:
    """Return x1, x2, y1, y2 of `[x1:x2,y1:y2]`."""
    found = SECTION.search(str(shot.hdu.header.get(keyword)))
    return tuple(map(int, found.groups())) if found else None


def _tile(picture: Picture, shot: Shot) -> Tile:
    plane, scale = shot.pixels, shot.hdu.header.get("BSCALE")
    while plane.ndim > 2:
        plane = plane[len(plane) // 2]
    plane = np.atleast_2d(plane)
    x1, x2, y1, y2 = (picture.overscan and _section(shot, "DATASEC")) or (0, 0, 0, 0)
    bias = plane[:, :0]
    if 0 < x1 <= x2 <= plane.shape[1] and 0 < y1 <= y2 <= len(plane):
        # The overscan lies behind the data; its outermost columns do not count.
        plane, bias = plane[y1 - 1 : y2, x1 - 1 : x2], plane[y1 - 1 : y2, x2 + 1 : -1]
    x1, x2, y1, y2 = (picture.layout == "DETSEC" and _section(shot, "DETSEC")) or LAST
    flips = (-1 if y1 > y2 else 1, -1 if x1 > x2 else 1)
    return Tile(plane, bias, flips, -1 if isinstance(scale, int | float) and scale < 0 else 1)


def preview(rows: Rows, stretch: Stretch = "asinh", turn: Turn = None) -> bytes:
    """Return a gray JPEG of about 1024 pixels a side at most.

    Row 0 is at the bottom, as FITS viewers show it.  Of a cube the middle plane is shown, a
    spectrum is one row, NaN is black and so is where no tile lies.
    """
    with np.errstate(all="ignore"):
        gray = np.rot90(_gray(_paste(rows), stretch), TURNS[turn])
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(gray[::-1])).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _paste(rows: Rows) -> Floats:
    """Return the tiles side by side, rows above each other, all in one scale."""
    width = max(sum(tile.plane.shape[1] for tile in row) for row in rows)
    height = sum(max(len(tile.plane) for tile in row) for row in rows)
    step = -(-max(width, height) // MAX_SIDE)
    return _joined([_joined([_shrink(tile, step) for tile in row], 1) for row in rows], 0)


def _joined(images: Sequence[Floats], axis: int) -> Floats:
    """Return images side by side (axis 1) or one above the other (0); gaps are NaN."""
    longest = max(image.shape[1 - axis] for image in images)
    whole = list[Floats]()
    for image in images:
        gap, none = (0, longest - image.shape[1 - axis]), (0, 0)
        whole.append(np.pad(image, (gap, none) if axis else (none, gap), constant_values=np.nan))
    return np.concatenate(whole, axis)


def _shrink(tile: Tile, step: int) -> Floats:
    image = _reduce(tile.plane, step)
    if tile.bias.size:
        step = min(step, len(tile.bias))
        blocks = tile.bias[: len(image) * step].reshape(len(image), step, -1)
        dark = blocks[:, :: max(1, step // 2)].reshape(len(image), -1)
        median = np.median(dark.astype(image.dtype), axis=1, keepdims=True)
        image -= np.where(np.isfinite(median), median, 0)
    return tile.sign * image[:: tile.flips[0], :: tile.flips[1]]


def _reduce(plane: NDArray[Any], step: int) -> Floats:
    # A pixel is the mean of four spread over its block: that takes 5 ms at 38 MB, the
    # mean of the whole block 40.
    kind = np.result_type(plane.dtype.newbyteorder("="), np.float32)
    if step == 1:
        return plane.astype(kind)
    y, x = (min(step, side) for side in plane.shape)
    plane = plane[: len(plane) // y * y, : plane.shape[1] // x * x]
    parts = [plane[row::y, col::x].astype(kind) for row in {0, y // 2} for col in {0, x // 2}]
    mean = sum(parts[1:], parts[0]) / len(parts)
    if (lost := np.isnan(mean)).any():  # one NaN must not blacken its neighbours
        mean[lost] = np.fmax.reduce([part[lost] for part in parts])
    return np.asarray(mean)


def _gray(image: Floats, stretch: Stretch) -> NDArray[np.uint8]:
    low, high = _limits(image, stretch)
    image = image - low
    image *= 1 / (high - low)
    np.fmax(image, 0, out=image)  # first: it makes NaN 0, fmin would make it 1
    np.fmin(image, 1, out=image)
    image *= LEVELS - 1
    level = image.astype(np.uint16)
    if stretch == "equalise":
        share = np.cumsum(np.bincount(level.ravel(), minlength=LEVELS))
        floor = share[level.min()]
        curve = np.maximum(share - floor, 0) / max(1, level.size - floor)
    else:
        curve = CURVES[stretch](np.linspace(0, 1, LEVELS))
    return np.asarray(255 * curve + 0.5, np.uint8).take(level)


def _limits(image: Floats, stretch: Stretch) -> tuple[float, float]:
    """Return what is black and what is white, never equal."""
    step = max(1, image.size // SAMPLE)
    while math.gcd(step, image.shape[1]) > 1:  # else it would stay in a few columns
        step += 1
    sample = image.ravel()[::step].astype(np.float64)
    sample = sample[np.abs(sample) < HUGE]
    if sample.size == 0:
        return 0.0, 1.0
    if stretch == "equalise":  # the histogram does the rest; spikes must not stretch it
        low, high = np.quantile(sample, (0.001, 0.999))
    else:
        low, high = ZScaleInterval(n_samples=SAMPLE * 2).get_limits(sample)
    if not low < high:  # most pixels are equal; show what is not
        low, high = np.nanmin(image), np.nanmax(image)
    low, high = max(float(low), -HUGE), min(float(high), HUGE)
    return (low, high) if low < high else (low, low + 1.0 + abs(low))
