"""Identities: KOAID, repairs of date and time, INSTRUME, original name (facts 2)."""

import string
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_preparer.rules import Note, Set, identify
from koa_shared.errors import FrameFault

KCWI = {
    "INSTRUME": "KCWI",
    "CAMERA": "BLUE",
    "OFNAME": "kb190509_00001.fits",
    "DATE-OBS": "2019-05-09",
    "UT": "02:05:54.57",
}
KCWI_PATH = "/s/sdata1400/kcwi1/2019may09/kb190509_00001.fits"
NIRES = {
    "INSTRUME": "NIRES",
    "INSTR": "spec",
    "DATAFILE": "s190615_0020",
    "DATE-OBS": "2019-06-15",
    "UTC": "03:29:31.36",
}
NIRES_PATH = "/s/sdata1500/nires9/2019jun15/s190615_0020.fits"


def mended(identity: Any) -> dict[str, Any]:
    return {s.keyword: s.value for s in identity.effects if isinstance(s, Set)}


def notes(identity: Any) -> list[Note]:
    return [note for note in identity.effects if isinstance(note, Note)]


def nires(maker: Any, **changes: Any) -> Any:
    header = {k.replace("_", "-"): v for k, v in changes.items()}
    merged = {k: v for k, v in (NIRES | header).items() if v is not None}
    return identify(maker.view("NIRES", merged, NIRES_PATH))


@pytest.mark.parametrize(
    ("utc", "koaid"),
    [
        ("03:29:31.36", "NR.20190615.12571.36"),  # facts 8.3
        ("02:05:54.57", "NR.20190615.07554.57"),
        ("00:00:00.05", "NR.20190615.00000.50"),  # facts 2.2, the production rule
        ("00:00:00.005", "NR.20190615.00000.50"),
        ("00:00:00.000007", "NR.20190615.00000.07"),
        ("23:59:59.999999999", "NR.20190615.86399.99"),
        ("16:07:27.03", "NR.20190615.58047.30"),
        ("10:00:00.", "NR.20190615.36000.00"),
        ("10:00:00", "NR.20190615.36000.00"),
    ],
)
def test_koaid(maker: Any, utc: str, koaid: str) -> None:
    assert nires(maker, UTC=utc).koaid == koaid


def test_padded_fraction(maker: Any) -> None:
    view = maker.view("NIRES", NIRES | {"UTC": "00:00:00.05"}, NIRES_PATH)
    assert identify(view, "padded").koaid == "NR.20190615.00000.05"


def test_sample_of_kcwi(maker: Any) -> None:  # facts 8.4
    identity = identify(maker.view("KCWI", KCWI, KCWI_PATH))
    assert identity.koaid == "KB.20190509.07554.57"
    assert identity.ut == datetime(2019, 5, 9, 2, 5, 54, 570000, UTC)
    assert notes(identity) == []
    sets = mended(identity)
    assert sets["OFNAME"] == "kb190509_00001.fits"
    assert sets["KOAID"] == "KB.20190509.07554.57.fits"
    assert sets["UTC"] == "02:05:54.57"


@pytest.mark.parametrize(
    ("utc", "noted"),
    [
        ("24:00:00.00", True),
        ("10:60:00.00", True),
        ("10:00:60.00", True),
        ("#### Error ###", True),
        (None, True),
        ("", True),
        ("NaN", True),
        (12345, True),
        ("1:02:03.4", True),
        ("10:00:00.00 UT", True),
        ("10:00:00.00", False),
    ],
)
def test_bad_utc_is_the_file_s_time(maker: Any, utc: Any, *, noted: bool) -> None:
    identity = nires(maker, UTC=utc)
    if noted:
        assert identity.koaid == "NR.20190615.18367.00"  # 05:06:07, facts 2.3
        assert mended(identity)["UTC"] == "05:06:07.00"
        assert [n.code for n in notes(identity)] == ["SET_UTC_WARN"]
    else:
        assert notes(identity) == []


@pytest.mark.parametrize(
    ("date", "expected", "noted"),
    [
        ("2019-06-15", "20190615", False),
        ("2020-10-14T02:46:28", "20201014", False),
        ("15/06/49", "20490615", False),  # facts 2.3
        ("15/06/50", "19500615", False),
        ("2019/06/15", "20190615", False),
        ("2019-02-30", "20200304", True),
        ("31/31/19", "20200304", True),
        ("#### Error ###", "20200304", True),
        (None, "20200304", True),
        (20190615, "20200304", True),
    ],
)
def test_date(maker: Any, date: Any, expected: str, *, noted: bool) -> None:
    identity = nires(maker, DATE_OBS=date)
    assert identity.koaid == f"NR.{expected}.12571.36"
    assert [n.code for n in notes(identity)] == ["SET_DATEOBS_WARN"] * noted
    assert mended(identity).get("DATE-OBS", date) == f"{identity.ut:%Y-%m-%d}"


