"""Previews of level-0 images as JPEG (facts 3.7): sampled, not plotted (design 9)."""

import io
import math
from typing import Any, Literal

import numpy as np
from astropy.visualization import AsinhStretch, SqrtStretch, ZScaleInterval
from numpy.typing import NDArray
from PIL import Image

from koa_shared.instruments import Data

Stretch = Literal["asinh", "equalise", "sqrt"]
Floats = NDArray[np.floating[Any]]

MAX_SIDE = 1024  # pixels; a page shows no more, and its JPEG is below 0.5 MB
QUALITY = 92  # facts 3.7
SAMPLE = 4_000  # pixels that tell the limits, 2 ms of zscale; production takes 1,000
LEVELS = 65_536  # steps before the stretch: none of the 256 grays is left out
CURVES = {"asinh": AsinhStretch(), "sqrt": SqrtStretch()}  # as production has them
HUGE = 1e100  # beyond it a "pixel" is a bit pattern, and squares overflow


class PreviewSpec(Data):
    """The table `[preview]`; a KOAID that ends in one of `skip` has none (NIRC2: `_unp`)."""

    stretch: Stretch = "asinh"
    skip: tuple[str, ...] = ()


def preview(pixels: NDArray[Any], stretch: Stretch = "asinh", *, negative: bool = False) -> bytes:
    """Return a gray JPEG of at most 1024 pixels a side.

    Row 0 is at the bottom, as FITS viewers show it.  Of a cube the middle plane is shown, a
    spectrum is one row, NaN is black.  Of BSCALE and BZERO only a `negative` BSCALE matters.
    """
    while pixels.ndim > 2:
        pixels = pixels[len(pixels) // 2]
    with np.errstate(all="ignore"):
        image = _reduce(np.atleast_2d(pixels))
        gray = _gray(-image if negative else image, stretch)
    out = io.BytesIO()
    Image.fromarray(gray[::-1]).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _reduce(plane: NDArray[Any]) -> Floats:
    # A pixel is the mean of four spread over its block: that takes 5 ms at 38 MB, the
    # mean of the whole block 40.
    step = -(-max(plane.shape) // MAX_SIDE)
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
