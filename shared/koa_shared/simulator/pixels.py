"""Made-up pixels, fast: one noise tile, shifted for each frame, and a scene on top."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["SCENES", "pixels"]

Image = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator

TYPES = {16: ">i2", 32: ">i4", -32: ">f4"}
TILE = 2**19  # pixels; a multiple of no detector's width, so that rows differ
ZERO = 32768  # BZERO of unsigned 16-bit detectors
FULL = {16: 65535 - ZERO, 32: 10**6, -32: 60000}
PSF = np.exp(-(np.add.outer(*[np.arange(-7, 8) ** 2] * 2)) / 8.0)


@lru_cache(maxsize=16)
def _tile(bitpix: int, level: float) -> Image:
    """Return noise around `level`, twice in a row: any slice of TILE pixels will do."""
    noise = np.random.default_rng(abs(bitpix)).standard_normal(TILE, np.float32)
    counts = level + noise * np.sqrt(level + 25)
    stored = counts - ZERO if bitpix == 16 else counts
    return np.tile(stored.astype(TYPES[bitpix]), 2)


def pixels(shape: tuple[int, ...], bitpix: int, level: float, scene: str, rng: Random) -> Image:
    """Return an image of `shape` (slowest axis first), big-endian as FITS stores it."""
    tile = _tile(bitpix, level)
    flat = np.empty(int(np.prod(shape)), TYPES[bitpix])
    for start in range(0, flat.size, TILE):
        stop = min(start + TILE, flat.size)
        shift = int(rng.integers(TILE))
        flat[start:stop] = tile[shift : shift + stop - start]
    image = flat.reshape(shape)
    SCENES[scene](image.reshape(-1, shape[-1])[: shape[-2]], FULL[bitpix], rng)
    return image


def _add(view: Image, counts: Image, full: int) -> None:
    view[...] = np.minimum(view.astype(np.float32) + counts, full)


def _stars(image: Image, full: int, rng: Random) -> None:
    height, width = image.shape
    if min(height, width) <= 15:
        return
    for _ in range(40):
        y, x = rng.integers(height - 15), rng.integers(width - 15)
        _add(image[y : y + 15, x : x + 15], PSF * rng.pareto(1.2) * 800, full)


def _orders(image: Image, full: int, rng: Random) -> None:
    """Draw curved spectra, brighter in the middle, as an echelle shows them."""
    height, width = image.shape
    profile = np.exp(-(np.arange(-4, 5) ** 2) / 6.0)[:, None]
    if height < 40 or width < 40:
        return
    for centre in np.linspace(0.15, 0.8, 8):
        bright = rng.uniform(300, 3000)
        for left in range(0, width, 128):
            bend = 0.05 * height * (2 * left / width - 1) ** 2
            top = int(centre * height + bend)
            column = image[top : top + 9, left : left + 128]
            _add(column, profile[: len(column)] * bright, full)


def _lines(image: Image, full: int, rng: Random) -> None:
    width = image.shape[1]
    for column in rng.integers(0, max(1, width - 3), 30):
        lamp = np.array([0.4, 1, 0.4]) * rng.uniform(500, 20000)
        view = image[:, column : column + 3]
        _add(view, lamp[: view.shape[1]], full)


def _nothing(image: Image, full: int, rng: Random) -> None:
    pass


SCENES: dict[str, Callable[[Image, int, Random], None]] = {
    "stars": _stars,
    "spectrum": _orders,
    "arc": _lines,
    "flat": _nothing,
    "none": _nothing,
}