def test_dead_keyword_server(maker: Any) -> None:
    """Both from one moment: they never lie on two sides of midnight."""
    identity = nires(maker, UTC="#### Error ###", DATE_OBS="#### Error ###")
    assert identity.koaid == "NR.20200304.18367.00"
    assert {n.code for n in notes(identity)} == {"SET_UTC_WARN", "SET_DATEOBS_WARN"}


@pytest.mark.parametrize(
    ("name", "header", "path", "koaid"),
    [
        ("KCWI", {"CAMERA": "red"}, "", "KR.20190509.07554.57"),
        ("KCWI", {"CAMERA": "FPC"}, "", "KF.20190509.07554.57"),
        ("KCWI", {"CAMERA": "svc"}, "", "KS.20190509.07554.57"),
        ("NIRES", {"INSTR": "imag", "DATAFILE": "n"}, "", "NI.20190509.07554.57"),
        ("NIRC2", {"FILENAME": "x.fits"}, "", "N2.20190509.07554.57"),
        (
            "NIRC2",
            {"FILENAME": "x.fits", "LEV0TYPE": "Unprocessed"},
            "",
            "N2.20190509.07554.57_unp",
        ),
        ("DEIMOS", {"OUTFILE": "d", "FRAMENO": 1}, "", "DE.20190509.07554.57"),
        (
            "DEIMOS",
            {"OUTFILE": "d", "FRAMENO": 1, "OUTDIR": "/s/sdata1001/x/fcs"},
            "",
            "DF.20190509.07554.57",
        ),
        ("ESI", {"OUTFILE": "e", "FRAMENO": 7}, "", "ES.20190509.07554.57"),
        ("HIRES", {"OUTFILE": "h", "FRAMENO": 7}, "", "HI.20190509.07554.57"),
        ("LRIS", {"INSTRUME": "LRISBLUE"}, "", "LB.20190509.07554.57"),
        ("LRIS", {"INSTRUME": "LRISpRED"}, "", "LR.20190509.07554.57"),
        ("MOSFIRE", {"DATAFILE": "m"}, "", "MF.20190509.07554.57"),
        ("NIRSPEC", {"CAMERA": "SCAM", "DATAFILE": "n"}, "", "NC.20190509.07554.57"),
        (
            "NIRSPEC",
            {"OUTDIR": "/s/sdata600/x/spec", "DATAFILE": "n", "CAMERA": ""},
            "",
            "NS.20190509.07554.57",
        ),
        (
            "OSIRIS",
            {"INSTR": "imag", "DATAFILE": "o", "INSTRUME": "?"},
            "",
            "OI.20190509.07554.57",
        ),
        ("GUIDER", {"CAMNAME": "MAGIQ"}, "", "GR.20190509.07554.57_MAGIQ"),
        ("KPF", {"OFNAME": "KP.20190509.00001.02.fits"}, "", "KP.20190509.00001.02"),
    ],
)
def test_prefixes(maker: Any, name: str, header: Any, path: str, koaid: str) -> None:
    base = {"INSTRUME": name, "DATE-OBS": "2019-05-09", "UTC": "02:05:54.57"}
    base |= {"OFNAME": "f.fits"} | header
    view = maker.view(name, base)
    assert identify(view).koaid == koaid


def test_two_hdus_without_level_type_are_a_cube(maker: Any) -> None:  # facts 2.1
    header = {"INSTRUME": "NIRC2", "FILENAME": "f.fits", "DATE-OBS": "2019-05-09"}
    view = maker.view("NIRC2", header | {"UTC": "00:00:01.00"}, extensions=["IMAGE"])
    assert identify(view).koaid == "N2.20190509.00001.00_unp"


@pytest.mark.parametrize(
    ("changes", "path", "code"),
    [
        ({"INSTRUME": "ESI", "OUTDIR": ""}, None, "SET_INSTR_ERROR"),
        ({"CAMERA": "green"}, None, "KOAID_CREATE_FAIL"),
    ],
)
def test_refused(maker: Any, changes: Any, path: str | None, code: str) -> None:
    with pytest.raises(FrameFault) as raised:
        identify(maker.view("KCWI", KCWI | changes, path or KCWI_PATH))
    assert raised.value.code == code
    assert raised.value.step == "identity"


