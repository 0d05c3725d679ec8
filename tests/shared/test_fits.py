"""`koa_shared.fits` against astropy, arbitrary bytes and real Keck headers."""

import gzip
import importlib.util
import io
import json
import math
import random
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koa_shared import fits

# The real headers lie beside the repository, where it is developed.
SHARED = Path(__file__).parents[2].parent / "shared"
DUMPS = sorted(SHARED.glob("headers/*/*.txt"))
NAMES = [f"{dump.parent.name}/{dump.stem}" for dump in DUMPS]
pytestmark = pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")

ORACLE = oracle.PrimaryHDU()
ASTROPY_MISREADS = re.compile("' */")  # a doubled quote before / ends its string
examples = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80)
texts = printable.map(str.rstrip).filter(lambda text: len(text) + text.count("'") <= 68)
numbers = st.integers(-(10**19), 10**19) | st.floats(allow_nan=False, width=64)
values = texts | numbers.filter(math.isfinite) | st.booleans()
keywords = st.from_regex(r"X[A-Z0-9_-]{0,6}", fullmatch=True)
updates = st.lists(st.tuples(keywords, values, printable), max_size=12, unique_by=lambda u: u[0])
images = st.tuples(
    st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
)


def card(text: str) -> bytes:
    return text.encode("latin-1").ljust(80)


def block(*cards: str, fill: bytes = b" ") -> bytes:
    raw = b"".join(map(card, [*cards, "END"]))
    return raw + fill * (-len(raw) % fits.BLOCK)


def primary(*cards: str) -> bytes:
    return block("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", *cards)


def extension(*cards: str, size: int = 10, kind: str = "'IMAGE   '") -> bytes:
    head = (f"XTENSION= {kind}", "BITPIX  = 8", "NAXIS   = 1", f"NAXIS1  = {size}")
    return block(*head, *cards) + bytes(size + -size % fits.BLOCK)


def header(*cards: str) -> fits.Header:
    return fits.Header(fits.read_cards(b"".join(map(card, cards))))


def data_end(hdu: fits.Hdu) -> int:
    return hdu.data_start + hdu.data_size


def raw_cards(data: bytes, hdu: fits.Hdu) -> list[bytes]:
    return [data[at : at + 80] for at in range(hdu.start, hdu.cards_end, 80)]


def edited(raw: bytes, news: list[Any]) -> bytes:
    """Return the primary header after an edit; `raw` is a whole file."""
    return fits.edit_header(raw, fits.read_structure(raw).hdus[0], news)


