"""The rules of OSIRIS (facts 2.1, 3.2, 3.10, 3.11)."""

import string
from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_preparer.providers import Facts, Night, Proposal
from koa_preparer.rules import core_metadata, run_rules

HEADER: dict[str, Any] = {
    "INSTR": "spec",
    "DATAFILE": "s210628_a038004",
    "DATE-OBS": "2021-06-28",
    "UTC": "09:10:11.12",
    "FRAMENUM": 4,
    "TRUITIME": 599.1234567,
    "COADDS": 1,
    "SATURATE": 33000,
    "SSCALE": 0.05,
    "SFILTER": "Kbb",
    "PROGNAME": "C283",
}
FACTS = Facts(
    prepared_at=datetime(2021, 6, 28, 9, 30, tzinfo=UTC),
    night=Night(sunrise=time(15, 40), sunset=time(5, 10), oa="jpelletier"),
    proposal=Proposal(pi="Larkin", institution="UC", title="Galaxies", propint=12),
)
IMAG = {"INSTR": "imag", "IFILTER": "Kp", "DATAFILE": "i210628_a038004"}
MOVING = {"AXESTAT": "tracking", "DOMESTAT": "slewing"}
STOPPED = {"AXESTAT": "not controlling", "DOMESTAT": "tracking"}
DOME = {"EL": 67.0, "AZ": 100.0, "DOMEPOSN": 12.0}
ON = {"FLAMP1": "on", "FLAMP2": "off"}
UNIT = {"PCUX": 44.5, "PCUY": 192.6, "PCUZ": 22.0}
AWAY = {"PCUX": 0.0, "PCUY": 0.0, "PCUZ": 0.0}


def cases(section: str, table: Any) -> Any:
    return [pytest.param(*row, id=f"facts {section}: {name}") for name, row in table.items()]


def path_of(header: Any) -> str:
    return f"/s/sdata1100/osiris3/2021jun28/SPEC/raw/{header['DATAFILE']}.fits"


def run(maker: Any, make_file: Any, header: Any, image: Any = None) -> Any:
    header = HEADER | header
    return maker.run("OSIRIS", make_file(header, image), path_of(header), FACTS)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


def codes(out: Any) -> set[str]:
    return {finding.code for finding in out.findings}


KINDS = {
    "calibration unit": (UNIT | MOVING, "calib"),
    "calibration unit, positions as text": ({k: str(v) for k, v in UNIT.items()}, "calib"),
    "calibration unit with a dark": (UNIT | {"SFILTER": "Drk"}, "calib"),
    "calibration unit before October 2023": (
        MOVING | {"PCSFX": 1.5, "PCSFY": -2.0, "PCSFLZ": 3.0},
        "calib",
    ),
    "old names, one is 0": (MOVING | {"PCSFX": 1.5, "PCSFY": 0, "PCSFLZ": 3.0}, "object"),
    "new names go first": (MOVING | AWAY | {"PCSFX": 1.5, "PCSFY": 1, "PCSFLZ": 3}, "object"),
    "one position is 0": (UNIT | MOVING | {"PCUZ": 0}, "object"),
    "one position is no number": (UNIT | MOVING | {"PCUX": "?"}, "object"),
    "spectrograph, dark": ({"SFILTER": "Drk"} | MOVING, "dark"),
    "spectrograph, the imager's filter is dark": ({"IFILTER": "Drk"} | MOVING, "object"),
    "imager, dark": (IMAG | {"IFILTER": "Drk"}, "dark"),
    "imager, the spectrograph's filter is dark": (IMAG | {"SFILTER": "Drk"}, "object"),
    "spectrograph": (MOVING | AWAY, "object"),
    "spectrograph, both track": ({"AXESTAT": "tracking", "DOMESTAT": "tracking"}, "object"),
    "spectrograph stands": (STOPPED, "undefined"),
    "spectrograph stands at the dome": (STOPPED | DOME | ON, "undefined"),
    "spectrograph, nothing told": ({}, "undefined"),
    "rectification matrix": ({"DATAFILE": "s210628_c038004"} | MOVING, "calib"),
    "imager, a name with c": (IMAG | MOVING | {"DATAFILE": "i210628_c038004"}, "object"),
    "imager": (IMAG | MOVING | AWAY, "object"),
    "imager stands": (IMAG | STOPPED, "object"),
    "imager, lamp 1": (IMAG | ON | DOME, "flatlamp"),
    "imager, lamp 2": (IMAG | DOME | MOVING | {"FLAMP2": "ON"}, "flatlamp"),
    "imager, lamp on elsewhere": (IMAG | ON | MOVING, "undefined"),
    "imager, lamps off": (IMAG | DOME | STOPPED | {"FLAMP1": "off"}, "flatlampoff"),
    "imager tracks through the dome's place": (IMAG | DOME | MOVING, "object"),
    "imager, lowest elevation": (IMAG | ON | DOME | {"EL": 66.99}, "flatlamp"),
    "imager, highest elevation": (IMAG | ON | DOME | {"EL": 67.03}, "flatlamp"),
    "imager, too low": (IMAG | ON | DOME | {"EL": 66.98}, "undefined"),
    "imager, the elevation of Keck 2": (IMAG | ON | DOME | {"EL": 45.0}, "undefined"),
    "imager, azimuth wraps": (IMAG | ON | DOME | {"AZ": -260.0}, "flatlamp"),
    "imager, dome turned off": (IMAG | ON | DOME | {"DOMEPOSN": 20.0}, "undefined"),
    "imager, no elevation": (IMAG | ON | DOME | {"EL": "#### Error ###"}, "undefined"),
}


