"""The rules of NIRSPEC (facts 2.1-2.3, 3.2, 3.10, 3.11, 7.3 P9)."""

from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koa_preparer.providers import Facts, Night
from koa_preparer.rules import core_metadata, run_rules
from koa_shared.errors import FrameFault

PATH = "/s/sdata600/nspec1/2021jan04/nspec210104_0017.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "NIRSPEC",
    "CAMERA": "spec",
    "DATAFILE": "nspec210104_0017",
    "DATE-OBS": "2021-01-04",
    "UTC": "10:20:30.45",
    "OBSTYPE": "object",
    "TRUITIME": 1.47528,
    "ITIME": 1475,
    "COADDS": 2,
    "PROGNAME": "C272",
}
SCAM = {"CAMERA": "SCAM"}
AO = {"INSTRUME": "NIRSPAO"}


def run(maker: Any, make_file: Any, header: Any, image: Any = None) -> Any:
    return maker.run("NIRSPEC", make_file(HEADER | header, image), PATH)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


def codes(out: Any) -> set[str]:
    return {finding.code for finding in out.findings}


@pytest.mark.parametrize(
    ("header", "koaid"),
    [
        pytest.param({}, "NS.20210104.37230.45", id="2.1-spec"),
        pytest.param(SCAM, "NC.20210104.37230.45", id="2.1-scam"),
        pytest.param(AO, "NS.20210104.37230.45", id="2.1-ao"),
        pytest.param(
            {"CAMERA": "", "OUTDIR": "/s/sdata600/nspec1/scam"},
            "NC.20210104.37230.45",
            id="2.1-scam-by-outdir",
        ),
        pytest.param(
            {"CAMERA": "", "OUTDIR": "/s/sdata600/nspec1/spec"},
            "NS.20210104.37230.45",
            id="2.1-spec-by-outdir",
        ),
        pytest.param({"UTC": "10:20:30.05"}, "NS.20210104.37230.50", id="2.2-fraction"),
        pytest.param({"UTC": "10:20:30"}, "NS.20210104.37230.00", id="2.3-no-fraction"),
        pytest.param({"DATE-OBS": "04/01/21"}, "NS.20210104.37230.45", id="2.3-slashes"),
        pytest.param({"UTC": "?"}, "NS.20210104.18367.00", id="2.3-file-time"),
    ],
)
def test_koaid(maker: Any, make_file: Any, header: Any, koaid: str) -> None:
    assert value(run(maker, make_file, header), "KOAID") == f"{koaid}.fits"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        pytest.param({"INSTRUME": "NIRES"}, "SET_INSTR_ERROR", id="2.1-other"),
        pytest.param({"INSTRUME": ""}, "SET_INSTR_ERROR", id="2.1-none"),
        pytest.param({"CAMERA": "x"}, "KOAID_CREATE_FAIL", id="2.1-no-prefix"),
    ],
)
def test_refused(maker: Any, make_file: Any, header: Any, code: str) -> None:
    with pytest.raises(FrameFault) as raised:
        run(maker, make_file, header)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("header", "path", "code"),
    [
        pytest.param({"DATAFILE": ""}, PATH, "BAD_OFNAME", id="2.6-no-name"),
        pytest.param({"DATAFILE": "n1"}, PATH, "MISMATCHED_FILENAME", id="2.6-other-name"),
        pytest.param({}, PATH.replace("nspec1", "mira"), "FILEPATH_REJECT", id="2.6-mira"),
    ],
)
def test_invalid(maker: Any, make_file: Any, header: Any, path: str, code: str) -> None:
    out = maker.run("NIRSPEC", make_file(HEADER | header), path)
    assert code in {f.code for f in out.findings if f.severity == "invalid"}


def test_names_and_numbers(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {})
    assert value(out, "OFNAME") == "nspec210104_0017.fits"  # facts 2.1: DATAFILE
    assert "INSTRUME" not in out.keywords
    assert value(out, "UT") == "10:20:30.45"
    assert value(out, "FRAMENO") == value(out, "FRAMENUM") == 17
    assert value(out, "ELAPTIME") == 2.95056
    assert value(run(maker, make_file, {"FRAMENUM": 18}), "FRAMENO") == 18
    assert "ELAPTIME" not in run(maker, make_file, {"ELAPTIME": 3.0}).keywords
    bad = run(maker, make_file, {"COADDS": ""})
    assert "ELAPTIME" not in bad.keywords
    assert "SET_ELAPTIME_ERROR" in codes(bad)