def written(hdus: list[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    oracle.HDUList([oracle.PrimaryHDU(), *hdus]).writeto(out, **options)
    return out.getvalue()


def image(layout: tuple[str, list[int]], name: str = "") -> Any:
    kind, shape = layout
    numbers = np.arange(math.prod(shape)).astype(kind).reshape(shape)
    return oracle.ImageHDU(numbers, name=name)


def table(rows: int) -> Any:
    names = ["abc"[: n % 3] for n in range(rows)]
    columns = [
        oracle.Column("N", "J", array=np.arange(rows)),
        oracle.Column("V", "PE()", array=[np.arange(n, dtype="f4") for n in range(rows)]),
        oracle.Column("T", "3A", array=names),
    ]
    return oracle.BinTableHDU.from_columns(columns, name="TAB")


def accepted(data: bytes, min_hdus: int = 1) -> bool:
    try:
        fits.read_structure(data, min_hdus)
    except fits.Incomplete:
        return False
    return True


@examples
@given(st.lists(images, max_size=4), st.integers(0, 4))
def test_structure_is_what_astropy_sees(layouts: list[Any], rows: int) -> None:
    hdus = [image(layout, f"n{n}") for n, layout in enumerate(layouts)]
    data = written([*hdus, table(rows)])
    seen = fits.read_structure(data, len(layouts) + 2)
    assert seen.odd == {}
    with oracle.open(io.BytesIO(data)) as expected:
        assert len(seen.hdus) == len(expected)
        for ours, theirs in zip(seen.hdus, expected, strict=True):
            place = theirs.fileinfo()
            assert (ours.start, ours.data_start) == (place["hdrLoc"], place["datLoc"])
            assert ours.end == place["datLoc"] + place["datSpan"]
            assert ours.data_size == theirs.size
            assert ours.name == theirs.name.removeprefix("PRIMARY")
            assert [c.keyword for c in ours.header.cards] == list(theirs.header)
            assert all(ours.header.get(k) == theirs.header[k] for k in theirs.header)
        for ours, theirs in zip(seen.hdus[1:-1], expected[1:-1], strict=True):
            found = fits.pixels(data, ours)
            assert found is not None
            assert found.shape == ours.shape == theirs.shape
            assert np.array_equal(found, theirs.data)
    assert fits.pixels(data, seen.hdus[0]) is None
    assert fits.pixels(data, seen.hdus[-1]) is None


def test_a_prefix_is_accepted_only_in_padding_or_between_hdus() -> None:
    data = written([image(("i2", [7, 200])), table(3), image(("f4", [3, 3]))])
    hdus = fits.read_structure(data).hdus
    complete = [(data_end(h) if h.data_size else h.cards_end + 80, h.end) for h in hdus]
    edges = {edge + n for pair in complete for edge in pair for n in range(-90, 90)}
    for size in sorted(edges | set(range(0, len(data), 61))):
        if size < len(data):
            legal = any(low <= size <= high for low, high in complete)
            assert accepted(data[:size]) is legal, size
            assert accepted(data[:size], len(hdus)) is (size >= complete[-1][0]), size


def test_what_is_truncated_says_so() -> None:
    data = written([image(("i2", [70, 200]))])
    hdu = fits.read_structure(data).hdus[1]
    for size in (5, 90, 3000, 6000, 20_000):
        with pytest.raises(fits.Incomplete) as caught:
            fits.read_structure(data[:size], 2)
        assert caught.value.code == "TRUNCATED"
    with pytest.raises(fits.Incomplete, match="lacks 1 of its 28000 bytes"):
        fits.read_structure(data[: data_end(hdu) - 1], 2)
    cut = fits.read_structure(data[: data_end(hdu)], 2)
    assert set(cut.odd) == {"PADDING_MISSING"}


@pytest.mark.parametrize(
    ("cards", "asked", "complete"),
    [
        ((), 1, True),
        ((), 2, True),
        ((), 3, False),
        (("NEXTEND = 1",), 1, True),
        (("NEXTEND = 2",), 1, False),
        (("EXTEND  = T", "NEXTEND = 2"), 1, False),
        (("EXTEND  = F", "NEXTEND = 2"), 1, True),
        (("NEXTEND = 'two'",), 1, True),
        (("NEXTEND = T",), 1, True),
        (("NEXTEND = -5",), 1, True),
        (("NEXTEND = 1000000",), 1, True),
    ],
)
def test_hdus_asked_for(cards: tuple[str, ...], asked: int, *, complete: bool) -> None:
    for rest in (b"", b"junk" * 2000):
        assert accepted(primary(*cards) + extension() + rest, asked) is complete


@pytest.mark.parametrize("rest", [b"\0", b"\0" * 2880, b"XTENSIOX", b"XY", b"junk" * 900])
def test_bytes_behind_the_last_hdu_are_reported(rest: bytes) -> None:
    seen = fits.read_structure(primary() + extension() + rest)
    text = f"{len(rest)} bytes stand behind the last HDU"
    assert (len(seen.hdus), seen.odd) == (2, {"TRAILING_BYTES": text})


@pytest.mark.parametrize("rest", [b"X", b"XTENSIO", b"XTENSION", b"XTENSION= 'IMAGE'"])
def test_the_beginning_of_an_extension_is_waited_for(rest: bytes) -> None:
    with pytest.raises(fits.Incomplete):
        fits.read_structure(primary() + rest)


@pytest.mark.parametrize("end", ["END\xff\x01", "END  \x7f", "END     junk", "END"])
def test_junk_behind_end_is_reported(end: str) -> None:
    cards = b"".join(map(card, ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", end]))
    seen = fits.read_structure(cards + bytes(range(240, 256)) * (2560 // 16))
    assert set(seen.odd) == {"HEADER_JUNK"}
    assert len(seen.hdus[0].header.cards) == 3
    assert ("HEADER_JUNK" in fits.read_structure(cards.ljust(2880)).odd) is (end != "END")


def test_cards_that_begin_like_end_are_not_the_end() -> None:
    seen = fits.read_structure(primary("ENDTIME = 'x'", "END-OBS = 3", "END1    = 1"))
    assert seen.hdus[0].header.get("END-OBS") == 3


def test_a_hole_in_a_header_is_waited_for() -> None:
    data = primary() + bytes(2880) + extension()
    assert fits.read_structure(data).odd["TRAILING_BYTES"].startswith(f"{3 * 2880} ")
    start = b"".join(map(card, ["XTENSION= 'IMAGE'", "BITPIX  = 8", "NAXIS   = 0"]))
    with pytest.raises(fits.Incomplete):
        fits.read_structure(primary() + start + bytes(2 * 2880) + extension())


HEAD = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "1", "NAXIS1": "10"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"BITPIX": "9"}, "CORRUPTED_HDU"),
        ({"BITPIX": "'8'"}, "UNREADABLE_FITS"),
        ({"NAXIS": "65"}, "CORRUPTED_HDU"),
        ({"NAXIS": "-1"}, "CORRUPTED_HDU"),
        ({"NAXIS": "T"}, "UNREADABLE_FITS"),
        ({"NAXIS": "2"}, "UNREADABLE_FITS"),
        ({"NAXIS1": "-10"}, "CORRUPTED_HDU"),
        ({"NAXIS1": "9" * 70}, "CORRUPTED_HDU"),
        ({"NAXIS1": "#### Error ###"}, "UNREADABLE_FITS"),
        ({"NAXIS1": str(2**34 + 1)}, "CORRUPTED_HDU"),
        ({"NAXIS1": str(2**34)}, "TRUNCATED"),
    ],
)
def test_unusable_mandatory_cards(change: dict[str, str], code: str) -> None:
    cards = [f"{key:8}= {value}" for key, value in (HEAD | change).items()]
    raw = block(*cards) + bytes(2880)
    for data in (raw, primary() + raw.replace(b"SIMPLE  = T  ", b"XTENSION= 'X'")):
        with pytest.raises(fits.FitsError) as caught:
            fits.read_structure(data)
        assert caught.value.code == code


def test_absurd_axes_counts_and_numbers_of_cards() -> None:
    axes = [f"NAXIS{n:<3}= {2**34}" for n in range(1, 65)]
    with pytest.raises(fits.FitsError, match="absurd"):
        fits.read_structure(block("SIMPLE  = T", "BITPIX  = -64", "NAXIS   = 64", *axes))
    ones = [f"NAXIS{n:<3}= 1" for n in range(1, 65)]
    many = block("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 64", *ones) + bytes(2880)
    found = fits.pixels(many, fits.read_structure(many).hdus[0])
    assert found is not None
    assert found.size == 1
    cards = primary(*["COMMENT x"] * 100_000)
    with pytest.raises(fits.FitsError, match="cards"):
        fits.read_structure(cards)
    with pytest.raises(fits.Incomplete):
        fits.read_structure(cards[: fits.MAX_CARDS * 80 - 80])
    with pytest.raises(fits.FitsError, match="HDUs"):
        fits.read_structure(
            primary() + block("XTENSION= 'IMAGE'", "BITPIX  = 8", "NAXIS   = 0") * fits.MAX_HDUS
        )


@pytest.mark.parametrize(
    "value", ["1" * 69 + "x", " " * 68 + "x", "(" + "1" * 60, "'" * 70, "'' " * 20]
)
def test_hostile_cards_are_read_in_linear_time(value: str) -> None:
    raw = primary("LONG    = 'a&'", *[f"KEY     = {value}"] * (fits.MAX_CARDS - 5))
    start = time.thread_time()
    found = fits.read_structure(raw).hdus[0].header
    assert len(found.as_list()) == fits.MAX_CARDS - 1
    assert found.get("LONG") is not None
    assert time.thread_time() - start < 2  # s of computing; 0.2 on an idle machine


def test_heaps_have_the_standard_size() -> None:
    heap = extension("PCOUNT  = 5", "GCOUNT  = 3", size=10)
    assert fits.read_structure(primary() + heap).hdus[1].data_size == 3 * 15
    with pytest.raises(fits.FitsError, match="PCOUNT is -5"):
        fits.read_structure(primary() + extension("PCOUNT  = -5"))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "EMPTY_FILE"),
        (b"S", "TRUNCATED"),
        (b"SIMPLE  =", "TRUNCATED"),
        (b"SIMPLE = T", "UNREADABLE_FITS"),
        (b"<!DOCTYPE html>", "UNREADABLE_FITS"),
        (b"\xff" * 5000, "UNREADABLE_FITS"),
        (bytes(5000), "UNREADABLE_FITS"),
        (extension(), "UNREADABLE_FITS"),
        (gzip.compress(primary(), mtime=0), "COMPRESSED_RAW"),
        (b"BZh91AY&SY", "COMPRESSED_RAW"),
        (b"PK\x03\x04", "COMPRESSED_RAW"),
        (b"\xfd7zXZ\0", "COMPRESSED_RAW"),
        (primary() + extension("ZIMAGE  = T", kind="'BINTABLE'"), "COMPRESSED_RAW"),
    ],
)
def test_what_is_no_raw_fits_file_says_so(data: bytes, code: str) -> None:
    with pytest.raises(fits.FitsError) as caught:
        fits.read_structure(data)
    assert caught.value.code == code
    assert str(caught.value).endswith(".")