@pytest.mark.parametrize(("header", "kind"), cases("3.10", KINDS))
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in codes(out)) == (kind == "undefined")


@pytest.mark.parametrize(
    ("header", "koaid", "ofname", "name"),
    cases(
        "2.1",
        {
            "spec": ({}, "OS.20210628.33011.12", "s210628_a038004", "Kbb"),
            "imag": (IMAG, "OI.20210628.33011.12", "i210628_a038004", "Kp"),
            "its own extension": (
                {"DATAFILE": "s210628_a038004.fits"},
                "OS.20210628.33011.12",
                "s210628_a038004",
                "Kbb",
            ),
        },
    ),
)
def test_identity(
    maker: Any, make_file: Any, header: Any, koaid: str, ofname: str, name: str
) -> None:
    header = HEADER | header
    path = f"/s/sdata1100/osiris3/2021jun28/{ofname}.fits"
    out = maker.run("OSIRIS", make_file(header), path, FACTS)
    assert value(out, "KOAID") == f"{koaid}.fits"
    assert value(out, "OFNAME") == f"{ofname}.fits"
    assert value(out, "INSTRUME") == "OSIRIS"
    assert value(out, "FILTER") == name
    assert value(out, "UT") == "09:10:11.12"
    assert value(out, "FRAMENO") == 4
    assert value(out, "ELAPTIME") == 599.12346
    assert value(out, "SEMESTER") == "2021A"
    assert "MISMATCHED_FILENAME" not in codes(out)


def test_instrument_is_forced(maker: Any, make_file: Any) -> None:  # facts 2.1
    assert value(run(maker, make_file, {"INSTRUME": "NIRC2"}), "INSTRUME") == "OSIRIS"
    assert "INSTRUME" not in run(maker, make_file, {"INSTRUME": "OSIRIS"}).keywords


def test_pipeline_products_are_refused(maker: Any, make_file: Any) -> None:  # facts 2.6
    path = "/s/sdata1100/osiris3/2021jun28/SPEC/ORP/s210628_a038004.fits"
    found = maker.run("OSIRIS", make_file(HEADER), path, FACTS).findings
    assert ("FILEPATH_REJECT", "invalid") in [(f.code, f.severity) for f in found]


