"""Exact statistics of an image, from the numbers as stored and without a 64-bit copy."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SIGN = 2**15  # the sign, in the upper half of 32 bits
CHUNK = 2**18  # pixels; shorter ones spend their time on adding up 2**16 counts


@dataclass
class Statistics:
    """Statistics of the stored numbers `raw`; pixel = raw x `scale` + `zero`.

    Up to 16 bits are counted by value, others summed in chunks.
    """

    raw: Array
    scale: float = 1.0
    zero: float = 0.0

    def __post_init__(self) -> None:
        self._flat = self.raw.reshape(-1)

    @cached_property
    def mean(self) -> float:
        """Mean; not finite if any pixel is not."""
        return self._sum(lambda pixels: pixels) / self.raw.size

    @property
    def sd(self) -> float:
        """Standard deviation of the population."""
        return math.sqrt(self._sum(lambda pixels: (pixels - self.mean) ** 2) / self.raw.size)

    @property
    def median(self) -> float:
        """Median, of an even number the mean of the two in the middle."""
        if not math.isfinite(self.mean):
            return math.nan
        if self.raw.itemsize == 8:
            return float(np.median(self.raw)) * self.scale + self.zero
        low, high = map(self._ranked, ((self.raw.size - 1) // 2, self.raw.size // 2))
        return (low + high) / 2 * self.scale + self.zero

    def count_from(self, level: float) -> int:
        """Count the pixels that are `level` or more."""
        if self.raw.dtype.kind in "iu" and self.scale == 1 and math.isfinite(level - self.zero):
            lowest = math.ceil(level - self.zero)  # 30 times as fast as counting by value
            return sum(int(np.count_nonzero(part >= lowest)) for part in _chunks(self._flat))
        return int(self._sum(lambda pixels: pixels >= level))

    def _sum(self, function: Callable[[Array], Array]) -> float:
        with np.errstate(all="ignore"):
            return sum(float((times * function(part)).sum()) for part, times in self._parts())

    def _parts(self) -> Iterator[tuple[Array, Array | int]]:
        """Yield pixels in 64 bits, and how often each stands there."""
        numbers = [self._counted] if self._counted else ((part, 1) for part in _chunks(self._flat))
        for part, times in numbers:
            yield part.astype(np.float64) * self.scale + self.zero, times

    @cached_property
    def _counted(self) -> tuple[Array, Array] | None:
        """The numbers of up to 16 bits, sorted, and how often each stands there."""
        if (width := self.raw.itemsize) > 2:
            return None
        # Counted as the file's bytes, which only then are put in this machine's order.
        counts = _counts(_chunks(self._flat.view(f"u{width}")))[: 256**width]
        values = np.arange(256**width, dtype=f"u{width}").view(self.raw.dtype).astype(np.int64)
        order = values.argsort()
        return values[order], counts[order]

    def _ranked(self, rank: int) -> float:
        """Return the number of a rank, by counting upper halves and then lower: no copy."""
        if self._counted:
            values, counts = self._counted
            return float(values[np.searchsorted(counts.cumsum(), rank, side="right")])
        halves = self._flat.view(">u2").reshape(-1, 2)
        every, kind = np.arange(2**16), self.raw.dtype.kind
        order = every ^ SIGN  # negative numbers first
        if kind == "f":  # and of them floats rise as their bits fall
            order[:SIGN] = order[:SIGN][::-1]
        upper, rank = _pick(order, rank, _chunks(halves[:, 0]))
        if kind == "f" and upper & SIGN:
            every = every[::-1]
        lower, _ = _pick(every, rank, (p[:, 1][p[:, 0] == upper] for p in _chunks(halves)))
        return float(np.uint32(upper << 16 | lower).view(f"{kind}4"))


def _chunks(array: Array) -> Iterator[Array]:
    return (array[at : at + CHUNK] for at in range(0, len(array), CHUNK))


def _counts(parts: Iterable[Array]) -> Array:
    return np.asarray(sum(np.bincount(part, minlength=2**16) for part in parts))


def _pick(order: Array, rank: int, parts: Iterable[Array]) -> tuple[int, int]:
    """Return the number of a rank among 16-bit ones in this order, and its rank in there."""
    below = _counts(parts)[order].cumsum()
    at = int(np.searchsorted(below, rank, side="right"))
    return int(order[at]), rank - (int(below[at - 1]) if at else 0)