def look_at_everything(data: bytes) -> None:
    """Whatever survives `read_structure` must survive the rest too."""
    try:
        seen = fits.read_structure(data)
        for hdu in seen.hdus:
            json.dumps([hdu.header.as_list(), fits.clean(hdu.name)], allow_nan=False)
            for one in hdu.header.cards:
                hdu.header.get(one.keyword)
            fits.verify_checksums(data, hdu)
            fits.pixels(data, hdu)
        fits.edit_header(data, seen.hdus[0], [("KOAID", "x", "")])
    except fits.FitsError:
        pass


@examples
@given(st.binary(max_size=400), st.sampled_from([b"", card("SIMPLE  = T"), primary()]))
def test_random_bytes_raise_nothing_else(data: bytes, before: bytes) -> None:
    look_at_everything(before + data)
    look_at_everything(before[:-2880] + data + card("END") + bytes(3000))


@settings(examples, max_examples=300)
@given(st.randoms(use_true_random=False))
def test_damaged_headers_raise_nothing_else(chance: random.Random) -> None:
    data = bytearray(
        primary("NEXTEND = 2", "CHECKSUM= 'x'", "OBJECT  = 'long&'", "CONTINUE  'er'")
        + extension("EXTNAME = 'A'", "PCOUNT  = 0", "GCOUNT  = 1", "DATASUM = '0'")
    )
    for _ in range(chance.randint(1, 40)):
        at = chance.choice([chance.randrange(9 * 80), 2880 + chance.randrange(9 * 80)])
        data[at] = chance.choice(b"0123456789T'/&= -.ENDX\0\xff")
    look_at_everything(bytes(data))


