"""FITS as bytes: structure, cards, header edits, checksums, pixels (FITS Standard 4.0).

Nothing here touches a file; whatever the bytes, reading raises `FitsError` or nothing.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap
from typing import Any

import numpy as np

BLOCK = 2880
CARD = 80
MAX_CARDS = 20_000  # of one header; the longest real one (LRIS) has 722
MAX_HDUS = 1_000  # of one file; KPF has the most, about twenty
MAX_AXES = 999  # FITS Standard 4.4.1.1
MAX_DATA = 2**36  # bytes of one data unit, 64 GiB; a whole real frame has 0.2
MAX_KEYWORD = 57  # characters after HIERARCH; leaves room for a string of eight
NUMPY_AXES = 64  # no numpy array has more
CHUNK = 2**22  # bytes summed at a time; 2**32 words would overflow 64 bits

Buffer = bytes | bytearray | memoryview | mmap
Value = str | int | float | bool | None

_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_MAGIC = (b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"PK\x03\x04", b"\xfd7zXZ\0", b"(\xb5/\xfd")
_COMMENTARY = ("", "COMMENT", "HISTORY")
# END may have junk in its own card.  A block of NULs is a hole in a file whose pages
# have not all arrived: the next END beyond it would be another HDU's.
_CARDS = re.compile(
    rb"(?:(?!END(?: {5}|[^A-Z0-9_\- ]| {1,4}[^A-Z0-9_\- ])|\0{2880})[\0-\xff]{80})*+"
)
# Lastly 'it's', a quote that is not doubled.
_STRING = re.compile(r" *'((?:[^']|'')*|.*?)' *(?:/(.*))?", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[EDed][+-]?[0-9]+)?")
_COMPLEX = re.compile(rf"\( *{_NUMBER.pattern} *, *{_NUMBER.pattern} *\)")
_WORDS: dict[str, Value] = {"": None, "T": True, "F": False}
_UNPRINTABLE = re.compile(r"[^ -~]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_KEYWORD = re.compile(r"[A-Z0-9_.-]{1,8}")
_HIERARCH = re.compile(r"[!-<>-~]+(?: [!-<>-~]+)*")
_FIXED = re.compile(r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|[PG]COUNT|CONTINUE|END")
_SUM_NOTES = {"DATASUM": "KOA: data unit checksum", "CHECKSUM": "KOA: HDU checksum"}


class FitsError(Exception):
    """The file is at fault; the text says how."""

    code = "UNREADABLE_FITS"


class EmptyFile(FitsError):
    """There is not one byte."""

    code = "EMPTY_FILE"


class UnreadableFits(FitsError):
    """The bytes are no FITS file."""


class CompressedRaw(FitsError):
    """The file is compressed: gzip, compress, bzip2, zip, xz, zstd or fpack."""

    code = "COMPRESSED_RAW"


class CorruptedHdu(FitsError):
    """A header declares what cannot be."""

    code = "CORRUPTED_HDU"


class Truncated(FitsError):
    """The file has `size` bytes so far and must have `needed` at the least."""

    code = "TRUNCATED"

    def __init__(self, message: str, needed: int, size: int) -> None:
        super().__init__(message)
        self.needed, self.size = needed, size


@dataclass(frozen=True, slots=True)
class Card:
    """One card; where it is `unreadable`, `value` is its text as latin-1."""

    keyword: str
    value: Value
    comment: str
    raw: bytes
    unreadable: bool = False


class Header:
    """The cards before END in order, repeats kept, read when asked for.

    Case does not matter in a keyword, nor does HIERARCH in front of it.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __contains__(self, keyword: str) -> bool:
        return _name(keyword) in self._index

    @cached_property
    def cards(self) -> tuple[Card, ...]:
        """All cards, those of CONTINUE and blank ones too."""
        return tuple(self._at(n) for n in range(0, len(self.raw), CARD))

    @cached_property
    def _index(self) -> dict[str, int]:
        text = self.raw.decode("latin-1")
        starts = reversed(range(0, len(text), CARD))
        return {_split(text[n : n + CARD])[0].upper(): n for n in starts}

    def _at(self, start: int) -> Card:
        return parse_card(self.raw[start : start + CARD])

    def card(self, keyword: str) -> Card | None:
        """Return the first card of a keyword."""
        start = self._index.get(_name(keyword))
        return None if start is None else self._at(start)

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return the first value of a keyword, a long string in one piece."""
        card = self.card(keyword)
        if card is None or not isinstance(card.value, str):
            return card.value if card else default
        pieces = [card.value]
        for start in range(self._index[_name(keyword)] + CARD, len(self.raw), CARD):
            more = self._at(start) if pieces[-1].endswith("&") else card
            if more.keyword != "CONTINUE":
                break
            pieces[-1:] = [pieces[-1][:-1], str(more.value)]
        return "".join(pieces).rstrip(" ")

    def items(self) -> Iterator[tuple[str, Value]]:
        """Yield keyword and value, card by card."""
        return ((card.keyword, card.value) for card in self.cards)

    def as_list(self) -> list[list[Value]]:
        """Return [keyword, value, comment] of every card, fit for a JSON store."""
        return [[clean(t) for t in (c.keyword, c.value, c.comment)] for c in self.cards]


@dataclass(frozen=True, slots=True)
class Hdu:
    """One header-data unit; offsets and sizes in bytes, `shape` in numpy's order."""

    index: int
    name: str
    kind: str
    header: Header
    start: int
    data_start: int
    data_size: int
    bitpix: int
    shape: tuple[int, ...]

    @property
    def data_end(self) -> int:
        """Offset behind the last data byte."""
        return self.data_start + self.data_size

    @property
    def end(self) -> int:
        """Offset behind the padding."""
        return _padded(self.data_end)