@pytest.mark.parametrize(
    ("changes", "path", "code"),
    [
        ({"OFNAME": None}, None, "BAD_OFNAME"),
        ({}, "/s/sdata1400/kcwi1/other.fits", "MISMATCHED_FILENAME"),
        ({}, "/s/sdata1400/mira/kb190509_00001.fits", "FILEPATH_REJECT"),
        ({}, "/s/sdata1400/a/SPEC/ORP/kb190509_00001.fits", "FILEPATH_REJECT"),
        ({}, "/s/sdata1400/a/subtracted/kb190509_00001.fits", "FILEPATH_REJECT"),
        ({}, "/s/sdata1400/midf/kb190509_00001.fits", "FILEPATH_REJECT"),
        ({}, "/s/sdata1400/savier-protected/kb190509_00001.fits", "FILEPATH_REJECT"),
    ],
)
def test_invalid_unless_waived(maker: Any, changes: Any, path: str | None, code: str) -> None:
    header = {k: v for k, v in (KCWI | changes).items() if v is not None}
    identity = identify(maker.view("KCWI", header, path or KCWI_PATH))
    invalid = [note.code for note in notes(identity) if note.severity == "invalid"]
    assert invalid == [code]
    assert identity.koaid == identify(maker.view("KCWI", KCWI, KCWI_PATH)).koaid


@pytest.mark.parametrize(
    ("changes", "update"),
    [
        ({"INSTRUME": "KCWI: cosmic web"}, "KCWI"),
        ({"INSTRUME": "", "CURRINST": "KCWI"}, "KCWI"),
        ({"INSTRUME": "ESI", "OUTDIR": "/s/sdata1400/kcwi1/2019may09"}, "KCWI"),
        ({"INSTRUME": "", "FILNAME": "xKCWIx"}, "KCWI"),
        ({"CURRINST": "NIRES"}, None),
    ],
)
def test_instrume(maker: Any, changes: Any, update: str | None) -> None:  # facts 2.1
    view = maker.view("KCWI", KCWI | changes, KCWI_PATH)
    assert mended(identify(view)).get("INSTRUME") == update
    assert view.text("INSTRUME") == "KCWI"


def test_gz_in_the_path_is_left_out(maker: Any) -> None:  # facts 2.5
    assert identify(maker.view("KCWI", KCWI, KCWI_PATH + ".gz")).koaid


@pytest.mark.parametrize(
    ("given", "koaid", "codes"),
    [
        ("KB.20010101.00001.99.fits", "KB.20010101.00001.99", []),
        ("../../etc/passwd", "KB.20190509.07554.57", ["INVALID_KOAID"]),
        ("NR.20010101.00001.99", "KB.20190509.07554.57", ["INVALID_KOAID"]),
    ],
)
def test_koaid_of_the_header(maker: Any, given: str, koaid: str, codes: list[str]) -> None:
    identity = identify(maker.view("KCWI", KCWI | {"KOAID": given}, KCWI_PATH))
    assert identity.koaid == koaid
    assert [n.code for n in notes(identity)] == codes


@pytest.mark.parametrize(
    ("ofname", "date", "ok"),
    [
        ("KP.20240422.28832.89.fits", "2024-04-22", True),
        ("KP.20240422.28832.89.fits", "2024-04-23", False),
        ("KP.20240422.28832.89.fits", "#### Error ###", True),
        ("KP.20240422.2883.89.fits", "2024-04-22", False),
        ("kpf_1.fits", "2024-04-22", False),
    ],
)
def test_kpf_is_named_by_its_file(maker: Any, ofname: str, date: str, *, ok: bool) -> None:
    header = {"OFNAME": ofname, "DATE-OBS": date, "UT": "08:00:32.82", "INSTRUME": "GM"}
    view = maker.view("KPF", header, f"/s/sdata1701/kpf1/{ofname}")
    if not ok:
        with pytest.raises(FrameFault, match=r"KOAID|DATE-OBS"):
            identify(view)
        return
    identity = identify(view)
    assert identity.koaid == "KP.20240422.28832.89"
    sets = mended(identity)
    assert sets["INSTSLCT"] == "GM"
    assert sets["INSTRUME"] == "KPF"


