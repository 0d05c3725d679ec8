"""Exact statistics of an image, from the numbers as stored and without a 64-bit copy."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LARGE = 8 << 20  # bytes; an image beyond that is not copied for its median
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

    @property
    def mean(self) -> float:
        """Mean; not finite if any pixel is not."""
        return self._mean * self.scale + self.zero

    @property
    def sd(self) -> float:
        """Standard deviation of the population."""
        with np.errstate(all="ignore"):
            total = sum(float((n * (part - self._mean) ** 2).sum()) for part, n in self._parts())
        return math.sqrt(total / self.raw.size) * abs(self.scale)

    @property
    def median(self) -> float:
        """Median, of an even number the mean of the two in the middle."""
        if not math.isfinite(self._mean):
            return math.nan
        middle = [(self.raw.size - 1) // 2, self.raw.size // 2]
        if self._counted:
            values, counts = self._counted
            pair = values[np.searchsorted(counts.cumsum(), middle, side="right")]
        elif self.raw.nbytes > LARGE and self.raw.itemsize == 4:
            pair = np.array([self._ranked(rank) for rank in {*middle}])
        else:
            native = self.raw.reshape(-1).astype(self.raw.dtype.newbyteorder("="))
            native.partition(middle)
            pair = native[middle]
        return float(pair.mean(dtype=np.float64)) * self.scale + self.zero

    def _ranked(self, rank: int) -> float:
        """Return the number of a rank, by counting upper halves and then lower: no copy."""
        halves = self.raw.reshape(-1).view(">u2").reshape(-1, 2)
        parts = [halves[at : at + CHUNK] for at in range(0, len(halves), CHUNK)]
        every = np.arange(2**16)
        order = np.where(every & SIGN, every - 2**16, every).argsort()
        if self.raw.dtype.kind == "f":  # negative floats rise as their bits fall
            order[:SIGN] = order[:SIGN][::-1]
        upper, rank = _pick(order, rank, (part[:, 0] for part in parts))
        if self.raw.dtype.kind == "f" and upper & SIGN:
            every = every[::-1]
        lower, _ = _pick(every, rank, (p[:, 1][p[:, 0] == upper] for p in parts))
        return float(np.uint32(upper << 16 | lower).view(f"{self.raw.dtype.kind}4"))

    def count_from(self, level: float) -> int:
        """Count the pixels that are `level` or more."""
        if self.scale == 0:
            return self.raw.size if self.zero >= level else 0
        limit = (level - self.zero) / self.scale
        values, counts = self._counted or (self.raw, None)
        hit = values >= limit if self.scale > 0 else values <= limit
        return int(np.count_nonzero(hit) if counts is None else counts[hit].sum())

    @cached_property
    def _mean(self) -> float:
        with np.errstate(all="ignore"):
            return sum(float((n * part).sum()) for part, n in self._parts()) / self.raw.size

    @cached_property
    def _counted(self) -> tuple[Array, Array] | None:
        """The numbers of up to 16 bits, sorted, and how often each stands there."""
        if (width := self.raw.itemsize) > 2:
            return None
        # Counted as the file's bytes, which only then are put in this machine's order.
        bits, kinds = self.raw.reshape(-1).view(f"u{width}"), 256**width
        parts = (bits[at : at + CHUNK] for at in range(0, bits.size, CHUNK))
        counts = sum(np.bincount(part, minlength=kinds) for part in parts)
        values = np.arange(kinds, dtype=bits.dtype).view(self.raw.dtype).astype(np.int64)
        order = values.argsort()
        return values[order], np.asarray(counts)[order]

    def _parts(self) -> Iterator[tuple[Array, Array | int]]:
        """Yield numbers in 64 bits, and how often each counts."""
        if self._counted:
            yield self._counted
            return
        flat = self.raw.reshape(-1)
        for at in range(0, flat.size, CHUNK):
            yield flat[at : at + CHUNK].astype(np.float64), 1


def _pick(order: Array, rank: int, parts: Iterator[Array]) -> tuple[int, int]:
    """Return the number of a rank among 16-bit ones in this order, and its rank in there."""
    counts = sum(np.bincount(part, minlength=2**16) for part in parts)
    below = np.asarray(counts)[order].cumsum()
    at = int(np.searchsorted(below, rank, side="right"))
    return int(order[at]), rank - (int(below[at - 1]) if at else 0)
