"""The rules of MOSFIRE (facts 2.1, 3.2, 3.10, 3.11)."""

import string
from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_preparer.providers import Facts, Night, Proposal

PATH = "/s/sdata1300/mosfire3/2021dec08/m211208_0042.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "MOSFIRE",
    "DATAFILE": "m211208_0042",
    "FRAMENUM": 42,
    "DATE-OBS": "2021-12-08",
    "UTC": "10:20:30.45",
    "TRUITIME": 119.294,
    "COADDS": 3,
    "SATURATE": 33000,
    "PROGNAME": "N094",
}
NIGHT = Night(sunrise=time(16, 30), sunset=time(3, 45), oa="hhershey")
FACTS = Facts(
    prepared_at=datetime(2021, 12, 8, 10, 22, 40, tzinfo=UTC),
    night=NIGHT,
    proposal=Proposal(pi="Bezanson", institution="NASA", title="Galaxies", propint=12),
)
COVER = {"MDCMECH": "Dust Cover", "MDCSTAT": "OK"}
OPEN = COVER | {"MDCNAME": "Open"}
CLOSED = COVER | {"MDCNAME": "Closed"}
SPECTRUM = {"OBSMODE": "K-spectroscopy"}
DARK = {"OBSMODE": "Dark-imaging"}
DOME = {"EL": 67.0, "AZ": 300.0, "DOMEPOSN": 28.0 + 360}
BRIGHT, DIM = 500.02, 500.0


def cases(section: str, table: Any) -> Any:
    return [pytest.param(*row, id=f"facts {section}: {name}") for name, row in table.items()]


def run(maker: Any, make_file: Any, header: Any, image: Any = None, **more: Any) -> Any:
    return maker.run("MOSFIRE", make_file(HEADER | header, image, **more), PATH, FACTS)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


def codes(out: Any) -> set[str]:
    return {finding.code for finding in out.findings}


KINDS: dict[str, tuple[Any, float, str]] = {
    "dark": (DARK, 10, "dark"),
    "dark under an open cover": (DARK | OPEN | {"FLIMAGIN": "on"}, 10, "dark"),
    "no dark with an arc lamp": (DARK | OPEN | {"PWSTATA7": 1}, 10, "object"),
    "neon": (CLOSED | SPECTRUM | {"PWSTATA7": 1}, 10, "arclamp"),
    "argon": (CLOSED | SPECTRUM | {"PWSTATA8": 1}, 10, "arclamp"),
    "no arc lamp is on": (CLOSED | SPECTRUM | {"PWSTATA7": 0, "PWSTATA8": 0}, 10, "undefined"),
    "an arc lamp, but no spectrum": (
        CLOSED | {"OBSMODE": "K-imaging", "PWSTATA8": 1},
        10,
        "undefined",
    ),
    "object": (OPEN | SPECTRUM, 10, "object"),
    "object with an arc lamp": (OPEN | SPECTRUM | {"PWSTATA8": 1}, 10, "object"),
    "FLATSPEC": (OPEN | {"FLATSPEC": 1}, 10, "flatlamp"),
    "FLIMAGIN": (OPEN | {"FLIMAGIN": "on"}, 10, "flatlamp"),
    "FLSPECTR": (OPEN | {"FLSPECTR": "on"} | DOME, 10, "flatlamp"),
    "lamps off": (OPEN | DOME | {"FLATSPEC": 0, "FLIMAGIN": "off"}, BRIGHT, "flatlampoff"),
    "open at the lowest elevation": (OPEN | DOME | {"EL": 66.99}, 10, "flatlampoff"),
    "open at the highest elevation": (OPEN | DOME | {"EL": 67.03}, 10, "flatlampoff"),
    "open and too low": (OPEN | DOME | {"EL": 66.98}, 10, "object"),
    "open and too high": (OPEN | DOME | {"EL": 67.04}, 10, "object"),
    "the elevation of Keck 2": (OPEN | DOME | {"EL": 45.0}, 10, "object"),
    "azimuth of several turns": (OPEN | DOME | {"AZ": 300.0 - 720}, 10, "flatlampoff"),
    "83 degrees off": (OPEN | DOME | {"DOMEPOSN": 383.0}, 10, "flatlampoff"),
    "82 degrees off": (OPEN | DOME | {"DOMEPOSN": 382.0}, 10, "object"),
    "94 degrees off": (OPEN | DOME | {"DOMEPOSN": 394.0}, 10, "object"),
    "no dome position": (OPEN | {"EL": 67.0, "AZ": 87.0}, 10, "object"),
    "mean above 500": (DOME, BRIGHT, "flatlamp"),
    "mean of 500": (DOME, DIM, "flatlampoff"),
    "mean above 500 behind the cover": (CLOSED | DOME, BRIGHT, "flatlamp"),
    "mean below 500 behind the cover": (CLOSED | DOME, 10, "flatlampoff"),
    "mean above 500 elsewhere": (CLOSED, BRIGHT, "undefined"),
    "cover unknown": (OPEN | {"MDCSTAT": "ERROR"}, 10, "undefined"),
    "another mechanism": (OPEN | {"MDCMECH": "Filter 1"}, 10, "undefined"),
    "cover moves": (COVER | {"MDCNAME": "unknown"}, 10, "undefined"),
    "nothing told": ({}, BRIGHT, "undefined"),
    "dead server": (OPEN | DOME | {"EL": "#### Error ###"}, BRIGHT, "object"),
    "pixels that are no number": (DOME, float("nan"), "undefined"),
}


