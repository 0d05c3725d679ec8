"""Rules that look at the pixels of the primary image (facts 3.3, 3.11)."""

import math
from collections.abc import Iterator

import numpy as np

from .frame import Effect, Frame, Note, Set
from .registry import rule

WINDOW = 10  # pixels on both sides of the centre, and left out at both ends


@rule("image_stats")
def image_stats(frame: Frame) -> Iterator[Effect]:
    """IMAGEMN, IMAGESD, IMAGEMD with two decimals."""
    if (found := frame.statistics) is None:
        yield Note("SET_IMAGE_STATS_ERROR", "The primary HDU holds no image.")
        return
    yield Set("IMAGEMN", round(found.mean, 2))
    yield Set("IMAGESD", round(found.sd, 2))
    yield Set("IMAGEMD", round(found.median, 2))


def _limit(frame: Frame, level: float, keywords: tuple[str, ...]) -> float | None:
    factors = [frame.number(keyword) or math.nan for keyword in keywords]
    limit = level * math.prod(factors)
    return limit if math.isfinite(limit) else None


@rule("npixsat")
def npixsat(frame: Frame, *, level: float = 1, keywords: tuple[str, ...] = ()) -> Iterator[Effect]:
    """NPIXSAT, pixels at `level` times the keywords' values or above."""
    limit, found = _limit(frame, level, keywords), frame.statistics
    if limit is None or found is None:
        yield Note("SET_NPIXSAT_ERROR", f"No image, or no {', '.join(keywords)}.")
        return
    yield Set("NPIXSAT", found.count_from(limit))


@rule("nlinear")
def nlinear(frame: Frame, *, level: float, keywords: tuple[str, ...] = ()) -> Iterator[Effect]:
    """NLINEAR and NONLIN, the same for the end of linearity."""
    limit, found = _limit(frame, level, keywords), frame.statistics
    if limit is None or found is None:
        yield Note("SET_NLINEAR_ERROR", f"No image, or no {', '.join(keywords)}.")
        return
    yield Set("NLINEAR", found.count_from(limit))
    yield Set("NONLIN", int(limit))


@rule("sig2nois")
def sig2nois(frame: Frame) -> Iterator[Effect]:
    """SIG2NOIS: root of the range of row medians near the centre."""
    found = frame.statistics
    shape = found.raw.shape if found else ()
    if found is None or len(shape) != 2 or min(shape) <= 2 * WINDOW:
        yield Note("SET_SIG2NOIS_ERROR", "The primary HDU holds no image to measure.")
        return
    # As in production the centre along a row is half the number of rows.
    centre = shape[0] // 2
    rows = slice(WINDOW, shape[0] - WINDOW)
    part = found.image(rows, slice(centre - WINDOW, centre + WINDOW))
    if not part.size:
        yield Set("SIG2NOIS", None)
        return
    with np.errstate(all="ignore"):
        flux = np.median(part, axis=1)
        noise = np.fix(np.sqrt(abs(flux.max() - flux.min())))
    yield Set("SIG2NOIS", float(noise))
