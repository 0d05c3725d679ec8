"""Exact statistics of an image, from the numbers as they are stored.

16-bit pixels are counted by value, others summed in chunks, so that no 64-bit copy of
an image is made; BSCALE and BZERO are applied to the results.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from koa_shared.fits import Buffer, Hdu, pixels

Array = NDArray[Any]
CHUNK = 2**16  # pixels; their 64-bit copies stay in the processor's cache
NATIVE = "<u2" if sys.byteorder == "little" else ">u2"


@dataclass
class Statistics:
    """Statistics of the stored numbers `raw`; pixel = raw x `scale` + `zero`."""

    raw: Array
    scale: float = 1.0
    zero: float = 0.0

    @classmethod
    def of(cls, data: Buffer, hdu: Hdu) -> Self | None:
        """Return the statistics of an HDU's image, None if it has none."""
        if not hdu.data_size or "TABLE" in hdu.kind:
            return None
        raw = pixels(data, hdu)
        scale, zero = (
            float(value) if isinstance(value, int | float) else default
            for value, default in (
                (hdu.header.get("BSCALE"), 1.0),
                (hdu.header.get("BZERO"), 0.0),
            )
        )
        return cls(raw, scale, zero) if raw is not None and raw.size else None

    def image(self, rows: slice, columns: slice) -> Array:
        """Return part of a two-dimensional image as pixels."""
        with np.errstate(all="ignore"):
            return self.raw[rows, columns].astype(np.float64) * self.scale + self.zero

    @property
    def mean(self) -> float:
        """Mean; NaN if any pixel is."""
        return self._moments[0] * self.scale + self.zero

    @property
    def sd(self) -> float:
        """Standard deviation of the population."""
        return self._moments[1] * abs(self.scale)

    @property
    def median(self) -> float:
        """Median, of an even number the mean of the two in the middle."""
        if math.isnan(self._moments[0]):
            return math.nan
        low, high = self._middle
        return (low + high) / 2 * self.scale + self.zero

    def count_from(self, level: float) -> int:
        """Count the pixels that are `level` or more."""
        if self.scale == 0:
            return self.raw.size if self.zero >= level else 0
        limit = (level - self.zero) / self.scale
        if self._counts is not None:
            values = self._values
            hit = values >= limit if self.scale > 0 else values <= limit
            return int(self._counts[hit].sum())
        total = 0
        for chunk in self._chunks():
            hit = chunk >= limit if self.scale > 0 else chunk <= limit
            total += int(np.count_nonzero(hit))
        return total

    @cached_property
    def _flat(self) -> Array:
        return self.raw.reshape(-1)

    def _chunks(self) -> Iterator[Array]:
        kind = self.raw.dtype.newbyteorder("=")
        for at in range(0, self.raw.size, CHUNK):
            yield self._flat[at : at + CHUNK].astype(kind)

    @cached_property
    def _values(self) -> NDArray[np.int64]:
        """The stored number of each bit pattern, in the order of `_counts`."""
        kind = NATIVE if self.raw.itemsize == 2 else "u1"
        patterns = np.arange(256**self.raw.itemsize, dtype=kind)
        return patterns.view(self.raw.dtype).astype(np.int64)

    @cached_property
    def _counts(self) -> NDArray[np.int64] | None:
        """How often each 8- or 16-bit pattern stands there, bytes as in the file."""
        if self.raw.itemsize > 2:
            return None
        return _histogram(self._flat.view(NATIVE if self.raw.itemsize == 2 else "u1"))

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the stored numbers."""
        n = self.raw.size
        if self._counts is not None:
            mean = int(self._counts @ self._values) / n
            square = float(self._counts @ (self._values - mean) ** 2)
            return mean, math.sqrt(square / n)
        # About the first pixel, so that squares of small differences are summed.
        shift, total, square = float(self._flat[0]), 0.0, 0.0
        with np.errstate(all="ignore"):
            for at in range(0, n, CHUNK):
                part = self._flat[at : at + CHUNK].astype(np.float64)
                part -= shift
                total += float(part.sum())
                # Not `part @ part`: BLAS starts threads, which costs more than it sums.
                square += float(np.square(part, out=part).sum())
        if not math.isfinite(total) or not math.isfinite(square):
            return math.nan, math.nan
        return shift + total / n, math.sqrt(max(0.0, square / n - (total / n) ** 2))

    @property
    def _middle(self) -> tuple[float, float]:
        """The stored numbers in the middle of the sorted image, twice one of them."""
        n = self.raw.size
        if self._counts is not None:
            order = np.argsort(self._values, kind="stable")
            sums = np.cumsum(self._counts[order])
            places = np.searchsorted(sums, [(n - 1) // 2, n // 2], side="right")
            low, high = self._values[order][places]
            return float(low), float(high)
        native = self._flat.astype(self.raw.dtype.newbyteorder("="))
        native.partition(n // 2)
        high = native[n // 2]
        return float(high if n % 2 else native[: n // 2].max()), float(high)


def _histogram(patterns: Array) -> NDArray[np.int64]:
    counts = np.zeros(2**16 if patterns.itemsize == 2 else 2**8, np.int64)
    step = 4 * counts.size  # a shorter one spends its time on adding up
    for at in range(0, patterns.size, step):
        counts += np.bincount(patterns[at : at + step], minlength=counts.size)
    return counts