@pytest.mark.parametrize(
    ("text", "value", "comment", "unreadable"),
    [
        ("KEY     = 'it''s  ' / note", "it's", "note", False),
        ("KEY     = 'it's' / not doubled", "it's", "not doubled", False),
        ("KEY     = 'a/b' /c/d", "a/b", "c/d", False),
        ("KEY     = '  lead'", "  lead", "", False),
        ("KEY     = ''", "", "", False),
        ("KEY     =", None, "", False),
        ("KEY     =   / undefined", None, "undefined", False),
        ("KEY     =                    T / yes", True, "yes", False),
        ("KEY     = F", False, "", False),
        ("KEY     = -007", -7, "", False),
        ("KEY     = " + "9" * 70, int("9" * 70), "", False),
        ("KEY     = 1.5D-3", 1.5e-3, "", False),
        ("KEY     = .5", 0.5, "", False),
        ("KEY     = 5.", 5.0, "", False),
        ("KEY     = (1.0, -2.5E3) / pair", "(1.0, -2.5E3)", "pair", True),
        ("KEY     = NaN / no number", "NaN", "no number", True),
        ("KEY     = #### Error ### / dead", "#### Error ###", "dead", True),
        ("KEY     = 2023/05/06", 2023, "05/06", False),
        ("KEY     = 12:30:05 / time", "12:30:05", "time", True),
        ("KEY     = 'open", "'open", "", True),
        ("KEY     = 'caf\xe9'", "caf\xe9", "", True),
        ("KEY     = 1 / caf\xe9", 1, "caf\xe9", False),
        ("KEY     ='tight'", "tight", "", False),
        ("key     = 4", 4, "", False),
        ("KEY     is missing its sign", "is missing its sign", "", True),
    ],
)
def test_card(text: str, value: object, comment: str, *, unreadable: bool) -> None:
    seen = header(text).cards[0]
    assert (seen.keyword.upper(), seen.comment) == ("KEY", comment)
    assert (seen.value, type(seen.value)) == (value, type(value))
    assert seen.unreadable is unreadable
    assert header(text).get("KEY", "default") == value