IN, OUT = {"CALMPOS": "in"}, {"CALMPOS": "out"}
PIN, HOLE = {"CALPPOS": "in"}, {"CALPPOS": "out"}
NONE = {"OBSTYPE": ""}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        *(
            pytest.param({"OBSTYPE": given}, kind, id=f"3.10-{given}")
            for given, kind in [
                ("object", "object"),
                ("Standard", "object"),
                ("TELLURIC", "object"),
                ("bias", "bias"),
                ("dark", "dark"),
                ("domeflat", "domeflat"),
                ("DomeArc", "domearc"),
                ("arclamp", "arclamp"),
                ("flatlamp", "flatlamp"),
            ]
        ),
        *(
            pytest.param(NONE | IN | HOLE | {lamp: "on"}, "arclamp", id=f"3.10-{lamp}")
            for lamp in ("ARGON", "KRYPTON", "NEON", "XENON")
        ),
        pytest.param(NONE | OUT | HOLE | {"NEON": "On"}, "undefined", id="3.10-arc-mirror-out"),
        pytest.param(NONE | IN | PIN | {"NEON": "on"}, "undefined", id="3.10-arc-pinhole-in"),
        pytest.param(NONE | IN | HOLE | {"FLIMAGIN": "on"}, "flatlamp", id="3.10-flat-imaging"),
        pytest.param(NONE | IN | HOLE | {"FLSPECTR": "on"}, "flatlamp", id="3.10-flat-spectrum"),
        pytest.param(NONE | IN | PIN | {"FLSPECTR": "on"}, "undefined", id="3.10-flat-pinhole"),
        pytest.param(NONE | IN | HOLE, "flatlampoff", id="3.10-flat-off"),
        pytest.param({"OBSTYPE": "what"} | IN | PIN, "flatlampoff", id="3.10-flat-off-pinhole"),
        pytest.param(NONE | OUT | HOLE | {"ITIME": 0}, "bias", id="3.10-no-time"),
        pytest.param(NONE | IN | HOLE | {"ITIME": 0}, "flatlampoff", id="3.10-no-time-mirror"),
        pytest.param(NONE | OUT | HOLE, "object", id="3.10-open"),
        pytest.param(NONE | OUT | HOLE | {"FLSPECTR": "on"}, "object", id="3.10-open-dome-lamp"),
        pytest.param(NONE | OUT | PIN, "undefined", id="3.10-pinhole"),
        pytest.param(NONE, "undefined", id="3.10-nothing"),
        pytest.param(NONE | {"ITIME": "", "CALMPOS": 3}, "undefined", id="3.10-wild"),
        # As the keyword table tells positions and lamps, before 2018.
        pytest.param(
            NONE | {"CALMPOS": 1, "CALPPOS": 0, "NEON": 1}, "arclamp", id="3.10-arc-as-numbers"
        ),
        pytest.param(
            NONE | {"CALMPOS": 1, "CALPPOS": 0, "FLAT": 1}, "flatlamp", id="3.10-flat-as-numbers"
        ),
        pytest.param(NONE | {"CALMPOS": 0, "CALPPOS": 0}, "object", id="3.10-open-as-numbers"),
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in codes(out)) == (kind == "undefined")


SLIT = ("DISPERS", "DISPSCAL", "SLITLEN", "SLITWIDT", "SPECRES")
NULL = "null"


