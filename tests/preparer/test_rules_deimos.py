"""The rules of DEIMOS and of its flexure compensation images (facts 2, 3.2, 3.10, 3.11)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATH = "/s/sdata1001/deimos3/2019jan06/d0106_0046.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "DEIMOS",
    "OUTDIR": "/sdata1001/deimos3/2019jan06",
    "OUTFILE": "d0106_",
    "FRAMENO": 46,
    "DATE-OBS": "2019-01-07",
    "UTC": "05:26:32.00",
    "PROGNAME": "S347",
}
FCS: dict[str, Any] = HEADER | {
    "OUTDIR": "/sdata1001/fcs/2019jan07",
    "OUTFILE": "fcs",
    "FRAMENO": 1,
    "DATE": "2019-01-08T02:25:19",
}
FCS_PATH = "/s/sdata1001/fcs/2019jan07/fcs0001.fits"
OPEN = {"HATCHPOS": "open"}
CLOSED = {"HATCHPOS": "closed"}
ARC = {"LAMPS": "Kr Xe Ar Ne"}
SPECTRUM = {"GRATENAM": "600ZD", "GRATEPOS": 3, "G3TLTWAV": 7503.2, "SLMSKNAM": "exz1"}


def run(maker: Any, make_file: Any, header: Any, *given: Any) -> Any:
    return maker.run("DEIMOS", make_file(HEADER | header, *given), PATH)


def run_fcs(maker: Any, make_file: Any, header: Any, path: str = FCS_PATH) -> Any:
    told = {k: v for k, v in (FCS | header).items() if v is not None}
    return maker.run("DEIMOS", make_file(told), path)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


def codes(out: Any) -> set[str]:
    return {f.code for f in out.findings}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        pytest.param({"OBSTYPE": "Bias"} | CLOSED | ARC, "bias", id="3.10-bias"),
        pytest.param({"OBSTYPE": "Dark", "SLMSKNAM": "GOH_X"}, "dark", id="3.10-dark"),
        pytest.param({"SLMSKNAM": "GOH_X"} | OPEN, "focus", id="3.10-focus"),
        pytest.param({"SLMSKNAM": "x_goh"} | OPEN, "object", id="3.10-goh-not-first"),
        pytest.param(CLOSED | {"LAMPS": "Qz"}, "flatlamp", id="3.10-quartz"),
        pytest.param(CLOSED | {"LAMPS": "Ne Qz", "GRATEPOS": 3}, "flatlamp", id="3.10-quartz-too"),
        pytest.param(OPEN | {"LAMPS": "Qz"}, "object", id="3.10-quartz-open"),
        pytest.param(OPEN | {"FLIMAGIN": "On"}, "flatlamp", id="3.10-dome-imaging"),
        pytest.param(OPEN | {"FLSPECTR": "on"}, "flatlamp", id="3.10-dome-spectral"),
        pytest.param(CLOSED | {"FLSPECTR": "on"}, "undefined", id="3.10-dome-closed"),
        pytest.param(CLOSED | ARC | {"GRATEPOS": 3}, "arclamp", id="3.10-arc-3"),
        pytest.param(CLOSED | ARC | {"GRATEPOS": 4}, "arclamp", id="3.10-arc-4"),
        pytest.param(CLOSED | ARC | {"GRATEPOS": 2}, "undefined", id="3.10-arc-2"),
        pytest.param(CLOSED | ARC, "undefined", id="3.10-arc-no-position"),
        pytest.param(CLOSED | {"LAMPS": "Off", "GRATEPOS": 3}, "undefined", id="3.10-lamps-off"),
        pytest.param(CLOSED | {"GRATEPOS": 3}, "undefined", id="3.10-no-LAMPS"),
        pytest.param(OPEN | {"LAMPS": "Off"}, "object", id="3.10-object"),
        pytest.param({}, "undefined", id="3.10-undefined"),
        pytest.param({"HATCHPOS": "#### Error ###"}, "undefined", id="3.10-dead-server"),
        pytest.param({"OUTDIR": "/sdata1001/fcs/x"} | OPEN, "fcscal", id="3.10-fcscal"),
        pytest.param({"OUTDIR": "/sdata1001/dmosfcs"}, "fcscal", id="3.10-fcscal-no-slash"),
        pytest.param({"OUTDIR": "/sdata1001/dmosfcs"} | OPEN, "object", id="3.10-fcs-last"),
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in codes(out)) == (kind == "undefined")


def test_identity(maker: Any, make_file: Any) -> None:  # facts 2.1, 2.2
    out = run(maker, make_file, {"INSTRUME": "DEIMOS: blue"})
    assert value(out, "KOAID") == "DE.20190107.19592.00.fits"
    assert value(out, "OFNAME") == "d0106_0046.fits"
    assert value(out, "INSTRUME") == "DEIMOS"
    assert value(out, "UT") == "05:26:32.00"
    assert value(out, "CAMERA") == "DEIMOS"
    assert "CAMERA" not in run(maker, make_file, {"CAMERA": "X"}).keywords


@pytest.mark.parametrize(
    ("header", "path", "koaid", "clock"),
    [
        pytest.param({}, FCS_PATH, "DF.20190108.08719.00", "02:25:19.00", id="7.3-P8-DATE-first"),
        pytest.param(
            {"DATE-OBS": None, "UTC": None},
            FCS_PATH,
            "DF.20190108.08719.00",
            "02:25:19.00",
            id="2.1-DATE-alone",
        ),
        pytest.param(
            {"DATE": "2019-01-08T02:25:19.36"},
            FCS_PATH,
            "DF.20190108.08719.36",
            "02:25:19.36",
            id="2.1-fraction",
        ),
        pytest.param(
            {"DATE": "2019-01-08"},
            FCS_PATH,
            "DF.20190107.19592.00",
            "05:26:32.00",
            id="2.1-DATE-without-time",
        ),
        pytest.param(
            {"DATE": "2019-13-08T02:25:19"},
            FCS_PATH,
            "DF.20190107.19592.00",
            "05:26:32.00",
            id="2.3-impossible-DATE",
        ),
        pytest.param(
            {"DATE": "2019-01-08T24:25:19"},
            FCS_PATH,
            "DF.20190107.19592.00",
            "05:26:32.00",
            id="2.3-impossible-time",
        ),
        pytest.param(
            {"OUTDIR": None}, FCS_PATH, "DF.20190108.08719.00", "02:25:19.00", id="2.1-path"
        ),
        pytest.param(
            {"OUTDIR": "/sdata1001/deimos3"},
            "/s/sdata1001/deimos3/fcs0001.fits",
            "DE.20190107.19592.00",
            "05:26:32.00",
            id="2.1-no-FCS-keeps-its-time",
        ),
    ],
)
def test_fcs_identity(
    maker: Any, make_file: Any, header: Any, path: str, koaid: str, clock: str
) -> None:
    out = run_fcs(maker, make_file, header, path)
    day = f"{koaid[3:7]}-{koaid[7:9]}-{koaid[9:11]}"
    frame = FCS | {k: pair[0] for k, pair in out.keywords.items()}
    assert frame["KOAID"] == f"{koaid}.fits"
    assert (frame["DATE-OBS"], frame["UTC"], frame["UT"]) == (day, clock, clock)
    assert frame["OFNAME"] == "fcs0001.fits"
    assert codes(out) & {"SET_DATEOBS_WARN", "SET_UTC_WARN"} == set()


def test_fcs_without_any_time_has_the_file_s(maker: Any, make_file: Any) -> None:  # facts 2.3
    told = {"DATE": "#### Error ###", "DATE-OBS": None, "UTC": None}
    out = run_fcs(maker, make_file, told)
    assert value(out, "KOAID") == "DF.20200304.18367.00.fits"
    assert {"SET_DATEOBS_WARN", "SET_UTC_WARN"} <= codes(out)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"FCSIMGFI": "/sdata1001/fcs/2019jan07/fcs0001.fits"}, id="3.11-told"),
        pytest.param({"FCSIMGFI": ""}, id="3.11-blank"),
        pytest.param({}, id="3.11-absent"),
    ],
)
def test_fcskoaid_is_never_looked_up(maker: Any, make_file: Any, header: Any) -> None:
    for out in (run(maker, make_file, header), run_fcs(maker, make_file, header)):
        assert value(out, "FCSKOAID") == "null"
        assert "SET_FCSKOAID_ERROR" not in codes(out)


@pytest.mark.parametrize(
    ("header", "mode"),
    [
        pytest.param({}, "unknown", id="3.11-no-GRATENAM"),
        pytest.param({"GRATENAM": "Unknown", "GRATEPOS": 3}, "unknown", id="3.11-unknown"),
        pytest.param({"GRATENAM": "None", "GRATEPOS": 3}, "unknown", id="3.11-none"),
        pytest.param({"GRATENAM": "Mirror"}, "imaging", id="3.11-mirror"),
        pytest.param(SPECTRUM | {"G3TLTNAM": "Zeroth_Order"}, "imaging", id="3.11-zeroth-3"),
        pytest.param(SPECTRUM | {"G4TLTNAM": "Zeroth_Order"}, "mos", id="3.11-other-slider"),
        pytest.param(
            SPECTRUM | {"GRATEPOS": 4, "G4TLTNAM": "Zeroth_Order"}, "imaging", id="3.11-zeroth-4"
        ),
        pytest.param(SPECTRUM | {"SLMSKNAM": "LVMslitC"}, "longslit", id="3.11-LVM"),
        pytest.param(SPECTRUM | {"SLMSKNAM": "Long1.0B"}, "longslit", id="3.11-long"),
        pytest.param(SPECTRUM, "mos", id="3.11-mos"),
        pytest.param(SPECTRUM | {"SLMSKNAM": ""}, "mos", id="3.11-mos-without-name"),
        pytest.param(SPECTRUM | {"GRATEPOS": 2}, "null", id="3.11-slider-2"),
        pytest.param(SPECTRUM | {"GRATEPOS": "?"}, "null", id="3.11-wild-slider"),
    ],
)
def test_obsmode(maker: Any, make_file: Any, header: Any, mode: str) -> None:
    assert value(run(maker, make_file, header), "OBSMODE") == mode


OPTICS = ("WAVEBLUE", "WAVECNTR", "WAVERED", "DISPSCAL", "SPECRES")
NULLS = ("null", "null", "null")


def grating(name: str, wave: Any, position: int = 3) -> dict[str, Any]:
    return {"GRATENAM": name, "GRATEPOS": position, f"G{position}TLTWAV": wave}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(grating("600ZD", 7503.2), (4850, 7500, 10150, 0.65, 1370.0), id="3.11-600ZD"),
        pytest.param(grating("830G", 8640.0), (6720, 8640, 10560, 0.47, 2180.0), id="3.11-830G"),
        pytest.param(grating("900ZD", 5500, 4), (3740, 5500, 7260, 0.44, 1480.0), id="3.11-900ZD"),
        pytest.param(grating("1200G", 7760.1), (6440, 7760, 9080, 0.33, 2790.0), id="3.11-1200G"),
        pytest.param(grating("1200B", 4496.0), (3180, 4500, 5820, 0.33, 1620.0), id="3.11-1200B"),
        pytest.param(grating("1234X", 7500), (*NULLS, "null", "null"), id="3.11-no-row"),
        pytest.param(grating("600ZD", "?"), (*NULLS, 0.65, 1370.0), id="3.11-wild-tilt"),
        pytest.param(
            grating("600ZD", 7500, 3) | {"GRATEPOS": 4},
            (*NULLS, 0.65, 1370.0),
            id="3.11-tilt-of-other",
        ),
        pytest.param(grating("600ZD", 7500, 2), (*NULLS, "null", 1370.0), id="3.11-slider-2"),
        pytest.param({}, (*NULLS, "null", "null"), id="3.11-nothing"),
    ],
)
def test_spectra(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    out = run(maker, make_file, header | {"DWFILNAM": "OG550"})
    assert tuple(value(out, k) for k in OPTICS) == expected
    assert value(out, "SPATSCAL") == 0.1185


@pytest.mark.parametrize(
    ("name", "waves"),
    [
        pytest.param("B", (4200, 4400, 4600), id="3.11-B"),
        pytest.param("V", (5150, 5450, 5750), id="3.11-V"),
        pytest.param("R", (6100, 6500, 6900), id="3.11-R"),
        pytest.param("I", (7600, 8400, 9200), id="3.11-I"),
        pytest.param("Z", (8600, 9100, 9600), id="3.11-Z"),
        pytest.param("GG400", (4000, 7250, 10500), id="3.11-GG400"),
        pytest.param("GG455", (4550, 7525, 10500), id="3.11-GG455"),
        pytest.param("GG495", (4950, 7725, 10500), id="3.11-GG495"),
        pytest.param("OG550", (5500, 8000, 10500), id="3.11-OG550"),
        pytest.param("NG8560", (8400, 8550, 8700), id="3.11-NG8560"),
        pytest.param("NG8580", (8550, 8600, 8650), id="3.11-NG8580"),
        pytest.param("BAL12", NULLS, id="3.11-no-row"),
    ],
)
def test_images(maker: Any, make_file: Any, name: str, waves: Any) -> None:
    out = run(maker, make_file, {"GRATENAM": "Mirror", "DWFILNAM": name})
    assert value(out, "FILTER") == name
    assert tuple(value(out, k) for k in OPTICS) == (*waves, 0.1185, "null")


def test_no_filter(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {"GRATENAM": "Mirror"})
    assert "FILTER" not in out.keywords
    assert value(out, "WAVECNTR") == "null"


@pytest.mark.parametrize(
    ("header", "days"),
    [
        pytest.param({"MJD-OBS": "58490.226757"}, 58490.226757, id="3.11-text"),
        pytest.param({"MJD-OBS": 58490.226757}, 58490.226757, id="3.11-number"),
        pytest.param({"MJD-OBS": "#### Error ###"}, "null", id="3.11-wild"),
        pytest.param({}, None, id="3.11-absent"),
    ],
)
def test_mjd(maker: Any, make_file: Any, header: Any, days: Any) -> None:
    assert run(maker, make_file, header).keywords.get("MJD", (None,))[0] == days


def extension(make_file: Any, cards: dict[str, Any], kind: str = "IMAGE") -> bytes:
    """Return one extension whose header also has these cards."""
    whole: bytes = make_file({}, None, [kind])
    start = len(make_file({}))
    more = "".join(f"{k:8}= '{v}'".ljust(80) for k, v in cards.items())
    text = whole[start:].decode().rstrip().removesuffix("END") + more + "END"
    return text.ljust(-(-len(text) // 2880) * 2880).encode()


def test_extensions(maker: Any, make_file: Any) -> None:
    """NEXTEN counts tables too, as in the archive; DETSEC is that of the HDU's number."""
    raw = make_file(HEADER)
    raw += extension(make_file, {"DETSEC": "[1:2048,1:4096]"})
    raw += extension(make_file, {"EXTNAME": "VidInp2"})
    raw += extension(make_file, {"DETSEC": "[4097:6144,1:4096]"})
    raw += extension(make_file, {"EXTNAME": "DesiSlits"}, "BINTABLE")
    out = maker.run("DEIMOS", raw, PATH)
    assert value(out, "NEXTEN") == 4
    assert isinstance(value(out, "NEXTEN"), int)
    assert value(out, "DETSEC01") == "[1:2048,1:4096]"
    assert value(out, "DETSEC03") == "[4097:6144,1:4096]"
    others = (2, *range(4, 17))
    assert [value(out, f"DETSEC{n:02}") for n in others] == ["null"] * 14
    assert "DETSEC17" not in out.keywords
    assert value(run(maker, make_file, {}), "NEXTEN") == 0


