"""FITS as bytes (FITS Standard 4.0): whatever they are, only `FitsError` comes."""

import json
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import FrameFault

BLOCK, CARD = 2880, 80
MAX_CARDS = 20_000  # of one header; the longest real ones have 721 (HIRES, LRIS)
MAX_HDUS = 1_000  # of one file; five are the most in the headers at hand (LRIS)
SIZES = range(2**34 + 1)  # bytes of data, to 100 times a real frame; sum fits 64 bits
Buffer = bytes | bytearray | memoryview
Value = str | int | float | bool | None
Updates = Sequence[tuple[str, Value, str]]  # keyword, value, comment
_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_MAGIC = (b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"PK\x03\x04", b"\xfd7zXZ\0", b"(\xb5/\xfd")
_COMMENTARY = ("", "COMMENT", "HISTORY")
_SUM_NOTES = {"DATASUM": "KOA: data unit checksum", "CHECKSUM": "KOA: HDU checksum"}
# END may have junk in its own card.  A block of NULs is a hole in a file whose pages
# have not all arrived: the next END beyond it would be another HDU's.
_CARDS = re.compile(rb"(?s:(?!END(?: {5}| {0,4}[^A-Z0-9_ -])|\0{2880}).{80})*")
_NUMBER = r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[EDed][+-]?[0-9]++)?"
_STRING = r"'((?:[^']|'')*|.*?)'"  # the second choice is 'it's', a quote not doubled
_FIELD = re.compile(rf"=? *+(?:{_STRING}|({_NUMBER})|([TF]?)) *+(?:/(.*))?", re.DOTALL)
_UNPRINTABLE = re.compile(r"[^ -~]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# What may be set: not what tells the structure, nor what has no value of its own.
_FREE = re.compile(
    r"(?!(?:SIMPLE|XTENSION|BITPIX|NAXIS\d*|[PG]COUNT|END|CONTINUE|COMMENT|HISTORY)$)[A-Z0-9_-]{1,8}"
)


class FitsError(FrameFault):
    """The file can't be archived as FITS; `code` is the finding's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message, "structure")


class Incomplete(FitsError):
    """The file is empty or ends too early: the rest may come."""


class Card(NamedTuple):
    """One card; where it is `unreadable`, `value` is its text as latin-1."""

    keyword: str
    value: Value
    comment: str
    unreadable: bool = False


class Header:
    """The cards before END in order: repeats, CONTINUE and blank ones too."""

    def __init__(self, cards: Iterable[Card]) -> None:
        self.cards = tuple(cards)
        backwards = reversed([*enumerate(self.cards)])
        self._first = {card.keyword.upper(): at for at, card in backwards}

    def get(self, keyword: str, default: Value = None) -> Value:
        """Return the first value of a keyword in any case, a long string in one piece."""
        if (at := self._first.get(keyword.upper())) is None:
            return default
        value, pieces = self.cards[at].value, list[str]()
        while isinstance(value, str) and value.endswith("&"):
            at += 1
            if at == len(self.cards) or self.cards[at].keyword != "CONTINUE":
                break
            pieces.append(value[:-1])
            value = self.cards[at].value
        return "".join([*pieces, str(value)]) if pieces else value

    def as_list(self) -> list[list[Value]]:
        """Return [keyword, value, comment] of every card, fit for a JSON store."""
        return [[clean(text) for text in card[:3]] for card in self.cards]


class Hdu(NamedTuple):
    """One header-data unit; offsets and sizes in bytes, `shape` in numpy's order."""

    header: Header
    name: str = ""
    kind: str = "PRIMARY"
    start: int = 0
    cards_end: int = 0  # where END stands
    data_start: int = 0
    data_size: int = 0
    end: int = 0  # behind the padding
    bitpix: int = 8
    shape: tuple[int, ...] = ()


class Structure(NamedTuple):
    """A complete file, and what is odd about it: finding's code to text."""

    hdus: tuple[Hdu, ...]
    odd: dict[str, str]


def read_structure(data: Buffer, least: int | Callable[[Hdu], int] = 1) -> Structure:
    """Find the HDUs; `Incomplete` while data bytes or HDUs asked for are missing.

    `least` is how many there are at least, or tells it by the primary HDU.
    """
    view, hdus, end = memoryview(data).cast("B"), list[Hdu](), 0
    while _hdu_follows(view, end):
        hdus.append(_read_hdu(view, len(hdus), end))
        end = hdus[-1].end
    min_hdus = least if isinstance(least, int) else least(hdus[0])
    extra, extend = (hdus[0].header.get(key) for key in ("NEXTEND", "EXTEND"))
    if type(extra) is int and extra < MAX_HDUS and extend is not False:
        min_hdus = max(min_hdus, extra + 1)
    if len(hdus) < min_hdus:
        raise Incomplete("TRUNCATED", f"Only {len(hdus)} of {min_hdus} HDUs are there.")
    fills, odd = (view[hdu.cards_end : hdu.data_start] for hdu in hdus), dict[str, str]()
    if any(bytes(fill).rstrip(b" ") != b"END" for fill in fills):
        odd["HEADER_JUNK"] = "the fill behind END is not blanks"
    if (trailing := len(view) - end) < 0:
        odd["PADDING_MISSING"] = "the last block is not filled up"
    elif trailing:
        odd["TRAILING_BYTES"] = f"{trailing} bytes stand behind the last HDU"
    return Structure(tuple(hdus), odd)


def _hdu_follows(view: memoryview, at: int) -> bool:
    word = b"XTENSION" if at else b"SIMPLE  ="
    head = bytes(view[at : at + len(word)])
    if head and head != word and word.startswith(head):
        raise Incomplete("TRUNCATED", f"The file ends within the word {word!r}.")
    if at or head == word:
        return head == word
    if not head:
        raise Incomplete("EMPTY_FILE", "The file is empty.")
    if head.startswith(_MAGIC):
        raise FitsError("COMPRESSED_RAW", "The file is compressed; only plain FITS is taken.")
    raise FitsError("UNREADABLE_FITS", f"The file begins with {head!r}, not with {word!r}.")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read_hdu(view: memoryview, index: int, start: int) -> Hdu:
    last = start + MAX_CARDS * CARD
    end = next(_CARDS.finditer(view, start, last)).end()
    if index == MAX_HDUS or end == last:
        raise FitsError("CORRUPTED_HDU", f"HDU {index} has too many cards or HDUs before it.")
    if end + CARD > len(view) or bytes(view[end : end + 3]) != b"END":
        raise Incomplete("TRUNCATED", f"The header of HDU {index} is not complete.")
    header, data = Header(read_cards(bytes(view[start:end]))), _padded(end + CARD)
    if index == 1 and header.get("ZIMAGE") is True:
        raise FitsError("COMPRESSED_RAW", "The file is compressed by fpack; only FITS is taken.")
    bitpix, shape, size = _layout(header, index)
    if size and (missing := data + size - len(view)) > 0:
        raise Incomplete("TRUNCATED", f"HDU {index} lacks {missing} of its {size} bytes of data.")
    name, kind = (str(header.get(key) or "").strip() for key in ("EXTNAME", "XTENSION"))
    kind = kind if index else "PRIMARY"
    return Hdu(header, name, kind, start, end, data, size, _padded(data + size), bitpix, shape)


def _layout(header: Header, index: int) -> tuple[int, tuple[int, ...], int]:
    """Return BITPIX, shape and bytes of the data (FITS Standard 4.4.1 and 7)."""

    def whole(key: str, good: Container[int] = SIZES, usual: Value = None) -> int:
        if type(value := header.get(key, usual)) is not int:
            text = f"HDU {index}: {key} is {value!r}, not a whole number."
            raise FitsError("UNREADABLE_FITS", text)
        if value not in good:
            raise FitsError("CORRUPTED_HDU", f"HDU {index}: {key} is {value}, which is absurd.")
        return value

    axes = whole("NAXIS", range(65))  # numpy takes no more
    shape = tuple(whole(f"NAXIS{n}") for n in range(axes, 0, -1))
    bitpix, count = whole("BITPIX", _TYPES), math.prod(shape) if shape else 0
    if shape and index:
        count = (count + whole("PCOUNT", usual=0)) * whole("GCOUNT", usual=1)
    if (size := count * abs(bitpix) // 8) not in SIZES:
        raise FitsError("CORRUPTED_HDU", f"HDU {index} declares absurdly many bytes.")
    return bitpix, shape, size


def read_cards(raw: bytes) -> Iterator[Card]:
    """Read cards, one behind the other."""
    return (parse_card(raw[at : at + CARD]) for at in range(0, len(raw), CARD))


def _keyword(card: bytes) -> str:
    return card[:8].decode("latin-1").strip()


def parse_card(raw: bytes) -> Card:
    """Read one card of 80 bytes, whatever they are."""
    keyword, text = _keyword(raw), raw[8:].decode("latin-1")
    if keyword in _COMMENTARY or (text[:1] != "=" and keyword != "CONTINUE"):
        odd = keyword not in _COMMENTARY or bool(_UNPRINTABLE.search(text))
        return Card(keyword, text.rstrip(), "", odd)
    if not (found := _FIELD.fullmatch(text)):
        value, _, comment = text.removeprefix("=").partition(" /")
        return Card(keyword, value.strip(), comment.strip(), unreadable=True)
    string, number, logical, comment = found.groups()
    result: Value = {"T": True, "F": False}.get(logical)
    if number:
        whole = number.lstrip("+-").isdigit()
        result = int(number) if whole else float(number.upper().replace("D", "E"))
    elif string is not None:
        result = string.replace("''", "'").rstrip(" ")
    odd = bool(_UNPRINTABLE.search(string or ""))
    return Card(keyword, result, (comment or "").strip(), odd)


def clean(value: Value) -> Value:
    """Return what every JSON store takes: no NUL, lone surrogate, NaN, Infinity."""
    if isinstance(value, str):
        return _UNSTORABLE.sub(lambda m: f"\\x{ord(m[0]):02x}", value)
    lost = isinstance(value, float) and not math.isfinite(value)
    return json.dumps(value) if lost else value


def edit_header(data: Buffer, hdu: Hdu, updates: Updates) -> bytes:
    """Return the header with keywords set in place of their first card, else before END.

    The rest stays, and the sums that it carries become right.
    """
    view = memoryview(data).cast("B")
    sums = [key for key in _SUM_NOTES if hdu.header.get(key) is not None]
    body = datasum(view[hdu.data_start : hdu.end]) if sums else 0
    texts = {"DATASUM": str(body), "CHECKSUM": "0" * 16}
    updates = [*updates, *((key, texts[key], _SUM_NOTES[key]) for key in sums)]
    header = _set_cards(bytes(view[hdu.start : hdu.cards_end]), updates)
    if "CHECKSUM" in sums:
        text = encode_checksum(datasum(header, body))
        cards = header.rstrip()[:-3]
        header = _set_cards(cards, [("CHECKSUM", text, _SUM_NOTES["CHECKSUM"])])
    return header


def _set_cards(cards: bytes, updates: Updates) -> bytes:
    fresh = {update[0]: _format_card(*update) for update in updates}
    left, kept, key = dict(fresh), list[bytes](), ""
    for at in range(0, len(cards), CARD):
        card = cards[at : at + CARD]
        if (name := _keyword(card).upper()) != "CONTINUE":
            key = name  # else it belongs to the card before it
        kept.append(left.pop(key, b"") if key in fresh else card)
    text = b"".join([*kept, *left.values(), b"END"])
    return text.ljust(_padded(len(text)))


def _format_card(keyword: str, value: Value, comment: str) -> bytes:
    if isinstance(value, str):
        text = "'{:8}'".format(value.replace("'", "''"))
    else:
        text = f"{'FT'[value] if isinstance(value, bool) else str(value).upper():>20}"
    card = f"{keyword:8}= {text:20}"
    made = parse_card(card.encode("latin-1", "replace"))
    if made.unreadable or len(card) > CARD or not _FREE.fullmatch(keyword):
        raise ValueError(f"No card can be made of {keyword!r} and {value!r:.99}.")
    card += f" / {comment}" if comment else ""
    return card[:CARD].ljust(CARD).encode("ascii", "replace")


def datasum(data: Buffer, total: int = 0) -> int:
    """Add bytes to a ones-complement sum of 32 bits; only the last may be no word."""
    view = memoryview(data).cast("B")
    words = np.frombuffer(view, ">u4", len(view) // 4)
    tail = bytes(view[words.nbytes :]).ljust(4, b"\0")
    total += int(words.sum(dtype=np.uint64)) + int.from_bytes(tail, "big")
    return total and (total - 1) % 0xFFFFFFFF + 1


def encode_checksum(total: int) -> str:
    """Return the 16 characters of a CHECKSUM card (FITS Standard, appendix J)."""
    columns = []
    for byte in (~total & 0xFFFFFFFF).to_bytes(4, "big"):
        codes = [ord("0") + byte // 4 + more for more in (byte % 4, 0, 0, 0)]
        for n in (0, 2):
            while not bytes(codes[n : n + 2]).isalnum():
                codes[n], codes[n + 1] = codes[n] + 1, codes[n + 1] - 1
        columns.append(codes)
    text = bytes(column[n] for n in range(4) for column in columns).decode("ascii")
    return text[-1] + text[:-1]


def verify_checksums(data: Buffer, hdu: Hdu) -> list[str]:
    """Return which of DATASUM and CHECKSUM do not match; blank ones are passed over."""
    told = {key: hdu.header.get(key) for key in _SUM_NOTES}
    texts = {key: text for key, value in told.items() if (text := str(value or "").strip())}
    if not texts:
        return []
    view = memoryview(data).cast("B")
    body = datasum(view[hdu.data_start : hdu.end])
    head = bytes(view[hdu.start : hdu.data_start]).ljust(hdu.data_start - hdu.start)
    right = {"DATASUM": texts.get("DATASUM", "").lstrip("0") == str(body).lstrip("0")}
    right["CHECKSUM"] = datasum(head, body) in (0, 0xFFFFFFFF)
    return [key for key in texts if not right[key]]


def pixels(data: Buffer, hdu: Hdu) -> np.ndarray[Any, Any] | None:
    """Return the numbers of an image as stored: a view, big-endian, not scaled."""
    count = math.prod(hdu.shape)
    held = 0 < count * abs(hdu.bitpix) // 8 <= hdu.data_size
    if hdu.kind not in ("PRIMARY", "IMAGE") or not held:
        return None
    return np.frombuffer(data, _TYPES[hdu.bitpix], count, hdu.data_start).reshape(hdu.shape)