FILTERS = {
    "Zbb": (999, 1087, 1176),
    "Jbb": (1180, 1310, 1440),
    "Hbb": (1473, 1638, 1803),
    "Kbb": (1965, 2173, 2381),
    "Kcb": (1965, 2173, 2381),
    "Zn3": (1061, 1087, 1113),
    "Zn4": (1103, 1130, 1158),
    "Jn1": (1174, 1203, 1232),
    "Jn2": (1228, 1258, 1289),
    "Jn3": (1275, 1307, 1339),
    "Jn4": (1323, 1356, 1389),
    "Hn1": (1466, 1503, 1541),
    "Hn2": (1532, 1571, 1610),
    "Hn3": (1594, 1635, 1676),
    "Hn4": (1652, 1694, 1737),
    "Hn5": (1721, 1764, 1808),
    "Kn1": (1955, 2005, 2055),
    "Kn2": (2036, 2088, 2141),
    "Kn3": (2121, 2175, 2229),
    "Kn4": (2208, 2264, 2320),
    "Kn5": (2292, 2350, 2408),
    "Kc3": (2121, 2175, 2229),
    "Kc4": (2208, 2264, 2320),
    "Kc5": (2292, 2350, 2408),
    "Y": (977, 1025, 1073),
    "J": (1168, 1243, 1318),
    "Kp": (1961, 2114, 2268),
    "PaGamma": (1087, 1096, 1105),
    "FeII": (1634, 1647, 1661),
    "HCont": (1571, 1583, 1596),
    "BrGamma": (2155, 2169, 2184),
    "KCont": (2259, 2270, 2281),
    "HeI_B": (2046, 2060, 2075),
    "Drk": ("null", "null", "null"),
    "unheard of": ("null", "null", "null"),
    "": ("null", "null", "null"),
}
WAVES = ("WAVEBLUE", "WAVECNTR", "WAVERED")


@pytest.mark.parametrize(
    ("name", "waves"), cases("3.11", {name: (name, waves) for name, waves in FILTERS.items()})
)
def test_wavelengths(maker: Any, make_file: Any, name: str, waves: Any) -> None:
    for header in ({"SFILTER": name}, IMAG | {"IFILTER": name}):
        out = run(maker, make_file, header)
        assert tuple(value(out, key) for key in WAVES) == waves
        assert value(out, "FILTER") == (name or "null")
    assert maker.instruments["OSIRIS"].wave_unit == "nm"


SKY = IMAG | {"ROTMODE": "position angle", "RA": 100.0, "DEC": 60.0, "ROTPOSN": -42.0}
OSPEC = SKY | {"PONAME": "H-ospec"}
OSIMG = SKY | {"PONAME": "K-osimg"}
POINTS = {
    "spectrograph's origin": (OSPEC, 100.00857, 59.99608, 48.0),
    "spectrograph's origin, turned by 90": (
        OSPEC | {"ROTPOSN": -132.0},
        100.00784,
        60.00428,
        318.0,
    ),
    "imager's origin": (OSIMG | {"PONAME": "OSIMG"}, 100.0, 60.0, 48.0),
    "two turns": (OSIMG | {"ROTPOSN": -500.0}, 100.0, 60.0, 310.0),
    "no turn is taken off": (OSIMG | {"ROTPOSN": 300.0}, 100.0, 60.0, 390.0),
    "sexagesimal": (OSIMG | {"RA": "06:40:00.0", "DEC": "-00:30:00.0"}, 100.0, -0.5, 48.0),
}


@pytest.mark.parametrize(("header", "ra", "dec", "turn"), cases("3.11", POINTS))
def test_world_coordinates(
    maker: Any, make_file: Any, header: Any, ra: float, dec: float, turn: float
) -> None:
    out = run(maker, make_file, header)
    expected = {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "RADECSYS": "FK5",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": 512.5,
        "CRPIX2": 512.5,
        "CDELT1": -0.000002777778,
        "CDELT2": 0.0000027777778,
        "CROTA2": turn,
        "WAT0_001": "system=image",
        "WAT1_001": "wtype=tan axtype=ra",
        "WAT2_001": "wtype=tan axtype=dec",
        "WCSDIM": 2,
        "LTM1_1": 1.0,
        "LTM2_2": 1.0,
    }
    assert {key: value(out, key) for key in expected} == expected
    assert "SET_WCS_ERROR" not in codes(out)


NUMBERS = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CDELT1", "CDELT2", "CROTA2")
TYPES = ("CTYPE1", "CTYPE2", "RADECSYS", "WAT0_001", "WAT1_001", "WAT2_001", "WCSDIM", "LTM1_1")