@dataclass(frozen=True, slots=True)
class Structure:
    """A complete file and what is odd about it; `trailing` bytes follow the HDUs."""

    hdus: tuple[Hdu, ...]
    size: int
    header_junk: bool
    padding_missing: bool
    trailing: int


def read_structure(data: Buffer, min_hdus: int = 1) -> Structure:
    """Find the HDUs of a file that is there to its last data byte.

    Raises `Truncated` while bytes are missing, or HDUs that `min_hdus` or NEXTEND ask
    for, and another `FitsError` if more bytes would not help.
    """
    hdus: list[Hdu] = []
    end, junk = 0, False
    with memoryview(data).cast("B") as view:
        size = len(view)
        while _hdu_follows(view, end):
            hdu = _read_hdu(view, len(hdus), end)
            fill = bytes(view[hdu.start + len(hdu.header.raw) : hdu.data_start])
            junk = junk or fill.rstrip(b" ") != b"END"
            hdus.append(hdu)
            end = hdu.end
    extra, extend = (hdus[0].header.get(key) for key in ("NEXTEND", "EXTEND"))
    # A NEXTEND beyond any file is not believed.
    if isinstance(extra, int) and extend is not False and extra < MAX_HDUS:
        min_hdus = max(min_hdus, extra + 1)
    if len(hdus) < min_hdus:
        text = f"The file has {len(hdus)} HDUs, it should have {min_hdus}."
        raise Truncated(text, max(size, end) + BLOCK, size)
    return Structure(tuple(hdus), size, junk, end > size, max(0, size - end))


def _hdu_follows(view: memoryview, at: int) -> bool:
    head = bytes(view[at : at + 9])
    if at:
        if 0 < len(head) < 8 and b"XTENSION".startswith(head):
            raise Truncated("The file ends in an XTENSION.", at + BLOCK, len(view))
        return head.startswith(b"XTENSION")
    if not head:
        raise EmptyFile("The file is empty.")
    if head.startswith(_MAGIC):
        raise CompressedRaw("The file is compressed; only plain FITS is taken.")
    if not b"SIMPLE  =".startswith(head):
        text = head.decode("latin-1")
        raise UnreadableFits(f"The file begins with {text!r}, not with 'SIMPLE  ='.")
    return True


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _find_end(view: Buffer, index: int, start: int) -> int:
    found = _CARDS.match(view, start, start + MAX_CARDS * CARD)
    at = found.end() if found else start
    if index == MAX_HDUS or at == start + MAX_CARDS * CARD:
        raise CorruptedHdu(f"HDU {index} has too many cards or HDUs before it.")
    if at + CARD > len(view) or view[at : at + 3] != b"END":
        text = f"The header of HDU {index} is incomplete from byte {at} on."
        raise Truncated(text, max(len(view), _padded(at + CARD)), len(view))
    return at


