"""Previews of level-0 images as JPEG (facts 3.7): sampled, not plotted (design 9)."""

import io
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from astropy.visualization import AsinhStretch, SqrtStretch, ZScaleInterval
from numpy.typing import NDArray
from PIL import Image as Picture

from koa_shared.instruments import Data

Stretch = Literal["asinh", "equalise", "sqrt"]
Floats = NDArray[np.floating[Any]]

MAX_SIDE = 1024  # pixels; a page shows no more, and its JPEG is below 0.5 MB
QUALITY = 92  # facts 3.7
SAMPLE = 4_000  # pixels that tell the limits, 2 ms of zscale; production takes 1,000
LEVELS = 65_536  # steps before the stretch: none of the 256 grays is left out
CURVES = {"asinh": AsinhStretch(), "sqrt": SqrtStretch()}  # as production has them
HUGE = 1e100  # beyond it a "pixel" is a bit pattern, and squares overflow


class Image(NamedTuple):
    """The pixels of one HDU as they lie in the file, any BITPIX, and its BSCALE."""

    pixels: NDArray[Any]
    bscale: float = 1.0


class PreviewSpec(Data):
    """The table `[preview]` of an instrument file.

    `first`: of the primary image, or of the first extension's when the primary has none.
    A KOAID that ends in one of `skip` has no preview (NIRC2: `_unp`).
    """

    method: Literal["first", "none"] = "first"
    stretch: Stretch = "asinh"
    skip: tuple[str, ...] = ()


def previews(koaid: str, spec: PreviewSpec, images: Sequence[Image]) -> list[tuple[str, bytes]]:
    """Return (name, JPEG) of each preview; `images` are the HDUs that hold pixels."""
    if spec.method == "none" or koaid.endswith(spec.skip):
        return []
    made = (preview(image.pixels, stretch=spec.stretch, bscale=image.bscale) for image in images)
    first = next(filter(None, made), None)
    return [(f"{koaid}.jpg", first)] if first else []


def preview(
    pixels: NDArray[Any], *, stretch: Stretch = "asinh", max_side: int = MAX_SIDE, bscale: float = 1
) -> bytes | None:
    """Return a gray JPEG of at most `max_side` pixels a side, None without pixels.

    Row 0 is at the bottom, as FITS viewers show it.  Of a cube the middle plane is shown, a
    spectrum is one row, NaN is black.  Of BSCALE and BZERO only BSCALE's sign changes a picture.
    """
    if pixels.size == 0:
        return None
    while pixels.ndim > 2:
        pixels = pixels[len(pixels) // 2]
    with np.errstate(all="ignore"):
        image = _reduce(np.atleast_2d(pixels), max_side)
        gray = _gray(-image if bscale < 0 else image, stretch)
    out = io.BytesIO()
    Picture.fromarray(gray[::-1]).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _reduce(plane: NDArray[Any], max_side: int) -> Floats:
    # A pixel is the mean of four spread over its block: that takes 5 ms at 38 MB, the
    # mean of the whole block 40.
    step = -(-max(plane.shape) // max_side)
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


def warm() -> None:
    """Do what is slow the first time (70 ms): call it at start."""
    preview(np.arange(100.0).reshape(10, 10))