def test_repeats_commentary_and_order() -> None:
    cards = [
        "A       = 1",
        "COMMENT = / x",
        "",
        "A       = 2",
        "HISTORY two  ",
        "GAIN.SPE= 3",
    ]
    seen = header(*cards)
    assert seen.get("a") == 1
    assert (seen.get("B", "none"), seen.get("GAIN.SPE")) == ("none", 3)
    assert seen.as_list() == [
        ["A", 1, ""],
        ["COMMENT", "= / x", ""],
        ["", "", ""],
        ["A", 2, ""],
        ["HISTORY", "two", ""],
        ["GAIN.SPE", 3, ""],
    ]


def test_long_strings_are_joined_for_get_and_kept_as_cards() -> None:
    seen = header(
        "LONG    = 'one &'",
        "CONTINUE  'two&' / c",
        "CONTINUE  ' three  '",
        "CONTINUE  'orphan'",
        "AMP     = 'R&D &'",
        "OTHER   = 1",
    )
    assert seen.get("LONG") == "one two three"
    assert seen.get("AMP") == "R&D &"
    assert [c.keyword for c in seen.cards][:4] == ["LONG", *["CONTINUE"] * 3]
    assert seen.as_list()[1] == ["CONTINUE", "two&", "c"]
    assert header("LAST    = 'x&'").get("LAST") == "x&"


@examples
@given(st.text(max_size=300), st.floats() | st.integers() | st.none())
def test_clean_is_fit_for_postgresql(text: str, other: fits.Value) -> None:
    stored = json.dumps([fits.clean(text), fits.clean(other)], allow_nan=False)
    assert "\\u0000" not in stored
    for one in json.loads(stored):
        str(one).encode("utf-8")


def test_clean_escapes() -> None:
    assert fits.clean("a\0b\udcffc\xe9") == "a\\x00b\\xdcffc\xe9"
    floats = [float("nan"), math.inf, -math.inf, np.float64(0.5), True]
    assert list(map(fits.clean, floats)) == ["NaN", "Infinity", "-Infinity", 0.5, True]