@pytest.mark.parametrize(
    ("header", "positioned"),
    cases(
        "3.11",
        {
            "another pointing origin": (OSIMG | {"PONAME": "REF"}, True),
            "no pointing origin": (SKY, True),
            "no rotator": (OSIMG | {"ROTPOSN": ""}, True),
            "wild RA": (OSIMG | {"RA": 1e30}, True),
            "no declination": (OSPEC | {"DEC": "#### Error ###"}, True),
            "vertical angle": (OSIMG | {"ROTMODE": "vertical angle"}, False),
            "no rotator mode": (OSIMG | {"ROTMODE": ""}, False),
            "spectrograph": (OSIMG | {"INSTR": "spec"}, False),
        },
    ),
)
def test_unknown_world_coordinates(
    maker: Any, make_file: Any, header: Any, *, positioned: bool
) -> None:
    out = run(maker, make_file, header)
    assert {value(out, key) for key in NUMBERS} == {"null"}
    assert ("SET_WCS_ERROR" in codes(out)) == positioned
    assert all((value(out, key) != "null") == positioned for key in TYPES)


def test_pixels_that_are_too_bright(maker: Any, make_file: Any) -> None:  # facts 3.2, 3.11
    image = np.full((8, 8), 10, ">i4")
    image[2, :2] = 52799
    image[0, :5] = 52800  # 0.8 x 33000 x 2
    image[1, :3] = 66000
    out = run(maker, make_file, {"COADDS": 2}, image)
    assert value(out, "NPIXSAT") == 3
    assert value(out, "NLINEAR") == 8
    assert value(out, "NONLIN") == 52800
    assert value(out, "IMAGEMD") == 10.0


def test_no_level_no_count(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {"SATURATE": "?"}, np.ones((4, 4), ">i2"))
    assert not {"NPIXSAT", "NLINEAR", "NONLIN"} & out.keywords.keys()
    assert codes(out) >= {"SET_NPIXSAT_ERROR", "SET_NLINEAR_ERROR"}


@pytest.mark.parametrize(
    ("header", "scale"),
    cases(
        "3.11",
        {
            "imager": (IMAG, 0.02),
            "spectrograph": ({"SSCALE": 0.035}, 0.035),
            "spectrograph, none": ({"SSCALE": ""}, "null"),
            "spectrograph, wild": ({"SSCALE": "in motion"}, "null"),
        },
    ),
)
def test_scale(maker: Any, make_file: Any, header: Any, scale: Any) -> None:
    assert value(run(maker, make_file, header), "SCALE") == scale


@pytest.mark.parametrize("keyword", ["SHTRANG", "SHTRRANG", "SHTRACT", "IHTRACT"])
@pytest.mark.parametrize(
    ("given", "written"),
    cases(
        "3.2 check_nonint_vals",
        {
            "below 1": (0.25, 0),
            "just below 1": (0.9999999, 0),
            "negative": (-3, 0),
            "text": ("0.5", 0),
            "1": (1, None),
            "above 1": (2.5, None),
            "0": (0, None),
            "0.0": (0.0, None),
            "no number": ("#### Error ###", None),
            "none": ("", None),
        },
    ),
)
def test_decimals_become_0(
    maker: Any, make_file: Any, keyword: str, given: Any, written: Any
) -> None:
    out = run(maker, make_file, {keyword: given})
    assert out.keywords.get(keyword, (None,))[0] == written


@pytest.mark.parametrize(
    ("header", "nulled"),
    cases(
        "3.11",
        {
            "wild": (UNIT | {"RA": 720.5}, True),
            "wild and negative": (UNIT | {"RA": -1e9}, True),
            "wild text": (UNIT | {"RA": "99999.0"}, True),
            "720": (UNIT | {"RA": 720.0}, False),
            "sexagesimal": (UNIT | {"RA": "06:40:00.0"}, False),
            "none": (UNIT | {"RA": ""}, False),
            "no calibration": (MOVING | {"RA": 1e9}, False),
        },
    ),
)
def test_wild_ra_of_calibrations(maker: Any, make_file: Any, header: Any, *, nulled: bool) -> None:
    out = run(maker, make_file, header)
    assert out.keywords.get("RA", (None,))[0] == ("null" if nulled else None)


