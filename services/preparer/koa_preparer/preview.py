"""Previews of level-0 images as JPEG (facts 3.7): sampled, not plotted (design 9)."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from pydantic import BaseModel, ConfigDict

Stretch = Literal["asinh", "equalise", "sqrt"]
Floats = NDArray[np.floating[Any]]

MAX_SIDE = 1024  # pixels; a page shows no more, and its JPEG is below 0.5 MB
QUALITY = 92  # facts 3.7
SAMPLE = 4_000  # pixels that tell the limits, 2 ms of zscale; production takes 1,000
LEVELS = 65_536  # steps before the stretch: none of the 256 grays is left out
SOFTENING = 0.1  # of the asinh stretch, astropy's default and so production's
HUGE = 1e100  # beyond it a "pixel" is a bit pattern, and squares overflow


@dataclass(frozen=True, slots=True)
class Image:
    """The pixels of one HDU as they lie in the file, any BITPIX, and its BSCALE."""

    pixels: NDArray[Any]
    bscale: float = 1.0


class PreviewSpec(BaseModel):
    """The table `[preview]` of an instrument file.

    `method` says which HDUs make which pictures (`METHODS`); a KOAID that ends in one
    of `skip` has none (NIRC2: `_unp`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["first", "none"] = "first"
    stretch: Stretch = "asinh"
    skip: tuple[str, ...] = ()


def previews(koaid: str, spec: PreviewSpec, images: Sequence[Image]) -> list[tuple[str, bytes]]:
    """Return (name, JPEG) of each preview; `images` are the HDUs that hold pixels.

    What goes wrong is raised as it is: for the caller it is MAKE_JPG_ERROR.
    """
    if spec.skip and koaid.endswith(spec.skip):
        return []
    return list(METHODS[spec.method](koaid, spec, images))


def _first(koaid: str, spec: PreviewSpec, images: Sequence[Image]) -> Iterator[tuple[str, bytes]]:
    """Yield the primary image, or the first extension's when the primary has none."""
    for image in images:
        jpeg = preview(image.pixels, stretch=spec.stretch, bscale=image.bscale)
        if jpeg is not None:
            yield f"{koaid}.jpg", jpeg
            return


def _none(*_: object) -> Iterator[tuple[str, bytes]]:
    return iter(())


METHODS: dict[str, Callable[..., Iterator[tuple[str, bytes]]]] = {
    "first": _first,
    "none": _none,
}


def preview(
    pixels: NDArray[Any],
    *,
    stretch: Stretch = "asinh",
    max_side: int = MAX_SIDE,
    bscale: float = 1.0,
) -> bytes | None:
    """Return a gray JPEG of at most `max_side` pixels a side, None without pixels.

    Row 0 is at the bottom, as FITS viewers show it.  Of a cube the middle plane is
    shown, a spectrum is one row.  BZERO and the size of BSCALE change no picture, so
    only the sign of BSCALE is asked for.  NaN is black.
    """
    if pixels.size == 0:
        return None
    with np.errstate(all="ignore"):
        image = _reduce(_plane(pixels), max_side)
        gray = _gray(-image if bscale < 0 else image, stretch)
    out = io.BytesIO()
    Picture.fromarray(gray[::-1]).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _plane(pixels: NDArray[Any]) -> NDArray[Any]:
    while pixels.ndim > 2:
        pixels = pixels[len(pixels) // 2]
    return np.atleast_2d(pixels)


def _reduce(plane: NDArray[Any], max_side: int) -> Floats:
    """Shrink by a whole number; a pixel is the mean of four spread over its block.

    The mean of the whole block takes 40 ms at 38 MB, four of its pixels take 5.
    """
    step = -(-max(plane.shape) // max_side)
    kind = np.result_type(plane.dtype.newbyteorder("="), np.float32)
    if step == 1:
        return plane.astype(kind)
    rows, columns = (min(step, side) for side in plane.shape)
    plane = plane[: len(plane) // rows * rows, : plane.shape[1] // columns * columns]
    parts = [
        plane[y::rows, x::columns].astype(kind) for y in {0, rows // 2} for x in {0, columns // 2}
    ]
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
    index = image.astype(np.uint16)
    return _table(stretch, index).take(index)


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
        low, high = _zscale(sample)
    if not low < high:  # most pixels are equal; show what is not
        low, high = np.nanmin(image), np.nanmax(image)
    low, high = max(float(low), -HUGE), min(float(high), HUGE)
    return (low, high) if low < high else (low, low + 1.0 + abs(low))


def _zscale(sample: Floats) -> tuple[float, float]:
    from astropy.visualization import ZScaleInterval  # noqa: PLC0415 0.8 s; see `warm`

    low, high = ZScaleInterval(n_samples=SAMPLE * 2).get_limits(sample)
    return float(low), float(high)


def _table(stretch: Stretch, index: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the gray of each of the `LEVELS`."""
    if stretch == "equalise":
        counts = np.bincount(index.ravel(), minlength=LEVELS)
        share = np.cumsum(counts)
        floor = share[np.flatnonzero(counts)[0]]
        curve = np.maximum(share - floor, 0) / max(1, index.size - floor)
    else:
        level = np.linspace(0, 1, LEVELS)
        asinh = stretch == "asinh"
        curve = np.arcsinh(level / SOFTENING) if asinh else np.sqrt(level)
    return np.asarray(255 * curve / max(curve[-1], 1e-9) + 0.5, np.uint8)


def warm() -> None:
    """Import what the first preview would wait for: call it at start."""
    preview(np.arange(100.0).reshape(10, 10))