def test_guider_needs_a_camera_name(maker: Any) -> None:
    header = {"CURRINST": "LRISADC", "DATE-OBS": "2019-05-09", "UTC": "01:00:00.00"}
    with pytest.raises(FrameFault, match="CAMNAME"):
        identify(maker.view("GUIDER", header))
    identity = identify(maker.view("GUIDER", header | {"CAMNAME": "a b/c"}))
    assert identity.koaid == "GR.20190509.03600.00_a_b_c"
    assert mended(identity)["INSTRUME"] == "LRISADC"
    assert mended(identity)["OFNAME"] == "f.fits"


REAL = [
    ("ESI/bstarorder_1.txt", "ESI", "ES.20230215.58047.30", "e230215_1046.fits"),
    ("ESI/PH957_e.txt", "ESI", "ES.20000804.48270.34", "esi0254.fits"),
    ("KCWI/kb181012_00003.txt", "KCWI", "KB.20181012.05955.21", "kb181012_00003.fits"),
    (
        "KCWI/cwitools_test_coadd_pNB.txt",
        "KCWI",
        "KB.20190202.31269.38",
        "kb190202_00061.fits",
    ),
    (
        "NIRC2/kcal_flat_512_512_narrow_K+clear.txt",
        "NIRC2",
        "N2.20220619.62620.57",
        "n0113.fits",
    ),
    ("NIRC2/n0902_2025dec08.txt", "NIRC2", "N2.20251208.32682.82", "n0902.fits"),
    ("NIRC2/standard_2.txt", "NIRC2", "N2.20170725.51493.00", "n0052.fits"),
    (
        "NIRES/NR.20190615.12571.36_from_metadata.txt",
        "NIRES",
        "NR.20190615.12571.36",
        "s190615_0020.fits",
    ),
    ("HIRES/hires3027.txt", "HIRES", "HI.20130507.08022.40", "hires3027.fits"),
    (
        "KPF/KP.20240422.28832.89.txt",
        "KPF",
        "KP.20240422.28832.89",
        "KP.20240422.28832.89.fits",
    ),
    ("LRIS/ARC_red.txt", "LRIS", "LR.20201014.09989.30", "r201014_1009.fits"),
    ("LRIS/LB.20160109.14149.txt", "LRIS", "LB.20160109.14149.24", "b160109_1040.fits"),
    ("LRIS/b150910_2036.txt", "LRIS", "LB.20150910.15729.27", "b150910_2036.fits"),
    (
        "NIRSPEC/NS.20160414.02171.txt",
        "NIRSPEC",
        "NS.20160414.02171.67",
        "apr14s0001.fits",
    ),
    (
        "NIRSPEC/NS.20160414.53947.txt",
        "NIRSPEC",
        "NS.20160414.53947.59",
        "apr14s0095.fits",
    ),
]


@pytest.mark.parametrize(("name", "instrument", "koaid", "ofname"), REAL)
def test_real_headers(
    maker: Any, dump: Any, name: str, instrument: str, koaid: str, ofname: str
) -> None:
    """A frame that the production archive holds is not refused, and has its KOAID."""
    # The old pipeline put UTC among its own keywords.
    times = {
        "NS.20160414.02171.67": "00:36:11.67",
        "NS.20160414.53947.59": "14:59:07.59",
    }
    sets = [f"UTC='{times[koaid]}'"] if koaid in times else []
    found = dump(name, sets)
    frame = maker.frame(instrument, found.raw, f"/s/sdata1/a/{ofname}")
    assert frame.identity.koaid == koaid
    if given := found.archived.get("KOAID"):  # older ones have no fraction
        assert koaid.startswith(str(given).removesuffix(".fits"))


JUNK = st.one_of(
    st.text(string.printable[:95], max_size=30),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.sampled_from(["#### Error ###", "NaN", "null", "24:00:00.00", "31/02/19"]),
)
KEYS = ["DATE-OBS", "UTC", "UT", "INSTRUME", "KOAID", "OFNAME", "CAMERA", "INSTR"]
KEYS += ["DATAFILE", "FILENAME", "OUTFILE", "FRAMENO", "OUTDIR", "CAMNAME", "CURRINST"]


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(["NIRC2", "KCWI", "ESI", "NIRES", "GUIDER", "KPF", "LRIS"]),
    header=st.dictionaries(st.sampled_from(KEYS), JUNK),
)
def test_nothing_but_faults(maker: Any, name: str, header: Any) -> None:
    try:
        identity = identify(maker.view(name, header))
    except FrameFault:
        return
    assert identity.koaid.replace("/", "") == identity.koaid