@pytest.mark.parametrize(
    ("header", "utc", "owner"),
    cases(
        "3.5",
        {
            "a dark by day": ({"SFILTER": "Drk"}, "20:00:00.00", ("ENG", 0)),
            "a dark by night": ({"SFILTER": "Drk"}, "09:00:00.00", ("C283", 12)),
            "science in daylight": (MOVING, "20:00:00.00", ("C283", 12)),
            "engineering": (
                MOVING | {"OUTDIR": "/s/sdata1100/osiriseng/2021jun28"},
                "09:00:00.00",
                ("ENG", 18),
            ),
            "osrseng is none since 2024": (
                MOVING | {"OUTDIR": "/s/sdata1100/osrseng/2021jun28"},
                "09:00:00.00",
                ("C283", 12),
            ),
        },
    ),
)
def test_program(maker: Any, make_file: Any, header: Any, utc: str, owner: Any) -> None:
    out = run(maker, make_file, header | {"UTC": utc})
    assert (value(out, "PROGID"), out.extra["PROPINT"]) == owner


def test_catalogue(maker: Any, make_file: Any) -> None:
    header = HEADER | IMAG | MOVING | {"RA": -20.0, "DEC": 0.0387}
    frame = maker.frame("OSIRIS", make_file(header), path_of(header), FACTS)
    core = core_metadata(frame, run_rules(frame, frame.instrument.rules), 8_400_960)
    expected = {
        "ra": None,  # not from 0 to 360, and still no reason to refuse the frame
        "dec": 0.0387,
        "camera": "imag",
        "mode": "imag",
        "filter": "Kp",
        "wave_blue": 1961.0,
        "wave_center": 2114.0,
        "wave_red": 2268.0,
        "wave_unit": "nm",
        "exposure": 599.12346,
    }
    assert {key: core[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "datafile", "koaid", "fitted", "centre"),
    [
        (
            "OI.20190528.72576_dark_row.txt",
            "i190528_a001002",
            "OI.20190528.72576.50",
            "null",
            "null",
        ),
        (
            "OS.20190528.04933_object_row.txt",
            "s190528_a001002",
            "OS.20190528.04933.22",
            "Kbb",
            2173,
        ),
    ],
)
def test_real_rows(
    maker: Any, dump: Any, name: str, datafile: str, koaid: str, fitted: str, centre: Any
) -> None:
    found = dump(f"OSIRIS/{name}", [f"DATAFILE='{datafile}'"])
    out = maker.run("OSIRIS", found.raw, f"/s/sdata1100/osiris1/{datafile}.fits")
    assert value(out, "KOAID") == f"{koaid}.fits"
    assert value(out, "FRAMENO") == 2
    assert value(out, "FILTER") == fitted
    assert value(out, "WAVECNTR") == centre
    assert not {f.code for f in out.findings} & {"RULE_CRASHED", "MISMATCHED_FILENAME"}


JUNK = st.one_of(
    st.text(string.printable[:95], max_size=30),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.sampled_from(["#### Error ###", "NaN", "null", "position angle", "H-ospec", "on"]),
)
KEYS = ["PCUX", "PCUY", "PCUZ", "PCSFX", "IFILTER", "SFILTER", "FLAMP1", "EL", "AZ", "DOMEPOSN"]
KEYS += ["AXESTAT", "ROTMODE", "ROTPOSN", "PONAME", "RA", "DEC", "TRUITIME", "COADDS"]
KEYS += ["SATURATE", "SSCALE", "SHTRANG", "SHTRACT", "IHTRACT", "FRAMENUM"]


@settings(max_examples=100, deadline=None)
@given(camera=st.sampled_from([{}, OSPEC]), header=st.dictionaries(st.sampled_from(KEYS), JUNK))
def test_no_rule_crashes(maker: Any, make_file: Any, camera: Any, header: Any) -> None:
    out = run(maker, make_file, camera | header, np.zeros((2, 2), ">i2"))
    assert "RULE_CRASHED" not in codes(out)
    assert value(out, "KOAIMTYP")
