"""Odd files, on demand: what real instruments have left on disk (facts 2.3, 2.6)."""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .cards import BLOCK, Value

__all__ = ["FAULTS", "Fault"]


Spoil = Callable[[bytes, int], bytes]


def _same(data: bytes, fill: int) -> bytes:
    return data


@dataclass(frozen=True, slots=True)
class Fault:
    """Cards that replace the frame's own, then a change of the finished bytes.

    `spoil` gets the whole file and how many bytes fill its last block.
    """

    what: str
    spoil: Spoil = _same
    cards: Mapping[str, Value] = field(default_factory=dict)


def _junk_fill(data: bytes, fill: int) -> bytes:
    end = data.index(b"END" + b" " * 77) + 80
    block = -(-end // BLOCK) * BLOCK
    return data[:end] + b"\x07" * (block - end) + data[block:]


def _flipped(data: bytes, fill: int) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


FAULTS = {
    "zero": Fault("an empty file", lambda data, fill: b""),
    "text": Fault("no FITS at all", lambda data, fill: b"out of disk space\n" * 20),
    "truncated": Fault("cut in the pixels", lambda data, fill: data[: len(data) * 2 // 3]),
    "header": Fault("cut in the header", lambda data, fill: data[:2000]),
    "unpadded": Fault("last block not filled", lambda data, fill: data[: len(data) - fill]),
    "trailing": Fault("bytes behind the end", lambda data, fill: data + b"junk" * 700),
    "junkfill": Fault("no blanks behind END", _junk_fill),
    "gzip": Fault("compressed", lambda data, fill: gzip.compress(data, 1, mtime=0)),
    "checksum": Fault("one bit flipped", _flipped),
    "deadclock": Fault(
        "the keyword server of the clock is dead",
        cards=dict.fromkeys(("DATE-OBS", "UT", "UTC", "TIME-OBS"), "#### Error ###"),
    ),
    "name": Fault(
        "the header names another file",
        cards=dict.fromkeys(("OFNAME", "DATAFILE", "FILENAME", "OUTFILE"), "other_0001.fits"),
    ),
}