@settings(examples, max_examples=200)
@given(news=updates, junk=st.booleans())
def test_edits_are_read_back_and_the_rest_stays(*, news: list[Any], junk: bool) -> None:
    old = [
        "XA      = 'old&'",
        "CONTINUE  'er'",
        "Y       =  1.50",
        "COMMENT hi",
        "XA      = 2",
    ]
    raw = primary(*old, "Y       = #### Error ###", "", "GAIN.SPE= 'as it is'")
    raw = raw.rstrip(b" ").ljust(2880, b"\xee") if junk else raw
    seen = edited(raw, news)
    hdu = fits.read_structure(seen).hdus[0]
    ours, theirs = hdu.header, oracle.Header.fromstring(seen.decode("ascii"))
    keys = {key for key, *_ in news}
    kept = raw_cards(raw, fits.read_structure(raw).hdus[0])
    if "XA" in keys:
        kept = [one for one in kept if one[:8] not in (b"XA      ", b"CONTINUE")]
    assert [c for c in raw_cards(seen, hdu) if c[:8].decode().strip() not in keys] == kept
    for key, value, comment in news:
        assert ours.get(key) == value
        if not ASTROPY_MISREADS.search(str(value)):
            assert theirs[key] == value
            assert comment.strip().startswith(theirs.comments[key].strip())
        assert type(ours.get(key)) is type(value)
        assert [c.keyword for c in ours.cards].count(key) == 1


def test_an_edit_keeps_its_place_and_what_is_new_stands_last() -> None:
    raw = primary(
        "A       = 1",
        "B       = 'x&'",
        "CONTINUE  'y'",
        "C       = 3",
        "A       = 4",
        "",
    )
    seen = edited(raw, [("B", "z" * 60, "KOA: b"), ("A", "null", "KOA: a"), ("N", True, "")])
    keys = [c.keyword for c in fits.read_structure(seen).hdus[0].header.cards[3:]]
    assert keys == ["A", "B", "C", "", "N"]
    assert seen[240:320] == card("A       = 'null    '           / KOA: a")
    assert len(seen) == 2880
    assert edited(raw, []) == raw


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "                   T"),
        (False, "                   F"),
        (-3, "                  -3"),
        (1.5, "                 1.5"),
        (1e-6, "               1E-06"),
        (1e300, "              1E+300"),
        (np.float64(0.1), "                 0.1"),
        ("", "'        '"),
        ("it's", "'it''s   '"),
    ],
)
def test_fixed_format(value: fits.Value, text: str) -> None:
    seen = edited(primary(), [("KEY", value, "")])
    assert seen[240:320] == card(f"KEY     = {text}")


def test_quotes_and_long_comments_fit() -> None:
    text = "'" * 30 + " end"
    seen = edited(primary(), [("QUOTES", text, "c" * 99), ("N", 1, "\u014dlelo" + "d" * 99)])
    ours = fits.read_structure(seen).hdus[0].header
    theirs = oracle.Header.fromstring(seen.decode("ascii"))
    assert ours.get("QUOTES") == theirs["QUOTES"] == text
    assert theirs["N"] == 1
    assert len(seen) == 2880


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("END", 1),
        ("NAXIS1", 1),
        ("BITPIX", 8),
        ("CONTINUE", "x"),
        ("COMMENT", "x"),
        ("A=B", 1),
        ("K\xe9", 1),
        ("key", 1),
        ("K" * 9, 1),
        ("BIG", 10**75),
        ("LONG", "x" * 69),
        ("LONG", "'" * 35),
        ("ODD", "two\nlines"),
        ("ODD", float("nan")),
        ("ODD", None),
    ],
)
def test_no_card_is_made_that_would_break_a_header(key: str, value: fits.Value) -> None:
    with pytest.raises(ValueError, match="No card"):
        edited(primary(), [(key, value, "")])