@pytest.mark.parametrize(("header", "mean", "kind"), cases("3.10", KINDS))
def test_image_type(maker: Any, make_file: Any, header: Any, mean: float, kind: str) -> None:
    out = run(maker, make_file, header, np.full((4, 4), mean, ">f4"))
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in codes(out)) == (kind == "undefined")


def test_without_an_image_nothing_tells_the_lamp(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, DOME)
    assert value(out, "KOAIMTYP") == "undefined"
    assert codes(out) >= {"KOAIMTYP_UDF", "SET_IMAGE_STATS_ERROR", "SET_NPIXSAT_ERROR"}


FILTERS = {
    "Y": ("Y", 0.972, 1.048, 1.124),
    "J": ("J", 1.153, 1.253, 1.353),
    "H": ("H", 1.466, 1.637, 1.808),
    "K": ("K", 1.92, 2.162, 2.403),
    "Ks": ("Ks", 1.99, 2.147, 2.304),
    "J2": ("J2", 1.117, 1.181, 1.246),
    "J3": ("J3", 1.227, 1.288, 1.349),
    "H1": ("H1", 1.474, 1.556, 1.639),
    "H2": ("H2", 1.626, 1.709, 1.792),
    "dark": ("Dark", "null", "null", "null"),
    "unheard of": ("K3", "null", "null", "null"),
    "none": ("", "null", "null", "null"),
}


@pytest.mark.parametrize(("name", "blue", "centre", "red"), cases("3.11", FILTERS))
def test_wavelengths(
    maker: Any, make_file: Any, name: str, blue: Any, centre: Any, red: Any
) -> None:
    out = run(maker, make_file, {"FILTER": name})
    assert [value(out, f"WAVE{end}") for end in ("BLUE", "CNTR", "RED")] == [blue, centre, red]
    assert maker.instruments["MOSFIRE"].wave_unit == "micron"
    assert not {"fwhm", "FWHM"} & out.keywords.keys()


def test_identity(maker: Any, make_file: Any) -> None:  # facts 2.1, 2.2, 3.3
    out = run(maker, make_file, {})
    assert value(out, "KOAID") == "MF.20211208.37230.45.fits"
    assert value(out, "OFNAME") == "m211208_0042.fits"
    assert value(out, "UT") == "10:20:30.45"
    assert value(out, "FRAMENO") == 42
    assert value(out, "SEMESTER") == "2021B"
    assert value(out, "PROGID") == "N094"
    assert out.extra["PROPINT"] == 12
    assert value(out, "OA") == "hhershey"
    assert value(out, "DATLEVEL") == 0
    assert not {"UTC", "DATE-OBS", "INSTRUME"} & out.keywords.keys()


def test_number_from_the_name(maker: Any, make_file: Any) -> None:  # facts 3.3
    out = run(maker, make_file, {"FRAMENUM": "", "DATAFILE": "m211208_0042"})
    assert value(out, "FRAMENO") == value(out, "FRAMENUM") == 42