def test_no_image_statistics(maker: Any, make_file: Any) -> None:  # facts 3.3
    image = np.array([[65534, 65535], [65536, 1]], ">i4")
    out = run(maker, make_file, {}, image)
    assert value(out, "NPIXSAT") == 2
    assert "IMAGEMN" not in out.keywords


def test_real_frame(maker: Any, dump: Any) -> None:
    """KOAIDs of these years had no fraction."""
    found = dump("DEIMOS/DE.20190107.19592_object_row.txt", ["OUTFILE='d'"])
    out = maker.run("DEIMOS", found.raw, "/s/sdata1001/deimos3/2019jan06/d0046.fits")
    assert value(out, "KOAID") == "DE.20190107.19592.00.fits"
    assert value(out, "SEMESTER") == "2018B"


def test_real_fcs_frame(maker: Any, dump: Any) -> None:
    found = dump("DEIMOS/DF.20190108.08719_fcscal_row.txt", ["OUTFILE='fcs'"])
    out = maker.run("DEIMOS", found.raw, "/s/sdata1001/fcs/2019jan07/fcs0001.fits")
    assert value(out, "KOAID") == "DF.20190108.08719.00.fits"
    assert value(out, "KOAIMTYP") == "fcscal"


KEYS = ["OUTDIR", "DATE", "DATE-OBS", "UTC", "OBSTYPE", "HATCHPOS", "LAMPS", "GRATEPOS"]
KEYS += ["GRATENAM", "G3TLTWAV", "G3TLTNAM", "DWFILNAM", "MJD-OBS", "SLMSKNAM", "FCSIMGFI"]
WORDS = ["", "closed", "open", "/s/fcs", "600ZD", "mirror", "#### Error ###", "NaN", "T::"]
WORDS += ["2019-01-08T02:25:19", "2019-01-08T", "Qz", "1e999", "Long"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(
            st.sampled_from([*WORDS, 3, 4, 1e308, -1e308, 10**30]),
            st.booleans(),
            st.text("ab0:T-.'/+", max_size=20),
        ),
    )
)
def test_no_header_crashes_a_rule(maker: Any, make_file: Any, header: Any) -> None:
    out = maker.run("DEIMOS", make_file(FCS | header), PATH)
    assert "RULE_CRASHED" not in codes(out)
    assert {*OPTICS, "FCSKOAID", "OBSMODE", "DETSEC16"} <= out.keywords.keys()
