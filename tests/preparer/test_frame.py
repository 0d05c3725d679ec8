"""What the preparer decides and makes of one file (design 4-6, facts 3.9)."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as oracle
from PIL import Image

from koa_preparer.pipeline import frame as make
from koa_preparer.pipeline.metadata import Column
from koa_preparer.rules import Outcome
from koa_shared import fits
from koa_shared.contracts import FilePrepared, Severity
from koa_shared.errors import FrameFault
from koa_shared.fits import Value, read_structure
from koa_shared.instruments import Picture

OUTPUT = Path(__file__).parents[2].parent / "shared" / "koa-output"
KOAID = "NR.20190615.12571.36"
DETECTED = datetime(2019, 6, 15, 3, 31, 20, 500_000, UTC)


def before(seconds: float) -> datetime:
    return DETECTED - timedelta(seconds=seconds)


def ns(time: datetime) -> int:
    return int(time.timestamp()) * 10**9 + time.microsecond * 1000


def codes(findings: Any) -> list[str]:
    assert {f.severity for f in findings} <= {Severity.WARNING}
    return [f.code for f in findings]


# --- When it was acquired (design 4) --------------------------------------------------


@pytest.mark.parametrize(
    ("written", "stamp", "expected", "skew"),
    [
        pytest.param(2, 1, 2, [], id="the-files-own-time"),
        pytest.param(2, None, 2, [], id="without-a-broadcast"),
        pytest.param(0, 1, 0, [], id="as-late-as-its-detection"),
        pytest.param(61, 1, 61, [], id="60-s-before-its-broadcast"),
        pytest.param(61.001, 1, 1, ["CLOCK_SKEW"], id="over-60-s-before-its-broadcast"),
        pytest.param(9999, None, 9999, [], id="a-manual-submission-of-an-old-file"),
        pytest.param(-0.001, 1, 1, ["CLOCK_SKEW"], id="after-its-detection"),
        pytest.param(-5, None, 0, ["CLOCK_SKEW"], id="after-its-detection-no-broadcast"),
        pytest.param(-5, -3, 0, ["CLOCK_SKEW"], id="the-servers-clock-is-ahead-too"),
    ],
)
def test_acquired_time(
    written: float, stamp: float | None, expected: float, skew: list[str]
) -> None:
    broadcast = None if stamp is None else before(stamp)
    acquired, findings = make.acquired_time(ns(before(written)), DETECTED, broadcast)
    assert (acquired, codes(findings)) == (before(expected), skew)


def test_a_detection_within_the_millisecond_is_no_skew() -> None:
    """`detected` is cut to milliseconds (design 4), the file's time is not."""
    assert make.acquired_time(ns(DETECTED) + 999_999, DETECTED, None) == (DETECTED, [])


# --- Structure and checksums (design 5) -----------------------------------------------


