"""FITS headers and checksums as bytes, written from scratch (FITS Standard 4.0).

The simulator shares no FITS code with the services, so that a mistake in theirs
shows up as a difference.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["BLOCK", "Card", "Value", "checksummed", "header", "padding"]

BLOCK = 2880
Value = str | int | float | bool
Card = tuple[Value, str]


def header(cards: Mapping[str, Card]) -> bytes:
    """Return the header unit of these cards, in order; COMMENT1, ... are comments."""
    lines = [_line(key, value, comment) for key, (value, comment) in cards.items()]
    text = "".join(lines) + "END".ljust(80)
    return text.ljust(-(-len(text) // BLOCK) * BLOCK).encode("ascii")


def padding(size: int, fill: bytes = b"\0") -> bytes:
    """Return the bytes that complete the last block of a unit of `size` bytes."""
    return fill * (-size % BLOCK)


def checksummed(cards: Mapping[str, Card], data: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """Return the header with valid CHECKSUM and DATASUM cards for its data unit."""
    datasum = _sum(data.data.cast("B")) if data.size else 0
    full = {
        **cards,
        "CHECKSUM": ("0" * 16, "of this HDU"),
        "DATASUM": (str(datasum), "of the data unit"),
    }
    total = _fold(_sum(memoryview(header(full))) + datasum)
    full["CHECKSUM"] = (_encode(~total & 0xFFFFFFFF), "of this HDU")
    return header(full)


def _line(key: str, value: Value, comment: str) -> str:
    if key.startswith("COMMENT"):
        return f"COMMENT {value}"[:80].ljust(80)
    line = f"{key:8}= {_text(value)}"
    return (f"{line} / {comment}" if comment else line)[:80].ljust(80)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return f"{'T' if value else 'F':>20}"
    if isinstance(value, str):
        quoted = value.replace("'", "''")[:68]
        return f"'{quoted:8}'".ljust(20)
    return f"{value!r:>20}".upper()


def _sum(data: memoryview) -> int:
    whole = len(data) // 4 * 4
    words = np.frombuffer(data[:whole], ">u4")
    rest = bytes(data[whole:])
    tail = int.from_bytes(rest.ljust(4, b"\0"), "big") if rest else 0
    return _fold(int(words.sum(dtype=np.uint64)) + tail)


def _fold(total: int) -> int:
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _encode(value: int) -> str:
    """Return the 16 letters of a checksum (FITS Standard 4.0, appendix J.2)."""
    columns = [_quarters(byte) for byte in value.to_bytes(4, "big")]
    text = "".join(chr(columns[b][quarter]) for quarter in range(4) for b in range(4))
    return text[-1] + text[:-1]


def _quarters(byte: int) -> list[int]:
    quarter, rest = divmod(byte, 4)
    codes = [48 + quarter + rest, 48 + quarter, 48 + quarter, 48 + quarter]
    forbidden = {*range(0x3A, 0x41), *range(0x5B, 0x61)}
    while forbidden & set(codes):
        # Opposite steps keep the sum while no letter may be punctuation.
        for a, b in ((0, 1), (2, 3)):
            if {codes[a], codes[b]} & forbidden:
                codes[a] += 1
                codes[b] -= 1
    return codes