@pytest.mark.parametrize(
    ("header", "elapsed", "code"),
    cases(
        "3.11",
        {
            "computed": ({}, 357.882, None),
            "given": ({"ELAPTIME": 7.5}, None, None),
            "no COADDS": ({"COADDS": ""}, None, "SET_ELAPTIME_ERROR"),
            "wild TRUITIME": ({"TRUITIME": "####"}, None, "SET_ELAPTIME_ERROR"),
        },
    ),
)
def test_elapsed_time(
    maker: Any, make_file: Any, header: Any, elapsed: float | None, code: str | None
) -> None:
    out = run(maker, make_file, header)
    assert out.keywords.get("ELAPTIME", (None,))[0] == elapsed
    assert ("SET_ELAPTIME_ERROR" in codes(out)) == bool(code)


def test_saturated_pixels(maker: Any, make_file: Any) -> None:  # facts 3.2: SATURATE alone
    image = np.full((8, 8), 32999, ">i4")
    image[0, :3] = 33000
    out = run(maker, make_file, {}, image)
    assert value(out, "NPIXSAT") == 3
    assert value(out, "IMAGEMN") == 32999.05
    assert value(out, "IMAGEMD") == 32999.0


@pytest.mark.parametrize(
    ("header", "utc", "extensions", "owner"),
    cases(
        "3.5",
        {
            "a dark by day is open": (DARK, "20:00:00.00", [], ("ENG", 0)),
            "with a mask table it is not": (DARK, "20:00:00.00", ["BINTABLE"], ("N094", 12)),
            "an image extension tells nothing": (DARK, "20:00:00.00", ["IMAGE"], ("ENG", 0)),
            "a dark by night": (DARK, "10:00:00.00", [], ("N094", 12)),
            "7.3 P8: science in daylight": (OPEN, "17:00:00.00", [], ("N094", 12)),
            "7.3 P8: a flat by day, told by its mean": (DOME, "20:00:00.00", [], ("ENG", 0)),
        },
    ),
)
def test_proprietary_period(
    maker: Any, make_file: Any, header: Any, utc: str, extensions: Any, owner: Any
) -> None:
    image = np.full((4, 4), 900, ">i2")
    out = run(maker, make_file, header | {"UTC": utc}, image, extensions=extensions)
    assert (value(out, "PROGID"), out.extra["PROPINT"]) == owner


def test_engineering_account(maker: Any, make_file: Any) -> None:  # facts 3.4
    out = run(maker, make_file, {"OUTDIR": "/s/sdata1300/moseng/2021dec08"})
    assert value(out, "PROGID") == "ENG"
    assert value(out, "PROGPI") == "mosfireeng"


def test_real_header(maker: Any, dump: Any) -> None:
    found = dump("MOSFIRE/argon_K_msdc.txt", ["INSTRUME='MOSFIRE'", "UTC='11:15:03.53'"])
    out = maker.run("MOSFIRE", found.raw, "/s/sdata1300/mosfire1/m100716_0095.fits")
    assert value(out, "KOAID") == "MF.20100716.40503.53.fits"
    assert value(out, "OFNAME") == "m100716_0095.fits"
    assert value(out, "FRAMENO") == 95
    assert not {f.code for f in out.findings} & {"RULE_CRASHED", "MISMATCHED_FILENAME"}


JUNK = st.one_of(
    st.text(string.printable[:95], max_size=30),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.sampled_from(["#### Error ###", "NaN", "null", "on", "Dust Cover", "Ks"]),
)
KEYS = ["EL", "AZ", "DOMEPOSN", "OBSMODE", "MDCMECH", "MDCSTAT", "MDCNAME", "FLATSPEC"]
KEYS += ["FLIMAGIN", "PWSTATA7", "FILTER", "TRUITIME", "COADDS", "SATURATE", "FRAMENUM"]


@settings(max_examples=100, deadline=None)
@given(header=st.dictionaries(st.sampled_from(KEYS), JUNK))
def test_no_rule_crashes(maker: Any, make_file: Any, header: Any) -> None:
    out = run(maker, make_file, header, np.zeros((2, 2), ">i2"))
    assert "RULE_CRASHED" not in codes(out)
    assert value(out, "KOAIMTYP")