def written(*hdus: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    oracle.HDUList(list(hdus)).writeto(out, **options)
    return out.getvalue()


def summed() -> bytes:
    pixels = np.arange(70, dtype=">i2").reshape(7, 10)
    image = oracle.PrimaryHDU(pixels)
    image.header["OBJECT"] = "NAME"
    return written(image, oracle.ImageHDU(pixels, name="SECOND"), checksum=True)


def test_odd_structure() -> None:
    data = summed()
    end = data.index(b"END" + b" " * 77)
    junk = data[: end + 80] + b"\1" + data[end + 81 :]
    last = read_structure(data).hdus[-1]
    cut = data[: last.data_start + last.data_size]
    odd = {
        data: [],
        junk: ["HEADER_JUNK"],
        cut: ["PADDING_MISSING"],
        junk + b"xyz": ["HEADER_JUNK", "TRAILING_BYTES"],
    }
    for raw, expected in odd.items():
        findings = make.odd_structure(read_structure(raw))
        assert codes(findings) == expected
        assert {f.step for f in findings} <= {"structure"}
    assert make.odd_structure(read_structure(data + b"xyz"))[0].message.startswith("3 bytes")


def test_checksum_findings_name_the_hdu_and_its_cards() -> None:
    data = bytearray(summed())
    structure = read_structure(bytes(data))
    assert make.checksum_findings(memoryview(bytes(data)), structure) == []
    data[structure.hdus[1].data_start] ^= 1
    [finding] = make.checksum_findings(memoryview(bytes(data)), structure)
    assert codes([finding]) == ["CHECKSUM_MISMATCH"]
    assert finding.message == "HDU 1 SECOND: DATASUM and CHECKSUM do not match"


def test_archived_header_verifies_in_astropy_and_the_rest_is_untouched() -> None:
    data = summed()
    structure = read_structure(data)
    updates: list[tuple[str, Value, str]] = [
        ("KOAID", f"{KOAID}.fits", "KOA: id"),
        ("OBJECT", "it's", "KOA: mended"),
        ("PROGTL1", "x" * 60, ""),
        ("WXTIME", "null", ""),
    ]
    head = fits.edit_header(memoryview(data), structure.hdus[0], updates)
    archived = head + data[structure.hdus[0].data_start :]
    with oracle.open(io.BytesIO(archived), checksum=True) as found:
        for hdu in found:
            assert (hdu.verify_checksum(), hdu.verify_datasum()) == (1, 1)
        header = found[0].header
        assert [header[key] for key, *_ in updates] == [f"{KOAID}.fits", "it's", "x" * 60, "null"]
    assert make.read_header(head).get("OBJECT") == "it's"


def test_a_header_without_checksums_gets_none() -> None:
    data = written(oracle.PrimaryHDU(np.zeros((3, 3), ">i2")))
    head = fits.edit_header(memoryview(data), read_structure(data).hdus[0], [("KOAID", "x", "")])
    assert {"CHECKSUM", "DATASUM"} & {
        card.keyword for card in make.read_header(head).cards
    } == set()


@pytest.mark.parametrize("koaid", ["NR.20190615.12571.36/x", "../x", "NR 1", ".hidden", ""])
def test_a_koaid_that_is_no_name_is_the_files_fault(koaid: str) -> None:
    with pytest.raises(FrameFault) as caught:
        make.storable(koaid)
    assert (caught.value.code, caught.value.step) == ("INVALID_KOAID", "identity")
    assert make.storable("HI.20190615.12571.36_x+1") == "HI.20190615.12571.36_x+1"


# --- Products (design 6) --------------------------------------------------------------


def table(name: str) -> Any:
    return oracle.BinTableHDU.from_columns([oracle.Column("N", "J", array=[1, 2])], name=name)


@pytest.fixture
def nires(maker: Any) -> Any:
    """Return a NIRES frame with a reversed image and three tables, one without a name."""
    rows = np.mgrid[:50, :40][0].astype(">f4")
    image = oracle.PrimaryHDU(rows)
    image.header.update({"INSTRUME": "NIRES", "DATE-OBS": "2019-06-15", "UTC": "03:29:31.36"})
    image.header.update(
        {"INSTR": "spec", "DATAFILE": "s190615_0020", "OBJECT": "NAME", "BSCALE": -1.0}
    )
    raw = written(image, table("Desi Slits"), table(""), table("../B"))
    raw = raw.replace(b"= 'NAME    '", b"= #### Error")  # an unreadable card
    return maker.frame("NIRES", raw, "/s/sdata1500/nires9/2019jun15/s190615_0020.fits")


def test_small_products(nires: Any) -> None:
    columns = [
        Column.model_validate({"keyword": keyword, "type": kind, "width": 24})
        for keyword, kind in (("OBJECT", "char"), ("UT", "char"), ("PROPINT", "integer"),
                              ("FILESIZE_MB", "double"), ("NAXIS2", "integer"))
    ]  # fmt: skip
    outcome = Outcome(keywords={"UT": ("03:29:31.36", "KOA: ")}, extra={"PROPINT": 18})
    contents, findings = make.small_products(nires, outcome, columns, 18_904_320)
    made = {c.name: (c.role, b"".join(c.buffers)) for c in contents}
    assert {name: role for name, (role, _) in made.items()} == {
        f"{KOAID}.raw_header": "raw_header",
        f"{KOAID}.ext1.DESI_SLITS.tbl": "table",
        f"{KOAID}.ext3._B.tbl": "table",
        f"{KOAID}.metadata.table": "metadata",
    }
    raw = made[f"{KOAID}.raw_header"][1]
    assert raw + bytes(nires.data)[len(raw) :] == nires.data
    assert len(raw) == nires.hdus[0].data_start
    row = made[f"{KOAID}.metadata.table"][1].decode().splitlines()[4]
    assert row.split() == ["null", "03:29:31.36", "18", "18.9043", "50"]
    assert codes(findings) == ["MD_HEADER_KEYWORD_UNREADABLE"]
    mended = Outcome(keywords={"OBJECT": ("mended", "KOA: ")})
    contents, findings = make.small_products(nires, mended, columns, 0)
    assert (b" mended" in contents[-1].buffers[0], findings) == (True, [])


def test_a_damaged_table_is_a_finding_beside_the_other_products(nires: Any) -> None:
    nires.data = nires.data.replace(b"TFORM1  = 'J", b"TFORM1  = '?")
    contents, findings = make.small_products(nires, Outcome(), [], 0)
    assert [c.role for c in contents] == ["raw_header", "metadata"]
    assert codes(findings) == ["EXT_HEADER_FILE_ERROR"] * 2
    assert [f.message[:6] for f in findings] == ["HDU 1:", "HDU 3:"]


def test_preview_products_know_the_sign_of_bscale(nires: Any) -> None:
    contents, findings = make.preview_products(nires)
    assert ([c.name for c in contents], findings) == ([f"{KOAID}.jpg"], [])
    gray = np.asarray(Image.open(io.BytesIO(contents[0].buffers[0])))
    assert gray[0].max() < 5  # row 49, which holds -49, is at the top
    assert gray[-1].min() > 250


def test_preview_of_the_first_image_unless_there_is_none(nires: Any, maker: Any) -> None:
    first, second = (np.arange(n, dtype=">i2").reshape(-1, 50) for n in (2000, 3000))
    header = nires.hdus[0].header
    empty = oracle.PrimaryHDU()
    empty.header.update(
        {k: header.get(k) for k in ("INSTRUME", "DATE-OBS", "UTC", "INSTR", "DATAFILE")}
    )
    images = oracle.ImageHDU(first), oracle.ImageHDU(second)
    frame = maker.frame("NIRES", written(empty, table("T"), *images), nires.path)
    [made], findings = make.preview_products(frame)
    assert (made.name, findings) == (f"{KOAID}.jpg", [])
    assert Image.open(io.BytesIO(made.buffers[0])).size == (50, 40)
    assert make.preview_products(maker.frame("NIRES", written(empty), nires.path)) == ([], [])


def test_a_preview_that_its_condition_leaves_out(nires: Any) -> None:
    unless = Picture(when={"KOAID": "!NR.*"}, name="_x")
    nires.instrument = nires.instrument.model_copy(update={"preview": (unless, Picture())})
    assert [c.name for c in make.preview_products(nires)[0]] == [f"{KOAID}.jpg"]


def test_what_can_not_be_drawn_is_a_finding(nires: Any) -> None:
    nires.data = nires.data[: nires.hdus[0].data_start + 9]
    contents, findings = make.preview_products(nires)
    assert (contents, codes(findings)) == ([], ["MAKE_JPG_ERROR"])


def test_md5_product_covers_what_koa_covers_facts_8_1() -> None:
    names = ("fits", "jpg", "metadata.table", "ext1.A.tbl", "raw_header", "manifest.json", "log")
    stored = {f"{KOAID}.{name}": make.digests(name.encode()) for name in names}
    content = make.md5_product(KOAID, stored)
    assert (content.name, content.role) == (f"{KOAID}.md5sum.table", "md5")
    lines = b"".join(content.buffers).decode().splitlines()
    assert [line[32:] for line in lines] == [
        f"  {KOAID}.{name}" for name in ("ext1.A.tbl", "fits", "jpg", "metadata.table")
    ]
    assert lines[1] == f"{stored[f'{KOAID}.fits'].md5}  {KOAID}.fits"
    assert make.md5_product(KOAID, {}).buffers == (b"",)


@pytest.mark.skipif(not OUTPUT.is_dir(), reason="no ../shared")
def test_real_md5_table_is_made_again() -> None:
    real = (OUTPUT / f"{KOAID}.md5sum.table").read_bytes()
    lines = [line.split() for line in real.decode().splitlines()]
    stored = {name: make.Digests(0, "", md5) for md5, name in reversed(lines)}
    assert len(stored) == 3
    assert make.md5_product(KOAID, stored).buffers == (real,)


def test_digests_of_two_buffers_are_of_both() -> None:
    # The sums of "abc" in RFC 1321 and FIPS 180-2.
    found = make.digests(b"a", memoryview(b"bc"))
    assert found.md5 == "900150983cd24fb0d6963f7d28e17f72"
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found.size == 3


def test_manifest_round_trip() -> None:
    found = make.digests(b"abc")
    prepared = FilePrepared.model_validate(
        {
            "frame_id": "6f4a1c58-6a86-5c0f-9a55-0c7b1d1d7f10", "generation": 1, "attempt": 7,
            "koaid": KOAID, "instrument": "NIRES", "origin": "live", "path": "/s/sdata1500/x.fits",
            "utdatetime": datetime(2019, 6, 15, 3, 29, 31, 360_000, UTC),
            "products": [found._asdict() | {"name": "a.fits", "role": "fits", "key": "x/a.fits"}],
            "raw": found._asdict(), "metadata": {"ra": 58.0}, "program": {"semid": "2019A_C272"},
            "header": [["OBJECT", "M\\x00 \u014d", ""], ["NAXIS", 0, "axes"]],
            "timeline": {"acquired": DETECTED},
        }
    )  # fmt: skip
    content = make.manifest(prepared)
    [text] = content.buffers
    assert (content.name, content.role) == (f"{KOAID}.manifest.json", "manifest")
    assert FilePrepared.model_validate_json(bytes(text)) == prepared
    assert make.manifest(prepared) == content


def test_stored_header_reads_as_the_one_it_was_stored_from(nires: Any) -> None:
    old = nires.hdus[0].header
    malformed: list[list[Value]] = [["A  B", 1, ""], ["BIG", 10**75, ""], ["CONTINUE", "x", ""]]
    hdu = make.stored_header([*malformed, *old.as_list()])
    told = {card.keyword for card in old.cards}
    assert {key: hdu.header.get(key) for key in told} == {key: old.get(key) for key in told}
    assert (hdu.kind, hdu.data_size, hdu.shape) == ("PRIMARY", 0, ())