@examples
@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_sums_are_astropys(data: bytes, total: int) -> None:
    whole = data.ljust(-(-len(data) // 4) * 4, b"\0")
    words = np.frombuffer(whole, ">u4")
    expected = int(ORACLE._compute_checksum(np.frombuffer(whole, "u1")))
    assert fits.datasum(data) == fits.datasum(bytearray(data)) == expected
    assert (fits.datasum(data, total) - total - int(words.sum(dtype="u8"))) % (2**32 - 1) == 0
    assert fits.encode_checksum(total) == ORACLE._char_encode(~total & 0xFFFFFFFF)
    cut = len(data) // 8 * 4
    assert fits.datasum(data[cut:], fits.datasum(data[:cut])) == expected


def test_astropys_checksums_match_until_a_byte_changes() -> None:
    hdus = [image(("i2", [7, 200]), "A"), table(3), image(("f8", [3, 3]))]
    data = bytearray(written(hdus, checksum=True))
    seen = fits.read_structure(data)
    assert [fits.verify_checksums(data, hdu) for hdu in seen.hdus] == [[], [], [], []]
    data[seen.hdus[1].data_start + 5] ^= 4
    data[data.index(b"EXTNAME") + 11] ^= 1
    assert fits.verify_checksums(data, seen.hdus[1]) == ["DATASUM", "CHECKSUM"]
    changed = fits.read_structure(data).hdus
    assert fits.verify_checksums(data, changed[2]) == []
    data[changed[0].start + 250] ^= 1
    assert fits.verify_checksums(data, changed[0]) == ["CHECKSUM"]


def test_missing_padding_does_not_change_the_sums() -> None:
    data = written([image(("i2", [7, 201]), "A")], checksum=True)
    hdu = fits.read_structure(data).hdus[1]
    cut = data[: data_end(hdu)]
    assert len(cut) % 4
    assert fits.verify_checksums(cut, fits.read_structure(cut).hdus[1]) == []
    alone = written([], checksum=True)
    alone = alone[: len(alone.rstrip()) + 78]
    assert set(fits.read_structure(alone).odd) == {"PADDING_MISSING"}
    assert fits.verify_checksums(alone, fits.read_structure(alone).hdus[0]) == []


@pytest.mark.parametrize("value", ["''", "", "'   '"])
def test_blank_checksums_are_not_checked(value: str) -> None:
    data = primary(f"CHECKSUM= {value}", f"DATASUM = {value}")
    assert fits.verify_checksums(data, fits.read_structure(data).hdus[0]) == []


@pytest.mark.parametrize("value", ["0", "'0'", "'         0'", "'0000000000'"])
def test_datasum_of_no_data(value: str) -> None:
    data = primary(f"DATASUM = {value}")
    assert fits.verify_checksums(data, fits.read_structure(data).hdus[0]) == []


@settings(examples, max_examples=40)
@given(images, updates)
def test_an_edited_file_verifies_in_astropy(layout: Any, news: list[Any]) -> None:
    kind, shape = layout
    out = io.BytesIO()
    numbers = np.arange(math.prod(shape)).astype(kind).reshape(shape)
    oracle.PrimaryHDU(numbers).writeto(out, checksum=True)
    data = out.getvalue()
    hdu = fits.read_structure(data).hdus[0]
    rest = data[hdu.data_start :]
    head = fits.edit_header(data, hdu, news)
    seen = fits.read_structure(head + rest).hdus[0]
    assert fits.verify_checksums(head + rest, seen) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with oracle.open(io.BytesIO(head + rest), checksum=True) as found:
            assert found[0].verify_checksum() == found[0].verify_datasum() == 1
            assert np.array_equal(found[0].data, numbers)


def test_checksums_are_not_added_nor_kept_twice() -> None:
    plain = primary("A       = 1")
    assert edited(plain, []) == plain
    one = edited(primary("CHECKSUM= 'a'", "A       = 1", "CHECKSUM= 'b'"), [])
    hdu = fits.read_structure(one).hdus[0]
    assert [c.keyword for c in hdu.header.cards[3:]] == ["CHECKSUM", "A"]
    assert fits.verify_checksums(one, hdu) == []
    both = edited(primary("DATASUM = 'a'", "CHECKSUM= ''"), [])
    assert fits.read_structure(both).hdus[0].header.get("DATASUM") == "0"


@pytest.fixture(scope="module")
def make_frame() -> Callable[..., int]:
    tool = SHARED / "tools" / "make_frame.py"
    if not tool.exists():
        pytest.skip("the real headers are not here")
    spec = importlib.util.spec_from_file_location("make_frame", tool)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[..., int] = module.main
    return main


def frame(make: Callable[..., int], dump: Path, folder: Path, *options: str) -> bytes:
    path = folder / "frame.fits"
    make([str(dump), "-o", str(path), *options])
    return path.read_bytes()


@pytest.mark.skipif(not DUMPS, reason="the real headers are not here")
@pytest.mark.parametrize("dump", DUMPS, ids=NAMES)
def test_real_headers(dump: Path, make_frame: Callable[..., int], tmp_path: Path) -> None:
    data = frame(make_frame, dump, tmp_path)
    seen = fits.read_structure(data)
    assert seen.odd == {}
    compare_with_astropy(data, seen)
    for hdu in seen.hdus:
        json.dumps(hdu.header.as_list(), allow_nan=False)
    last = seen.hdus[-1]
    for size in (data_end(last) - 1, last.data_start - 2800, 100, len(data) // 2):
        if size < last.start or last.data_size:
            assert not accepted(data[:size], len(seen.hdus))
    edit_a_real_header(data, seen)


def compare_with_astropy(data: bytes, seen: fits.Structure) -> None:
    with oracle.open(io.BytesIO(data), do_not_scale_image_data=True) as expected:
        assert [h.data_size for h in seen.hdus] == [h.size for h in expected]
        for ours, theirs in zip(seen.hdus, expected, strict=True):
            theirs.verify("silentfix+ignore")
            for key in set(theirs.header) - {"COMMENT", "HISTORY", ""}:
                card = next(c for c in ours.header.cards if c.keyword.upper() == key)
                if not card.unreadable and "RVKC" not in repr(theirs.header.cards[key]):
                    assert ours.header.get(key) == value_of(theirs.header, key), key


def value_of(header: Any, key: str) -> object:
    value = header[key]
    return None if isinstance(value, oracle.card.Undefined) else value


def edit_a_real_header(data: bytes, seen: fits.Structure) -> None:
    old = seen.hdus[0]
    news: list[tuple[str, fits.Value, str]] = [
        ("KOAID", "XX.20250101.00001.0", "KOA: id"), ("DATLEVEL", 0, "KOA: level"),
        ("PROGTL1", "x" * 68, ""), ("WXTIME", "null", "KOA: absent"),
    ]  # fmt: skip
    rest = data[old.data_start :]
    head = fits.edit_header(data, old, news)
    new = fits.read_structure(head + rest).hdus[0]
    assert fits.verify_checksums(head + rest, new) == []
    touched = {key for key, *_ in news} | {"DATASUM", "CHECKSUM", "CONTINUE"}
    kept = [c for c in raw_cards(data, old) if c[:8].decode().strip() not in touched]
    assert [c for c in raw_cards(head, new) if c[:8].decode().strip() not in touched] == kept
    assert new.header.get("PROGTL1") == "x" * 68


@pytest.mark.skipif(not DUMPS, reason="the real headers are not here")
@pytest.mark.parametrize("dump", DUMPS, ids=NAMES)
def test_real_headers_with_junk(dump: Path, make_frame: Callable[..., int], tmp_path: Path) -> None:
    data = frame(make_frame, dump, tmp_path, "--junk-fill")
    seen = fits.read_structure(data)
    clean = fits.read_structure(frame(make_frame, dump, tmp_path))
    filled = any(h.data_start - h.cards_end > fits.CARD for h in seen.hdus)
    assert ("HEADER_JUNK" in seen.odd) is filled
    assert seen.odd["TRAILING_BYTES"].startswith(f"{fits.BLOCK} ")
    assert "PADDING_MISSING" not in seen.odd
    assert [h.header.cards for h in seen.hdus] == [h.header.cards for h in clean.hdus]
    assert seen.hdus[-1].end == clean.hdus[-1].end
    last = clean.hdus[-1]
    size = data_end(last) - 1 if last.data_size else last.cards_end
    cut = frame(make_frame, dump, tmp_path, "--truncate", str(size))
    assert not accepted(cut)
