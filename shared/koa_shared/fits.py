"""FITS as bytes (FITS Standard 4.0): whatever they are, only `FitsError` comes."""

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

BLOCK, CARD = 2880, 80
MAX_CARDS = 20_000  # of one header; the longest real ones have 721 (HIRES, LRIS)
MAX_HDUS = 1_000  # of one file; five are the most in the headers at hand (LRIS)
SIZES = range(2**34 + 1)  # bytes of data, to 100 times a real frame; sum fits 64 bits
Buffer = bytes | bytearray | memoryview
Value = str | int | float | bool | None
_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_MAGIC = (b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"PK\x03\x04", b"\xfd7zXZ\0", b"(\xb5/\xfd")
_COMMENTARY = ("", "COMMENT", "HISTORY")
_SUM_NOTES = {"DATASUM": "KOA: data unit checksum", "CHECKSUM": "KOA: HDU checksum"}
# END may have junk in its own card.  A block of NULs is a hole in a file whose pages
# have not all arrived: the next END beyond it would be another HDU's.
_CARDS = re.compile(rb"(?s:(?!END(?: {5}| {0,4}[^A-Z0-9_ -])|\0{2880}).{80})*+")
_NUMBER = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[EDed][+-]?[0-9]++)?"
_STRING = r"'((?:[^']|'')*|.*?)'"  # the second choice is 'it's', a quote not doubled
_PLAIN = rf"({_NUMBER})|(\( *{_NUMBER} *, *{_NUMBER} *\))|([TF]?)"
_FIELD = re.compile(rf" *+(?:{_STRING}|{_PLAIN}) *+(?:/(.*))?", re.DOTALL)
_UNPRINTABLE = re.compile(r"[^ -~]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_SHORT_KEYWORD = re.compile(r"[A-Z0-9_.-]{1,8}")
_KEYWORD = re.compile(r"[!-<>-~]+(?: [!-<>-~]+)*")
_FIXED = re.compile(r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|[PG]COUNT|CONTINUE|END|.{49,}")


class FitsError(Exception):
    """The file is at fault; the text says how, `code` is the finding's."""

    code: str

    def __init_subclass__(cls, code: str) -> None:
        cls.code = code


class EmptyFile(FitsError, code="EMPTY_FILE"):
    """There is not one byte."""


class UnreadableFits(FitsError, code="UNREADABLE_FITS"):
    """The bytes are no FITS file."""


class CompressedRaw(FitsError, code="COMPRESSED_RAW"):
    """The file is compressed: gzip, compress, bzip2, zip, xz, zstd or fpack."""


class CorruptedHdu(FitsError, code="CORRUPTED_HDU"):
    """A header declares what cannot be."""


class Truncated(FitsError, code="TRUNCATED"):
    """The file has `size` bytes so far and must have `needed` at the least."""

    def __init__(self, what: str, needed: int, size: int) -> None:
        self.needed, self.size = max(needed, size + 1), size
        super().__init__(f"{what} not complete: {size} bytes of {self.needed} or more are there.")


class Card(NamedTuple):
    """One card; where it is `unreadable`, `value` is its text as latin-1."""

    keyword: str
    value: Value
    comment: str
    raw: bytes
    unreadable: bool = False


@dataclass(frozen=True)
class Header:
    """The cards before END in order, read when asked for; keywords in any case."""

    raw: bytes = field(repr=False)

    def __contains__(self, keyword: str) -> bool:
        return keyword.upper() in self._index

    @cached_property
    def cards(self) -> tuple[Card, ...]:
        """All cards: repeats, CONTINUE and blank ones too."""
        return tuple(map(self._card, range(0, len(self.raw), CARD)))

    @cached_property
    def _index(self) -> dict[str, int]:
        text = self.raw.decode("latin-1")
        starts = reversed(range(0, len(text), CARD))
        return {_split(text[at : at + CARD])[0].upper(): at for at in starts}

    def _card(self, at: int) -> Card:
        return parse_card(self.raw[at : at + CARD])

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return the first value of a keyword, a long string in one piece."""
        if (at := self._index.get(keyword.upper())) is None:
            return default
        value, pieces = self._card(at).value, list[str]()
        while isinstance(value, str) and value.endswith("&"):
            card = self._card(at := at + CARD)
            if card.keyword != "CONTINUE":
                break
            pieces.append(value[:-1])
            value = card.value
        return f"{''.join(pieces)}{value}".rstrip(" ") if pieces else value

    def as_list(self) -> list[list[Value]]:
        """Return [keyword, value, comment] of every card, fit for a JSON store."""
        return [[clean(text) for text in card[:3]] for card in self.cards]


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


class Structure(NamedTuple):
    """A complete file and what is odd about it; `trailing` bytes follow the HDUs."""

    hdus: tuple[Hdu, ...]
    size: int
    header_junk: bool
    padding_missing: bool
    trailing: int


def read_structure(data: Buffer, min_hdus: int = 1) -> Structure:
    """Find the HDUs; `Truncated` while data bytes or HDUs asked for are missing."""
    view, hdus, end, junk = memoryview(data).cast("B"), list[Hdu](), 0, False
    while _hdu_follows(view, end):
        hdu = _read_hdu(view, len(hdus), end)
        fill = bytes(view[hdu.start + len(hdu.header.raw) : hdu.data_start])
        junk = junk or fill.rstrip(b" ") != b"END"
        hdus.append(hdu)
        end = hdu.end
    size = len(view)
    extra, extend = (hdus[0].header.get(key) for key in ("NEXTEND", "EXTEND"))
    if type(extra) is int and extra < MAX_HDUS and extend is not False:
        min_hdus = max(min_hdus, extra + 1)
    if len(hdus) < min_hdus:
        raise Truncated(f"{len(hdus)} of {min_hdus} HDUs are there; the file is", end + 1, size)
    return Structure(tuple(hdus), size, junk, end > size, max(0, size - end))


def _hdu_follows(view: memoryview, at: int) -> bool:
    word = b"XTENSION" if at else b"SIMPLE  ="
    if (head := bytes(view[at : at + len(word)])) == word:
        return True
    if head and word.startswith(head):
        raise Truncated(f"The word {word!r} is", at + BLOCK, len(view))
    if at:
        return False
    if not head:
        raise EmptyFile("The file is empty.")
    if head.startswith(_MAGIC):
        raise CompressedRaw("The file is compressed; only plain FITS is taken.")
    raise UnreadableFits(f"The file begins with {head!r}, not with {word!r}.")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _find_end(view: Buffer, index: int, start: int) -> int:
    at = next(_CARDS.finditer(view, start, start + MAX_CARDS * CARD)).end()
    if index == MAX_HDUS or at == start + MAX_CARDS * CARD:
        raise CorruptedHdu(f"HDU {index} has too many cards or HDUs before it.")
    if at + CARD > len(view) or view[at : at + 3] != b"END":
        raise Truncated(f"The header of HDU {index} is", _padded(at + CARD), len(view))
    return at


def _read_hdu(view: memoryview, index: int, start: int) -> Hdu:
    end = _find_end(view, index, start)
    header, at = Header(bytes(view[start:end])), _padded(end + CARD)
    kind = header.get("XTENSION" if index else "SIMPLE")
    if not isinstance(kind, str if index else bool):
        raise (CorruptedHdu if index else UnreadableFits)(f"HDU {index} is a {kind!r}.")
    if index == 1 and header.get("ZIMAGE") is True:
        raise CompressedRaw("The file is compressed by fpack; only FITS is taken.")
    axes = _whole(header, "NAXIS", index, range(1_000))  # FITS Standard 4.4.1.1
    shape = tuple(_whole(header, f"NAXIS{n}", index) for n in range(axes, 0, -1))
    bitpix = _whole(header, "BITPIX", index, _TYPES)
    size = abs(bitpix) // 8 * _count(header, index, shape)
    if size not in SIZES:
        raise CorruptedHdu(f"HDU {index} declares absurdly many bytes.")
    if size and at + size > len(view):
        raise Truncated(f"The data of HDU {index} are", at + size, len(view))
    kind = str(kind).strip() if index else "PRIMARY"
    name = str(header.get("EXTNAME") or "").strip()
    return Hdu(index, name, kind, header, start, at, size, bitpix, shape)


def _whole(header: Header, key: str, index: int, good: Container[int] = SIZES) -> int:
    value = header.get(key)
    if type(value) is not int:
        error = CorruptedHdu if index else UnreadableFits
        raise error(f"HDU {index}: {key} is {value!r}, not a whole number.")
    if value not in good:
        raise CorruptedHdu(f"HDU {index}: {key} is {value}, which is absurd.")
    return value


def _count(header: Header, index: int, shape: tuple[int, ...]) -> int:
    # Numbers in a data unit, by FITS Standard 4.4.1, 6.1 and 7.
    groups = index == 0 and shape[-1:] == (0,) and header.get("GROUPS") is True
    count = math.prod(shape[:-1] if groups else shape) if shape else 0
    if shape and (index or groups):
        count += _whole(header, "PCOUNT", index) if "PCOUNT" in header else 0
        count *= _whole(header, "GCOUNT", index) if "GCOUNT" in header else 1
    return count


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
    if not at:
        odd = keyword not in _COMMENTARY or bool(_UNPRINTABLE.search(text))
        return Card(keyword, text[8:].rstrip(), "", raw, odd)
    if not (found := _FIELD.fullmatch(text, at)):
        text, _, comment = text[at:].partition(" /")
        return Card(keyword, text.strip(), comment.strip(), raw, unreadable=True)
    string, number, pair, logical, comment = found.groups()
    value = {"T": True, "F": False}.get(logical, pair)
    if number:
        whole = number.lstrip("+-").isdigit()
        value = int(number) if whole else float(re.sub("[Dd]", "E", number))
    elif string is not None:
        value = string.replace("''", "'").rstrip(" ")
    odd = bool(_UNPRINTABLE.search(string or ""))
    return Card(keyword, value, (comment or "").strip(), raw, odd)


def clean(value: object) -> Value:
    """Return what every JSON store takes: no NUL, lone surrogate, NaN, Infinity."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")  # to U+DC80 ... U+DCFF
    return _UNSTORABLE.sub(lambda m: f"\\x{ord(m[0]) % 0xDC00:02x}", str(value))


def edit_header(raw: bytes, updates: Sequence[tuple[str, Value, str]]) -> bytes:
    """Set keywords in place of their first card, else before END; the rest stays."""
    fresh: dict[tuple[str, int], list[bytes]] = {}
    for n, (keyword, value, comment) in enumerate(updates, start=1):
        key = keyword.strip().upper()
        fresh[key, n * (key in _COMMENTARY)] = _format_cards(key, value, comment)
    cards, place, left = list[bytes](), ("", 0), dict(fresh)
    for at in range(0, _find_end(raw, 0, 0), CARD):
        card = raw[at : at + CARD]
        if (name := _split(card.decode("latin-1"))[0].upper()) != "CONTINUE":
            place = (name, 0)  # what CONTINUE belongs to
        cards += left.pop(place, []) if place in fresh else [card]
    text = b"".join([*cards, *(card for new in left.values() for card in new), b"END"])
    return text.ljust(_padded(len(text)))


def _format_cards(key: str, value: Value, comment: str) -> list[bytes]:
    cards = _format_value(key, value)
    legal = not _FIXED.fullmatch(key) and (not key or _KEYWORD.fullmatch(key))
    if not legal or max(map(len, cards)) > CARD:
        raise ValueError(f"No card can be made of {key!r} and {value!r:.99}.")
    if comment and key not in _COMMENTARY:
        cards[-1] = f"{cards[-1]} / {_ascii(comment)}"[:CARD]
    return [card.ljust(CARD).encode("ascii") for card in cards]


def _format_value(key: str, value: Value) -> list[str]:
    if key in _COMMENTARY:
        return [f"{key:8}{_ascii(str(value))}"]
    start = f"{key:8}= " if _SHORT_KEYWORD.fullmatch(key) else f"HIERARCH {key} = "
    if isinstance(value, bool | int):
        return [f"{start}{'FT'[value] if isinstance(value, bool) else value:>20}"]
    if isinstance(value, float) and math.isfinite(value):
        text = repr(float(value)).upper()
        return [f"{start}{text if '.' in text else text.replace('E', '.0E'):>20}"]
    text = _ascii(value).replace("'", "''") if isinstance(value, str) else "null"
    cards = []
    while len(start) + len(text) + 2 > CARD:
        cut = CARD - len(start) - 3
        cut -= (cut - len(text[:cut].rstrip("'"))) % 2  # keeps '' together
        cards.append(f"{start}'{text[:cut]}&'")
        start, text = "CONTINUE  ", text[cut:]
    text = f"'{text:8}'"
    return [*cards, f"{start}{text:20}"]


def _ascii(text: str) -> str:
    return _UNPRINTABLE.sub(lambda m: f"&#{ord(m[0])};", text)


def datasum(data: Buffer, total: int = 0) -> int:
    """Add bytes to a ones-complement sum of 32 bits; only the last may be no word."""
    view = memoryview(data).cast("B")
    words = np.frombuffer(view, ">u4", len(view) // 4)
    tail = bytes(view[words.nbytes :]).ljust(4, b"\0")
    total += int(words.sum(dtype=np.uint64)) + int.from_bytes(tail, "big")
    return total and (total - 1) % 0xFFFFFFFF + 1


def encode_checksum(total: int, complement: bool = True) -> str:  # noqa: FBT001, FBT002
    """Return the 16 characters of a CHECKSUM card (FITS Standard, appendix J)."""
    columns = []
    for byte in (total ^ (0xFFFFFFFF * complement)).to_bytes(4, "big"):
        codes = [ord("0") + byte // 4 + more for more in (byte % 4, 0, 0, 0)]
        for n in (0, 2):
            while not bytes(codes[n : n + 2]).isalnum():
                codes[n], codes[n + 1] = codes[n] + 1, codes[n + 1] - 1
        columns.append(codes)
    text = bytes(column[n] for n in range(4) for column in columns).decode("ascii")
    return text[-1] + text[:-1]


def verify_checksums(data: Buffer, hdu: Hdu) -> list[str]:
    """Return which of DATASUM and CHECKSUM do not match; blank ones are passed over."""
    header, view = hdu.header, memoryview(data).cast("B")
    texts = {k: str(v).strip() for k in _SUM_NOTES if (v := header.get(k)) is not None}
    if not any(texts.values()):
        return []
    head = bytes(view[hdu.start : hdu.data_start]).ljust(hdu.data_start - hdu.start)
    body = datasum(view[hdu.data_start : hdu.end])
    right = {"DATASUM": texts.get("DATASUM", "").lstrip("0") == str(body).lstrip("0")}
    right["CHECKSUM"] = datasum(head, body) in (0, 0xFFFFFFFF)
    return [key for key, text in texts.items() if text and not right[key]]


def with_checksum(header: bytes, data_sum: int) -> bytes:
    """Return a header with the sums right that it carries, else as it is."""
    known = Header(header[: _find_end(header, 0, 0)])
    for key, note in _SUM_NOTES.items():
        if key == "DATASUM" and key in known:
            header = edit_header(header, [(key, str(data_sum), note)])
        elif key in known:
            header = edit_header(header, [(key, "0" * 16, note)])
            text = encode_checksum(datasum(header, data_sum))
            header = edit_header(header, [(key, text, note)])
    return header


def pixels(data: Buffer, hdu: Hdu) -> np.ndarray[Any, Any] | None:
    """Return the numbers of an image as stored: a view, big-endian, not scaled."""
    image = hdu.kind in ("PRIMARY", "IMAGE") and 0 < len(hdu.shape) <= 64  # numpy takes no more
    count = math.prod(hdu.shape)
    if not image or not 0 < count * abs(hdu.bitpix) // 8 <= hdu.data_size:
        return None
    return np.frombuffer(data, _TYPES[hdu.bitpix], count, hdu.data_start).reshape(hdu.shape)