def _read_hdu(view: memoryview, index: int, start: int) -> Hdu:
    end = _find_end(view, index, start)
    header, at = Header(bytes(view[start:end])), _padded(end + CARD)
    kind = _kind(header, index)
    axes = range(_whole(header, "NAXIS", index, high=MAX_AXES), 0, -1)
    shape = tuple(_whole(header, f"NAXIS{n}", index) for n in axes)
    bitpix = _whole(header, "BITPIX", index, -64)
    size = abs(bitpix) // 8 * _count(header, index, shape)
    if bitpix not in _TYPES or size > MAX_DATA:
        raise CorruptedHdu(f"HDU {index} declares {size} bytes at BITPIX {bitpix}.")
    if size and at + size > len(view):
        text = f"The data of HDU {index} end at byte {at + size} of {len(view)}."
        raise Truncated(text, at + size, len(view))
    name = str(header.get("EXTNAME") or "").strip()
    return Hdu(index, name, kind, header, start, at, size, bitpix, shape)


def _kind(header: Header, index: int) -> str:
    value = header.get("XTENSION" if index else "SIMPLE")
    if index == 0 and not isinstance(value, bool):
        raise UnreadableFits(f"SIMPLE is {value!r}, neither T nor F.")
    if index and not isinstance(value, str):
        raise CorruptedHdu(f"HDU {index}: XTENSION is {value!r}, not a name.")
    if index == 1 and header.get("ZIMAGE") is True:
        raise CompressedRaw("The file is compressed by fpack; only FITS is taken.")
    return str(value).strip() if index else "PRIMARY"


def _whole(h: Header, key: str, index: int, low: int = 0, high: int = MAX_DATA) -> int:
    value = h.get(key)
    if isinstance(value, float) and value.is_integer():  # 1024. is not unheard of
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        error = CorruptedHdu if index else UnreadableFits
        raise error(f"HDU {index}: {key} is {value!r}, not a whole number.")
    if not low <= value <= high:
        raise CorruptedHdu(f"HDU {index}: {key} is {value}, which is absurd.")
    return value


def _count(header: Header, index: int, shape: tuple[int, ...]) -> int:
    """Count the numbers of a data unit (FITS Standard 4.4.1, 6.1, 7)."""
    groups = index == 0 and shape[-1:] == (0,) and header.get("GROUPS") is True
    count = math.prod(shape[:-1] if groups else shape) if shape else 0
    if shape and (index or groups):
        count += _whole(header, "PCOUNT", index) if "PCOUNT" in header else 0
        count *= _whole(header, "GCOUNT", index) if "GCOUNT" in header else 1
    return count


def _name(keyword: str) -> str:
    return keyword.strip().upper().removeprefix("HIERARCH ").lstrip()


def _split(card: str) -> tuple[str, int]:
    """Return the keyword and where its value begins, 0 if it has none."""
    key = card[:8].rstrip()
    if key in _COMMENTARY or key == "CONTINUE":
        return key, 8 if key == "CONTINUE" else 0
    if key == "HIERARCH" and (equals := card.find("=", 9)) > 0:
        return card[9:equals].strip(), equals + 1
    equals = 8 if card[8:9] == "=" else card.find("= ", 0, 9)
    return (card[:equals].strip(), equals + 1) if equals > 0 else (key, 0)


def parse_card(raw: bytes) -> Card:
    """Read one card of 80 bytes, whatever they are."""
    text = raw.decode("latin-1")
    keyword, at = _split(text)
    if at:
        value, comment, odd = _parse_value(text[at:])
        return Card(keyword, value, comment, raw, odd)
    odd = keyword not in _COMMENTARY or bool(_UNPRINTABLE.search(text))
    return Card(keyword, text[8:].rstrip(), "", raw, odd)


def _parse_value(field: str) -> tuple[Value, str, bool]:
    """Return value, comment, and whether the value is unreadable."""
    text, _, comment = field.partition("/")
    if found := _STRING.fullmatch(field):
        text = found[1].replace("''", "'").rstrip(" ")
        return text, (found[2] or "").strip(), bool(_UNPRINTABLE.search(text))
    value = _parse_plain(text.strip(" "))
    if value is not NotImplemented:
        return value, comment.strip(), False
    text, _, comment = field.partition("\0" if "'" in field else " /")
    return text.strip(), comment.strip(), True