@pytest.mark.parametrize(
    ("header", "name", "expected"),
    [
        ({}, "42x0.144", ("low", 0.129, 42.0, 0.144, 3540)),
        ({}, "42x0.288", ("low", 0.129, 42.0, 0.288, 2850)),
        ({}, "42x0.380", ("low", 0.129, 42.0, 0.38, 2500)),
        ({}, "42x0.432", ("low", 0.129, 42.0, 0.432, 2330)),
        ({}, "42x0.570", ("low", 0.129, 42.0, 0.57, 2000)),
        ({}, "42x0.576", ("low", 0.129, 42.0, 0.576, 1990)),
        ({}, "0.720x42", ("low", 0.129, 42.0, 0.72, 1820)),
        ({}, "0.760x42", ("low", 0.129, 42.0, 0.76, 1800)),
        ({}, "42x0.5", ("low", 0.129, 42.0, 0.5, NULL)),
        ({}, "0.144x12", ("high", 0.096, 12.0, 0.144, 75000)),
        ({}, "0.288x24", ("high", 0.096, 24.0, 0.288, 37500)),
        ({}, "0.432x12", ("high", 0.096, 12.0, 0.432, 25000)),
        ({}, "0.576x12", ("high", 0.096, 12.0, 0.576, 18800)),
        ({}, "0.720x24", ("high", 0.096, 24.0, 0.72, 15000)),
        ({}, "0.380x12", ("high", 0.096, 12.0, 0.38, 28500)),
        ({}, "0x12", ("high", 0.096, 12.0, 0.0, NULL)),
        (AO, "3.96x0.036", ("low", 0.012, 3.96, 0.036, 2500)),
        (AO, "3.96x0.054", ("low", 0.012, 3.96, 0.054, 2000)),
        (AO, "3.96x0.072", ("low", 0.012, 3.96, 0.072, 1800)),
        (AO, "0.0136x1.13", ("high", 0.009, 1.13, 0.0136, 75000)),
        (AO, "0.013x1.13", ("high", 0.009, 1.13, 0.013, 75000)),
        (AO, "0.0271x2.26", ("high", 0.009, 2.26, 0.0271, 37500)),
        (AO, "0.0272x2.26", ("high", 0.009, 2.26, 0.0272, 37500)),
        (AO, "0.027x1.13", ("high", 0.009, 1.13, 0.027, 37500)),
        (AO, "0.0407x1.13", ("high", 0.009, 1.13, 0.0407, 25000)),
        (AO, "0.041x1.13", ("high", 0.009, 1.13, 0.041, 25000)),
        (AO, "0.0543x1.13", ("high", 0.009, 1.13, 0.0543, 18800)),
        (AO, "0.054x1.13", ("high", 0.009, 1.13, 0.054, 18800)),
        (AO, "0.0679x1.13", ("high", 0.009, 1.13, 0.0679, 15000)),
        (AO, "0.068x2.26", ("high", 0.009, 2.26, 0.068, 15000)),
        (AO, "0.0358x1.13", ("high", 0.009, 1.13, 0.0358, 28500)),
        (AO, "0.0538x1.13", ("high", 0.009, 1.13, 0.0538, 19000)),
        (AO, "0.0717x1.13", ("high", 0.009, 1.13, 0.0717, 14300)),
        (AO, "0.1x1.13", ("high", 0.009, 1.13, 0.1, NULL)),
        ({}, "", ("unknown", NULL, NULL, NULL, NULL)),
        ({}, "UNKNOWN", ("high", 0.096, NULL, NULL, NULL)),
        ({}, "1.2.3x12", ("high", 0.096, NULL, NULL, NULL)),
        ({}, "#### Error ###", ("high", 0.096, NULL, NULL, NULL)),
        (SCAM, "0.144x12", (NULL, NULL, NULL, NULL, NULL)),
    ],
    ids=lambda part: f"3.11-{part or 'no-slit'}" if isinstance(part, str) else "",
)
def test_slits(maker: Any, make_file: Any, header: Any, name: str, expected: Any) -> None:
    out = run(maker, make_file, header | {"SLITNAME": name})
    assert tuple(value(out, key) for key in SLIT) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param({"PSCALE": 0.13}, ("no", 0.13, 2.85, 10.8), id="3.11-spec"),
        pytest.param(AO | {"PSCALE": 0.0123}, ("yes", 0.0123, 2.85, 10.8), id="3.11-ao"),
        pytest.param(SCAM | {"PSCALE": 0.156}, ("no", 0.156, 2.85, NULL), id="3.11-scam"),
        pytest.param({"PSCALE": "wild"}, ("no", NULL, 2.85, 10.8), id="3.11-no-scale"),
    ],
)
def test_camera(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    out = run(maker, make_file, header)
    keys = ("ISAO", "SPATSCAL", "DETGAIN", "DETRN")
    assert tuple(value(out, key) for key in keys) == expected


BANDS = [
    ("NIRSPEC-1", 0.947, 1.034, 1.121),
    ("NIRSPEC-2", 1.089, 1.191, 1.293),
    ("NIRSPEC-3", 1.143, 1.259, 1.375),
    ("NIRSPEC-4", 1.241, 1.417, 1.593),
    ("NIRSPEC-5", 1.431, 1.6195, 1.808),
    ("NIRSPEC-6", 1.558, 1.9365, 2.315),
    ("NIRSPEC-7", 1.839, 2.2345, 2.63),
    ("BR-GAMMA", 2.155, 2.165, 2.175),
    ("CO", 2.281, 2.293, 2.305),
    ("K-PRIME", 1.95, 2.1225, 2.295),
    ("KL", 2.134, 3.181, 4.228),
    ("K", 1.996, 2.189, 2.382),
    ("L-PRIME", 3.42, 3.77, 4.12),
    ("M-PRIME", 4.57, 4.69, 4.81),
    ("HEI", 1.0776, 1.083, 1.0884),
    ("PA-BETA", 1.2757, 1.2823, 1.2888),
    ("FEII", 1.639, 1.6465, 1.654),
    ("H2", 2.11, 2.1195, 2.129),
    ("M-WIDE", 4.42, 4.975, 5.53),
    ("NIRSPEC-3-AO", 1.143, 1.259, 1.375),
    ("Kband-new", 1.996, 2.189, 2.382),
    # Names that production never finds (facts 7.3 P9)
    ("Br-Gamma", 2.155, 2.165, 2.175),
    ("Yband-new", 0.95, 1.035, 1.12),
    ("Jband-new", 1.14, 1.245, 1.35),
    ("Hband-new", 1.434, 1.5715, 1.709),
    ("UNKNOWN", NULL, NULL, NULL),
    ("BLANK", NULL, NULL, NULL),
    ("BLANKNIRSPEC-7", NULL, NULL, NULL),
    ("open", NULL, NULL, NULL),
]


@pytest.mark.parametrize("band", BANDS, ids=lambda band: f"3.11-{band[0]}")
def test_wavelengths(maker: Any, make_file: Any, band: Any) -> None:
    out = run(maker, make_file, {"FILTER": band[0]})
    found = tuple(value(out, key) for key in ("WAVEBLUE", "WAVECNTR", "WAVERED"))
    assert found == band[1:]
    assert "FILTER" not in out.keywords
    assert maker.instruments["NIRSPEC"].wave_unit == "micron"


@pytest.mark.parametrize(
    ("first", "second", "name", "centre"),
    [
        pytest.param("NIRSPEC-7", "THIN", "NIRSPEC-7", 2.2345, id="3.11-first"),
        pytest.param("OPEN", "K-PRIME", "K-PRIME", 2.1225, id="3.11-second"),
        pytest.param("Thick", "Yband-new", "Yband-new", 1.035, id="3.11-new"),
        pytest.param("NIRSPEC-7", "", "NIRSPEC-7", 2.2345, id="3.11-one-wheel"),
        pytest.param("NIRSPEC-1", "BLANK", "NIRSPEC-1BLANK", NULL, id="3.11-both"),
        pytest.param("open", "thin", "", NULL, id="3.11-none"),
        pytest.param("", "", "", NULL, id="3.11-no-wheel"),
    ],
)
def test_filter_of_the_wheels(
    maker: Any, make_file: Any, first: str, second: str, name: str, centre: Any
) -> None:
    out = run(maker, make_file, {"SCIFILT1": first, "SCIFILT2": second})
    assert value(out, "FILTER") == name
    assert value(out, "WAVECNTR") == centre


def test_saturated_pixels(maker: Any, make_file: Any) -> None:
    image = np.full((16, 16), 100, ">i4")
    image[0, :3] = 50_000
    image[1, :5] = 49_999
    out = run(maker, make_file, {}, image)
    assert value(out, "NPIXSAT") == 3  # facts 3.2: COADDS x 25000
    assert value(out, "IMAGEMD") == 100.0
    bad = run(maker, make_file, {"COADDS": "?"}, image)
    assert "NPIXSAT" not in bad.keywords
    assert "SET_NPIXSAT_ERROR" in codes(bad)


def test_daytime_calibration_is_open(maker: Any, make_file: Any) -> None:
    """Facts 3.4, 3.5: NIRSPEC has no target info, so these are engineering of 0 months."""
    night = Night(sunset=time(4), sunrise=time(16))
    facts = Facts(prepared_at=datetime(2021, 1, 5, tzinfo=UTC), night=night)
    for kind, at, months in [
        ("arclamp", "02:00:00.00", 0),
        ("arclamp", "10:00:00.00", 18),
        ("object", "02:00:00.00", 18),
    ]:
        raw = make_file(HEADER | {"OBSTYPE": kind, "UTC": at})
        out = maker.run("NIRSPEC", raw, PATH, facts)
        assert out.extra["PROPINT"] == months
        assert value(out, "PROGID") == ("ENG" if months == 0 else "C272")


def test_engineering_observer(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {"OBSERVER": "Keck NIRSPEC"})  # facts 3.4
    assert value(out, "PROGPI") == "nirspeceng"


def test_catalogue(maker: Any, make_file: Any) -> None:
    header = HEADER | {"FILTER": "NIRSPEC-7", "SLITNAME": "0.432x12"}
    frame = maker.frame("NIRSPEC", make_file(header), PATH)
    core = core_metadata(frame, run_rules(frame, frame.instrument.rules), 0)
    expected = {
        "camera": "spec",
        "mode": "high",
        "filter": "NIRSPEC-7",
        "wave_center": 2.2345,
        "wave_unit": "micron",
        "spec_res": 25000.0,
        "exposure": 2.95056,
    }
    assert {key: core[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("koaid", "utc", "name", "kind"),
    [
        ("NS.20160414.02171", "00:36:11.67", "apr14s0001.fits", "arclamp"),
        ("NS.20160414.53947", "14:59:07.59", "apr14s0095.fits", "object"),
    ],
)
def test_real_frame(maker: Any, dump: Any, koaid: str, utc: str, name: str, kind: str) -> None:
    found = dump(f"NIRSPEC/{koaid}.txt", [f"UTC='{utc}'"])
    out = maker.run("NIRSPEC", found.raw, f"/s/sdata603/nspec1/2016apr14/{name}")
    assert value(out, "KOAID").startswith(koaid)
    assert value(out, "KOAIMTYP") == kind == found.archived["IMAGETYP"].strip()
    same = ["ISAO", "DISPERS", "SPECRES", "ELAPTIME", "FRAMENO", "SEMESTER"]
    assert {k: value(out, k) for k in same} == {k: found.archived[k] for k in same}
    assert value(out, "SLITLEN") == 42.0
    assert value(out, "SLITWIDT") == 0.76
    rounded = [round(value(out, k), 2) for k in ("WAVEBLUE", "WAVECNTR", "WAVERED")]
    assert rounded == [0.95, 1.03, 1.12]  # as archived


WILD = st.one_of(
    st.sampled_from(["", "on", "in", "out", "spec", "3x", "x", "1.1x2", "NIRSPEC-7", "null"]),
    st.sampled_from(["#### Error ###", 0, 1, -1, 1e308, 1e-320, True, "0x0", "42x0.76"]),
    st.text("0.x-KLHn", max_size=9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**30), 10**30),
)
KEYS = [
    *("OBSTYPE", "CALMPOS", "CALPPOS", "NEON", "FLAT", "ITIME", "TRUITIME", "COADDS"),
    *("SLITNAME", "PSCALE", "FILTER", "SCIFILT1", "SCIFILT2", "FRAMENUM", "FILENUM"),
]


@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
@given(header=st.dictionaries(st.sampled_from(KEYS), WILD), ao=st.booleans())
def test_no_header_crashes_a_rule(maker: Any, make_file: Any, header: Any, *, ao: bool) -> None:
    out = run(maker, make_file, header | (AO if ao else {}), np.ones((4, 4), ">i2"))
    assert "RULE_CRASHED" not in codes(out)
