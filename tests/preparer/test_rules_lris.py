"""The rules of LRIS (facts 2.1-2.3, 2.6, 3.2, 3.5, 3.10, 3.11, 7.3 P9)."""

from datetime import UTC, datetime, time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koa_preparer.providers import Facts, Night
from koa_preparer.rules import core_metadata, run_rules
from koa_shared.errors import FrameFault

PATH = "/s/sdata243/lris9/2022oct14/r221014_0009.fits"
BASE: dict[str, Any] = {
    "OUTFILE": "r221014_",
    "FRAMENO": 9,
    "DATE-OBS": "2022-10-14",
    "UTC": "10:20:30.45",
    "ELAPTIME": 60,
    "PROGNAME": "C272",
}
RED: dict[str, Any] = {"INSTRUME": "LRIS", "GRANAME": "600/7500", "WAVELEN": 7000.0}
BLUE: dict[str, Any] = {"INSTRUME": "LRISBLUE", "GRISNAME": "600/4000"}
NULL = "null"


def run(maker: Any, make_file: Any, header: Any, extensions: Any = ()) -> Any:
    return maker.run("LRIS", make_file(BASE | header, None, extensions), PATH)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


def codes(out: Any) -> set[str]:
    return {finding.code for finding in out.findings}


def found(out: Any, *keywords: str) -> tuple[Any, ...]:
    return tuple(out.keywords.get(key, (None,))[0] for key in keywords)


@pytest.mark.parametrize(
    ("header", "koaid"),
    [
        pytest.param({"INSTRUME": "LRIS"}, "LR.20221014.37230.45", id="2.1-red"),
        pytest.param({"INSTRUME": "LRISp"}, "LR.20221014.37230.45", id="2.1-red-pol"),
        pytest.param({"INSTRUME": "LRISpRED"}, "LR.20221014.37230.45", id="2.1-pol-red"),
        pytest.param({"INSTRUME": "LRISBLUE"}, "LB.20221014.37230.45", id="2.1-blue"),
        pytest.param({"INSTRUME": "LRISpBLUE"}, "LB.20221014.37230.45", id="2.1-pol-blue"),
        pytest.param(RED | {"UTC": "10:20:30.05"}, "LR.20221014.37230.50", id="2.2-fraction"),
        pytest.param(RED | {"UTC": "10:20:30"}, "LR.20221014.37230.00", id="2.3-no-fraction"),
        pytest.param(
            RED | {"DATE-OBS": "2022-10-14T10:20:30"}, "LR.20221014.37230.45", id="2.3-long"
        ),
        pytest.param(RED | {"UTC": "24:00:61"}, "LR.20221014.18367.00", id="2.3-file-time"),
    ],
)
def test_koaid(maker: Any, make_file: Any, header: Any, koaid: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAID") == f"{koaid}.fits"
    assert "INSTRUME" not in out.keywords


@pytest.mark.parametrize("instrume", ["", "LRISADC", "LRISRED", "HIRES"])
def test_other_instruments(maker: Any, make_file: Any, instrume: str) -> None:  # facts 2.1
    with pytest.raises(FrameFault) as raised:
        run(maker, make_file, {"INSTRUME": instrume})
    assert raised.value.code == "SET_INSTR_ERROR"


@pytest.mark.parametrize(
    ("header", "path", "code"),
    [
        pytest.param({"OUTFILE": ""}, PATH, "BAD_OFNAME", id="2.6-no-name"),
        pytest.param({"FRAMENO": 10}, PATH, "MISMATCHED_FILENAME", id="2.6-other-number"),
        pytest.param({}, PATH.replace("lris9", "mira"), "FILEPATH_REJECT", id="2.6-mira"),
    ],
)
def test_invalid(maker: Any, make_file: Any, header: Any, path: str, code: str) -> None:
    out = maker.run("LRIS", make_file(BASE | RED | header), path)
    assert code in {f.code for f in out.findings if f.severity == "invalid"}


def test_names_and_numbers(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, RED)
    assert value(out, "OFNAME") == "r221014_0009.fits"  # facts 2.1
    assert value(out, "UT") == "10:20:30.45"
    assert value(out, "SIG2NOIS") == NULL  # facts 3.11
    assert not {"FRAMENO", "ELAPTIME"} & out.keywords.keys()
    given = run(maker, make_file, RED | {"OFNAME": "r221014_0009.fits", "OUTFILE": "x"})
    assert value(given, "OFNAME") == "r221014_0009.fits"
    assert not {f.code for f in given.findings if f.severity == "invalid"}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param({"XPOSURE": 1.6, "TTIME": 5}, 2, id="3.11-xposure"),
        pytest.param({"TTIME": 5}, 5, id="3.11-ttime"),
        pytest.param({"XPOSURE": "wild"}, None, id="3.11-none"),
    ],
)
def test_exposure(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    out = run(maker, make_file, RED | {"ELAPTIME": ""} | header)
    assert found(out, "ELAPTIME") == (expected,)
    assert ("SET_ELAPTIME_ERROR" in codes(out)) == (expected is None)


OPEN: dict[str, Any] = {"TRAPDOOR": "open"}
CLOSED: dict[str, Any] = {"TRAPDOOR": "closed"}
AUTO: dict[str, Any] = {"AUTOSHUT": True}
EACH = ("NEON", "ARGON", "CADMIUM", "ZINC", "KRYPTON", "XENON", "FEARGON", "DEUTERI")
OFF: dict[str, Any] = {**CLOSED, **dict.fromkeys([*EACH, "HALOGEN", "MERCURY"], "off")}
STILL = {"AXESTAT": "in position"}
ALL_OFF, HALOGEN, NEON = "0,0,0,0,0,0", "0,0,0,0,0,1", "0,1,0,0,0,0"
MIRROR, CLEAR = {"GRANAME": "mirror"}, {"GRISNAME": "clear"}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        pytest.param(RED | {"SLITNAME": "GOH_LRIS"}, "focus", id="3.10-focus-slit"),
        pytest.param(RED | {"OUTFILE": "rfoc"}, "focus", id="3.10-focus-red"),
        pytest.param(BLUE | {"OUTFILE": "bfoc"}, "focus", id="3.10-focus-blue"),
        pytest.param(RED | {"ELAPTIME": 0} | OPEN | AUTO, "bias", id="3.10-bias"),
        pytest.param(
            RED | {"ELAPTIME": 0, "SLITNAME": "GOH_LRIS"}, "focus", id="3.10-focus-of-no-time"
        ),
        *(
            pytest.param(RED | OPEN | AUTO | {lamp: "on"}, "flatlamp", id=f"3.10-{lamp}")
            for lamp in ("FLIMAGIN", "FLSPECTR", "FLAMP1", "FLAMP2")
        ),
        *(
            pytest.param(BLUE | OPEN | AUTO | {"CALNAME": name}, "polcal", id=f"3.10-{name}")
            for name in ("ir", "hnpb", "uv")
        ),
        pytest.param(BLUE | OPEN | {"CALNAME": "ir"}, "undefined", id="3.10-polcal-no-shutter"),
        pytest.param(BLUE | OPEN | AUTO | {"CALNAME": "clear"}, "object", id="3.10-shutter"),
        pytest.param(RED | OPEN | {"AXESTAT": "Tracking"}, "object", id="3.10-tracking"),
        pytest.param(RED | OPEN | {"AXESTAT": "slewing"}, "object", id="3.10-slewing"),
        *(
            pytest.param(RED | OPEN | STILL | {"OBJECT": name}, "object", id=f"3.10-{name}")
            for name in ("twiflat", "Twi Flats", "twilight_flat", "SKY-FLAT", "sky flats ")
        ),
        pytest.param(RED | OPEN | STILL | {"OBJECT": "M31"}, "undefined", id="3.10-still"),
        pytest.param(RED | OPEN | STILL | {"OBJECT": "flat"}, "undefined", id="3.10-flat"),
        pytest.param(RED | OPEN, "undefined", id="3.10-open"),
        pytest.param(RED | OPEN | {"AUTOSHUT": False}, "undefined", id="3.10-no-shutter"),
        pytest.param(RED | {"TRAPDOOR": ""}, "undefined", id="3.10-no-door"),
        pytest.param(RED | AUTO | {"TRAPDOOR": "moving"}, "undefined", id="3.10-half-open"),
        pytest.param(RED | CLOSED | {"LAMPS": HALOGEN}, "flatlamp", id="3.10-lamps-halogen"),
        pytest.param(RED | CLOSED | {"LAMPS": NEON}, "arclamp", id="3.10-lamps-red"),
        pytest.param(RED | CLOSED | {"LAMPS": NEON} | MIRROR, "undefined", id="3.10-lamps-mirror"),
        # Production calls a method that is not there (facts 7.3 P9).
        pytest.param(BLUE | CLOSED | {"LAMPS": NEON}, "arclamp", id="7.3-lamps-blue"),
        pytest.param(BLUE | CLOSED | {"LAMPS": NEON} | CLEAR, "undefined", id="7.3-lamps-clear"),
        pytest.param(BLUE | CLOSED | {"LAMPS": ALL_OFF}, "dark", id="3.10-lamps-off"),
        pytest.param(BLUE | CLOSED | {"LAMPS": "0,0"}, "undefined", id="3.10-lamps-wild"),
        pytest.param(BLUE | OFF | {"LAMPS": NEON}, "arclamp", id="3.10-lamps-count"),
        pytest.param(RED | OFF | {"HALOGEN": "on", "NEON": "on"}, "flatlamp", id="3.10-halogen"),
        pytest.param(RED | OFF | {"HALOGEN": "on", "LAMPS": "0"}, "flatlamp", id="3.10-lamps-0"),
        *(
            pytest.param(side | OFF | {lamp: "on"}, "arclamp", id=f"3.10-{lamp}-{n}")
            for n, side in enumerate((RED, BLUE))
            for lamp in (*EACH, "MERCURY")
        ),
        pytest.param(RED | OFF | {"NEON": "on"} | MIRROR, "undefined", id="3.10-arc-mirror"),
        pytest.param(BLUE | OFF | {"NEON": "on"} | CLEAR, "undefined", id="3.10-arc-clear"),
        pytest.param(BLUE | OFF | {"NEON": "on"} | MIRROR, "arclamp", id="3.10-other-sides"),
        pytest.param(RED | OFF, "dark", id="3.10-dark"),
        pytest.param(RED | OFF | {"ZINC": ""}, "undefined", id="3.10-lamp-missing"),
        pytest.param(RED | CLOSED, "undefined", id="3.10-closed"),
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in codes(out)) == (kind == "undefined")


@pytest.mark.parametrize(
    ("header", "mode"),
    [
        pytest.param(RED, "SPEC", id="3.11-red"),
        pytest.param(RED | MIRROR | {"OBSMODE": "Imaging"}, "IMAGING", id="3.11-mirror"),
        pytest.param(RED | {"OBSMODE": "Imaging"}, "SPEC", id="3.11-red-says-imaging"),
        pytest.param(BLUE, "SPEC", id="3.11-blue"),
        pytest.param(BLUE | CLEAR, "IMAGING", id="3.11-clear"),
        pytest.param(BLUE | {"GRISNAME": "NB4170"}, "IMAGING", id="3.11-narrow"),
        pytest.param({"INSTRUME": "LRISpBLUE", "GRISNAME": "400/3400"}, "SPEC", id="3.11-pol"),
        pytest.param({"INSTRUME": "LRISBLUE"}, NULL, id="3.11-no-grism"),
        pytest.param({"INSTRUME": "LRISpRED"}, NULL, id="3.11-no-grating"),
    ],
)
def test_mode(maker: Any, make_file: Any, header: Any, mode: str) -> None:
    assert value(run(maker, make_file, header), "OBSMODE") == mode


OLD = {"DATE-OBS": "2015-05-13"}
LONG = {"SLITNAME": "long_1.0"}
RED_IMAGE = RED | MIRROR
BLUE_IMAGE = BLUE | CLEAR


def red(grating: str, centre: float) -> dict[str, Any]:
    return RED | {"GRANAME": grating, "WAVELEN": centre}


def red_image(name: str) -> dict[str, Any]:
    return RED_IMAGE | {"REDFILT": name}


@pytest.mark.parametrize(
    ("header", "waves"),
    [
        pytest.param(red("150/7500", 9000), (2860, 9000, 15140), id="3.11-150/7500"),
        pytest.param(red("300/5000", 7000), (3740, 7000, 10260), id="3.11-300/5000"),
        pytest.param(red("400/8500", 7000), (4620, 7000, 9380), id="3.11-400/8500"),
        pytest.param(red("600/5000", 7000), (5360, 7000, 8640), id="3.11-600/5000"),
        pytest.param(red("600/7500", 7000), (5360, 7000, 8640), id="3.11-600/7500"),
        pytest.param(red("600/10000", 7000), (5360, 7000, 8640), id="3.11-600/10000"),
        pytest.param(red("831/8200", 7000), (5810, 7000, 8190), id="3.11-831/8200"),
        pytest.param(red("900/5500", 7000), (5910, 7000, 8090), id="3.11-900/5500"),
        pytest.param(red("1200/7500", 7000), (6180, 7000, 7820), id="3.11-1200/7500"),
        pytest.param(red("1200/9000", 7000), (6180, 7000, 7820), id="3.11-1200/9000"),
        pytest.param(red("158/8500", 7000), (None,) * 3, id="3.11-158/8500"),
        pytest.param(red("150/7500", 9000) | OLD, (4080, 9000, 13920), id="7.3-150/7500"),
        pytest.param(red("158/8500", 9000) | OLD, (4080, 9000, 13920), id="7.3-158/8500"),
        pytest.param(red("300/5000", 7000) | OLD, (4390, 7000, 9610), id="7.3-300/5000"),
        pytest.param(red("400/8500", 7000) | OLD, (5100, 7000, 8900), id="7.3-400/8500"),
        pytest.param(red("600/5000", 7000) | OLD, (5690, 7000, 8310), id="7.3-600/5000"),
        pytest.param(red("600/7500", 7000) | OLD, (5690, 7000, 8310), id="7.3-600/7500"),
        pytest.param(red("600/10000", 7000) | OLD, (5690, 7000, 8310), id="7.3-600/10000"),
        pytest.param(red("831/8200", 7000) | OLD, (6050, 7000, 7950), id="7.3-831/8200"),
        pytest.param(red("900/5500", 7000) | OLD, (6130, 7000, 7870), id="7.3-900/5500"),
        pytest.param(red("1200/7500", 7001) | OLD, (6350, 7005, 7660), id="7.3-1200/7500"),
        pytest.param(red("1200/9000", 7000) | OLD, (None,) * 3, id="7.3-1200/9000"),
        # Production reads minutes for the month: this is after 2015-05-14.
        pytest.param(
            red("400/8500", 7000) | {"DATE-OBS": "2015-12-01"}, (4620, 7000, 9380), id="7.3-month"
        ),
        pytest.param(
            red("400/8500", 7000) | {"DATE-OBS": "2015-01-20"}, (5100, 7000, 8900), id="7.3-early"
        ),
        pytest.param(
            red("400/8500", 7000) | {"DATE-OBS": "2015-05-14"}, (4620, 7000, 9380), id="7.3-day"
        ),
        pytest.param(red("400/8500", 0), (None,) * 3, id="3.11-no-wavelength"),
        pytest.param(RED | {"WAVELEN": "?"}, (None,) * 3, id="3.11-wild-wavelength"),
        pytest.param(
            red("unknown", 7000) | {"GRISNAME": "300/5000"}, (None,) * 3, id="3.11-other-grism"
        ),
        # The dichroic
        pytest.param(
            red("400/8500", 7000) | {"DICHNAME": "460"}, (4870, 7125, 9380), id="3.11-460"
        ),
        pytest.param(
            red("400/8500", 7000) | {"DICHNAME": "500"}, (5090, 7235, 9380), id="3.11-500"
        ),
        pytest.param(
            red("400/8500", 7000) | {"DICHNAME": "560"}, (5700, 7540, 9380), id="3.11-560"
        ),
        pytest.param(
            red("400/8500", 7000) | {"DICHNAME": "680"}, (6800, 8090, 9380), id="3.11-680"
        ),
        pytest.param(red("831/8200", 9000) | {"DICHNAME": 560}, (7810, 9000, 10190), id="3.11-cut"),
        # Blue grisms: behind a mask, behind a long slit
        pytest.param(BLUE | {"GRISNAME": "300/5000"}, (2210, 5135, 8060), id="3.11-b300"),
        pytest.param(BLUE | {"GRISNAME": "400/3400"}, (1760, 3990, 6220), id="3.11-b400"),
        pytest.param(BLUE, (3300, 4590, 5880), id="3.11-b600"),
        pytest.param(BLUE | {"GRISNAME": "1200/3400"}, (3010, 3505, 4000), id="3.11-b1200"),
        pytest.param(BLUE | LONG | {"GRISNAME": "300/5000"}, (1570, 4495, 7420), id="3.11-l300"),
        pytest.param(BLUE | LONG | {"GRISNAME": "400/3400"}, (1270, 3505, 5740), id="3.11-l400"),
        pytest.param(BLUE | LONG, (3010, 4305, 5600), id="3.11-l600"),
        pytest.param(
            BLUE | {"SLITNAME": "pol_1.5", "GRISNAME": "1200/3400"},
            (2910, 3400, 3890),
            id="3.11-l1200",
        ),
        pytest.param(BLUE | {"SLITMASK": "long_1.0"}, (3010, 4305, 5600), id="3.11-slitmask"),
        pytest.param(BLUE | {"DICHNAME": "460"}, (3300, 4085, 4870), id="3.11-blue-460"),
        pytest.param(BLUE | {"DICHNAME": "500"}, (3300, 4195, 5090), id="3.11-blue-500"),
        pytest.param(BLUE | {"DICHNAME": "560"}, (3300, 4500, 5700), id="3.11-blue-560"),
        pytest.param(BLUE | {"DICHNAME": "680"}, (3300, 4590, 5880), id="3.11-blue-680"),
        pytest.param(BLUE | {"DICHNAME": "mirror"}, (3300, 4590, 5880), id="3.11-no-dichroic"),
        pytest.param(BLUE | {"GRANAME": "300/5000"}, (3300, 4590, 5880), id="3.11-other-grating"),
        # Images
        pytest.param(red_image("Clear"), (3500, 6250, 9000), id="3.11-red-clear"),
        pytest.param(red_image("B"), (3800, 4550, 5300), id="3.11-red-B"),
        pytest.param(red_image("V"), (4800, 5700, 6600), id="3.11-red-V"),
        pytest.param(red_image("R"), (5500, 6850, 8200), id="3.11-red-R"),
        pytest.param(red_image("Rs"), (6000, 6750, 7500), id="3.11-red-Rs"),
        pytest.param(red_image("I"), (6800, 7600, 8400), id="3.11-red-I"),
        pytest.param(red_image("GG495"), (4800, 4875, 4950), id="3.11-GG495"),
        pytest.param(red_image("OG570"), (5500, 5600, 5700), id="3.11-OG570"),
        pytest.param(red_image("RG850"), (8200, 8350, 8500), id="3.11-RG850"),
        pytest.param(red_image("NB4000"), (3800, 4000, 4200), id="3.11-NB4000"),
        pytest.param(red_image("NB5390"), (5350, 5375, 5400), id="3.11-NB5390"),
        pytest.param(red_image("NB6741"), (6700, 6750, 6800), id="3.11-NB6741"),
        pytest.param(red_image("NB8185"), (8150, 8200, 8250), id="3.11-NB8185"),
        pytest.param(red_image("NB8560"), (8500, 8575, 8650), id="3.11-NB8560"),
        pytest.param(red_image("NB9135"), (9100, 9150, 9200), id="3.11-NB9135"),
        pytest.param(red_image("NB9148"), (9050, 9150, 9250), id="3.11-NB9148"),
        pytest.param(red_image("new"), (None,) * 3, id="3.11-red-unknown"),
        pytest.param(
            red_image("V") | {"DICHNAME": "560"}, (5700, 6150, 6600), id="3.11-red-image-560"
        ),
        pytest.param(BLUE_IMAGE | {"BLUFILT": "clear"}, (3000, 4750, 6500), id="3.11-blue-clear"),
        pytest.param(BLUE_IMAGE | {"BLUFILT": "U"}, (3050, 3525, 4000), id="3.11-blue-U"),
        pytest.param(BLUE_IMAGE | {"BLUFILT": "B"}, (3900, 4400, 4900), id="3.11-blue-B"),
        pytest.param(BLUE_IMAGE | {"BLUFILT": "V"}, (5800, 6200, 6600), id="3.11-blue-V"),
        pytest.param(BLUE_IMAGE | {"BLUFILT": "G"}, (4100, 4700, 5300), id="3.11-blue-G"),
        pytest.param(
            BLUE_IMAGE | {"BLUFILT": "G", "REDFILT": "I"},
            (4100, 4700, 5300),
            id="3.11-other-filter",
        ),
        pytest.param(BLUE_IMAGE | {"BLUFILT": "SP580"}, (None,) * 3, id="3.11-SP580"),
    ],
)
def test_wavelengths(maker: Any, make_file: Any, header: Any, waves: Any) -> None:
    out = run(maker, make_file, header)
    assert found(out, "WAVEBLUE", "WAVECNTR", "WAVERED") == waves
    assert maker.instruments["LRIS"].wave_unit == "angstrom"


SLIT = ("SLITLEN", "SLITWIDT", "SPECRES", "SPATSCAL", "DISPSCAL")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # Resolution by the width of a line behind 1 arcsec, to 100
        pytest.param(
            red("400/8500", 7000) | {"SLITNAME": "long_0.7"},
            (175, 0.7, 1400.0, 0.135, 1.16),
            id="3.11-long_0.7",
        ),
        pytest.param(
            red("400/8500", 7000) | LONG, (175, 1.0, 1000.0, 0.135, 1.16), id="3.11-long_1.0"
        ),
        pytest.param(
            red("600/7500", 7000) | {"SLITNAME": "long_1.5"},
            (175, 1.5, 1000.0, 0.135, 0.8),
            id="3.11-long_1.5",
        ),
        pytest.param(
            red("600/7500", 7000) | {"SLITNAME": "long_8.7"},
            (175, 8.7, 200.0, 0.135, 0.8),
            id="3.11-long_8.7",
        ),
        pytest.param(
            red("600/7500", 7000) | {"SLITNAME": "pol_1.0"},
            (25, 1.0, 1500.0, 0.135, 0.8),
            id="3.11-pol_1.0",
        ),
        pytest.param(
            BLUE | {"SLITNAME": "pol_1.5"}, (25, 1.5, 700.0, 0.135, 0.63), id="3.11-pol_1.5"
        ),
        pytest.param(BLUE | LONG, (175, 1.0, 1100.0, 0.135, 0.63), id="3.11-b600"),
        pytest.param(
            BLUE | LONG | {"GRISNAME": "300/5000"},
            (175, 1.0, 500.0, 0.135, 1.43),
            id="3.11-b300",
        ),
        pytest.param(
            BLUE | LONG | {"GRISNAME": "400/3400"},
            (175, 1.0, 500.0, 0.135, 1.09),
            id="3.11-b400",
        ),
        pytest.param(
            BLUE | LONG | {"GRISNAME": "1200/3400"},
            (175, 1.0, 2200.0, 0.135, 0.24),
            id="3.11-b1200",
        ),
        pytest.param(
            red("300/5000", 7000) | LONG, (175, 1.0, 800.0, 0.135, NULL), id="3.11-300/5000"
        ),
        # By the pixels, to 10
        pytest.param(
            red("150/7500", 9000) | LONG, (175, 1.0, 400.0, 0.135, 3.0), id="3.11-150/7500"
        ),
        pytest.param(
            red("831/8200", 7000) | LONG, (175, 1.0, 1630.0, 0.135, 0.58), id="3.11-831/8200"
        ),
        pytest.param(
            red("900/5500", 7000) | LONG, (175, 1.0, 1780.0, 0.135, 0.53), id="3.11-900/5500"
        ),
        pytest.param(
            red("1200/7500", 7000) | LONG, (175, 1.0, 2360.0, 0.135, 0.4), id="3.11-1200/7500"
        ),
        pytest.param(
            red("1200/9000", 7000) | {"SLITNAME": "long_0.7"},
            (175, 0.7, 3380.0, 0.135, 0.4),
            id="3.11-1200/9000",
        ),
        # Masks are taken as 1 arcsec wide.
        pytest.param(
            red("600/7500", 7000) | {"SLITNAME": "mask7"},
            (NULL, NULL, 1500.0, 0.135, 0.8),
            id="3.11-mask",
        ),
        pytest.param(RED | {"WAVELEN": ""}, (NULL, NULL, NULL, 0.135, 0.8), id="3.11-no-wave"),
        pytest.param(RED_IMAGE, (NULL, NULL, NULL, 0.135, NULL), id="3.11-image"),
        pytest.param(RED_IMAGE | {"SLITNAME": "direct"}, (None,) * 5, id="3.11-direct"),
        pytest.param(RED | {"SLITNAME": "GOH_LRIS"}, (None,) * 5, id="3.11-goh"),
    ],
)
def test_slits(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    assert found(run(maker, make_file, header), *SLIT) == expected


GAIN = [f"CCD{what}0{n}" for what in ("GN", "RN") for n in range(1, 5)]


@pytest.mark.parametrize(
    ("header", "extensions", "expected"),
    [
        pytest.param(
            BLUE, ["IMAGE"] * 4, (1.55, 1.56, 1.63, 1.7, 3.9, 4.2, 3.6, 3.6), id="3.2-blue"
        ),
        pytest.param(
            RED,
            ["IMAGE"] * 4,
            (1.255, 1.18, 1.191, 1.162, 4.64, 4.76, 4.54, 4.62),
            id="3.2-red",
        ),
        pytest.param(BLUE, ["IMAGE"] * 2, (None,) * 8, id="3.2-two-amplifiers"),
        pytest.param(RED, ["BINTABLE"] * 4, (None,) * 8, id="3.2-red-since-2021"),
    ],
)
def test_gain(maker: Any, make_file: Any, header: Any, extensions: Any, expected: Any) -> None:
    assert found(run(maker, make_file, header, extensions), *GAIN) == expected


POINTING = {"RA": "15:20:00.00", "DEC": "-00:30:00.0", "ROTPOSN": 91.5}
WCS = [
    *("CTYPE1", "CTYPE2", "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"),
    *("CDELT1", "CDELT2", "CROTA2"),
]


@pytest.mark.parametrize(
    ("name", "crpix"),
    [
        ("LRISB", (1005.93, 1442.59)),
        ("REF", (485, 520)),
        ("REFO", (512, 512)),
        ("LRIS", (1011.26, 1019.78)),
        ("slitb", (1352.59, 1155.93)),
        ("slitc", (1361.19, 813.26)),
        ("POL", (1283.11, 1020.22)),
        ("PICKOFF", (1375.63, 842.15)),
        ("MIRA", (1081.48, 1022.0)),
        ("Bedge", (1375.26, 899.19)),
        ("TEDGE", (1353.04, 1054.0)),
        ("elsewhere", (931.85, 1442.59)),
    ],
    ids=lambda part: f"3.11-{part}" if isinstance(part, str) else "",
)
def test_blue_image_coordinates(maker: Any, make_file: Any, name: str, crpix: Any) -> None:
    out = run(maker, make_file, BLUE_IMAGE | POINTING | {"PONAME": name})
    assert found(out, "CTYPE1", "CTYPE2") == ("RA---TAN", "DEC--TAN")
    assert found(out, "CRPIX1", "CRPIX2") == pytest.approx(crpix, abs=0.006)
    assert found(out, "CRVAL1", "CRVAL2") == (230.0, -0.5)
    assert found(out, "CDELT1", "CDELT2") == pytest.approx((3.75e-5, 3.75e-5))
    assert value(out, "CROTA2") == 91.5


def test_coordinates_of_other_frames(maker: Any, make_file: Any) -> None:
    """Only blue images have them (facts 3.11); without a pointing they are null."""
    for header in (BLUE | POINTING, RED_IMAGE | POINTING):
        assert found(run(maker, make_file, header), *WCS) == (None,) * 9
    out = run(maker, make_file, BLUE_IMAGE | POINTING | {"RA": "#### Error ###"})
    assert found(out, *WCS) == (NULL,) * 9
    assert "SET_WCS_ERROR" in codes(out)


@pytest.mark.parametrize(
    ("header", "angle"),
    [
        pytest.param({"IROT2ANG": 45.1, "PARANG": -30.0, "EL": 60.25}, 30.45, id="3.11"),
        pytest.param({"IROT2ANG": 45.1, "PARANG": -30.0, "EL": "?"}, None, id="3.11-no-el"),
        pytest.param({"PARANG": -30.0, "EL": 60.0}, None, id="3.11-no-rotator"),
    ],
)
def test_sky_angle(maker: Any, make_file: Any, header: Any, angle: Any) -> None:
    assert found(run(maker, make_file, RED | header), "SKYPA") == (angle,)


STAMP = "2022-10-14T10:20:28.123"


@pytest.mark.parametrize(
    ("header", "begin"),
    [
        pytest.param({"DATE-BEG": STAMP}, STAMP, id="3.11-new"),
        pytest.param({"DATE-BEG": STAMP, "DATE_BEG": "old"}, STAMP, id="3.11-both"),
        pytest.param(
            {"DATE-BEG": "2022-10-14", "DATE_BEG": "2022-10-14T10:20:28"},
            "2022-10-14T10:20:28",
            id="3.11-old",
        ),
        pytest.param({"DATE-BEG": "2022-13-14T10:20:28.123"}, None, id="3.11-no-such-day"),
        pytest.param({}, None, id="3.11-none"),
    ],
)
def test_dates_of_the_metadata(maker: Any, make_file: Any, header: Any, begin: Any) -> None:
    ending = {key.replace("BEG", "END"): text for key, text in header.items()}
    out = run(maker, make_file, RED | header | ending)
    assert (out.extra["DATE_BEG"], out.extra["DATE_END"]) == (begin, begin)
    assert not {"DATE_BEG", "DATE_END", "MJD-OBS"} & out.keywords.keys()


@pytest.mark.parametrize(
    ("header", "mjd"),
    [
        pytest.param({"MJD": 59866.4}, 59866.4, id="3.11-since-2021"),
        pytest.param({"MJD-OBS": "58751.288588", "MJD": 1.0}, "58751.288588", id="3.11-older"),
        pytest.param({}, None, id="3.11-none"),
    ],
)
def test_day_of_the_metadata(maker: Any, make_file: Any, header: Any, mjd: Any) -> None:
    assert run(maker, make_file, RED | header).extra["MJD-OBS"] == mjd


@pytest.mark.parametrize(
    ("slit", "months"),
    [
        pytest.param("long_1.0", 0, id="3.5-long"),
        pytest.param("Pol_1.0", 0, id="3.5-pol"),
        pytest.param("GOH_x", 0, id="3.5-goh"),
        pytest.param("direct", 0, id="3.5-direct"),
        pytest.param("", 0, id="3.5-no-slit"),
        pytest.param("m31_mask", 18, id="3.5-mask-tells-a-target"),
    ],
)
def test_target_info(maker: Any, make_file: Any, slit: str, months: int) -> None:
    """A dark by day is open unless the mask's name tells a target."""
    night = Night(sunset=time(4), sunrise=time(16))
    facts = Facts(prepared_at=datetime(2022, 10, 15, tzinfo=UTC), night=night)
    header = BASE | RED | OFF | {"SLITNAME": slit, "UTC": "02:00:00.00"}
    out = maker.run("LRIS", make_file(header), PATH, facts)
    assert out.extra["PROPINT"] == months
    assert value(out, "PROGID") == ("C272" if months else "ENG")


def test_engineering(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, RED | {"OUTDIR": "/s/sdata241/lriseng/2022oct14"})
    assert found(out, "PROGID", "PROGPI") == ("ENG", "lriseng")  # facts 3.4


def test_catalogue(maker: Any, make_file: Any) -> None:
    header = BASE | BLUE_IMAGE | POINTING | {"BLUFILT": "G", "REDFILT": "I"}
    frame = maker.frame("LRIS", make_file(header), PATH)
    core = core_metadata(frame, run_rules(frame, frame.instrument.rules), 0)
    expected = {
        "camera": "LRISBLUE",
        "mode": "IMAGING",
        "filter": "G",
        "exposure": 60.0,
        "ra": 230.0,
        "wave_center": 4700.0,
        "wave_unit": "angstrom",
    }
    assert {key: core[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("dumped", "name", "expected"),
    [
        (
            "ARC_red.txt",
            "r201014_1009.fits",
            ("LR.20201014.09989.30.fits", "arclamp", "SPEC", 5700, 10120, 1100.0, None),
        ),
        (
            "LB.20160109.14149.txt",
            "b160109_1040.fits",
            ("LB.20160109.14149.24.fits", "arclamp", "SPEC", 1270, 5700, 500.0, 1.7),
        ),
        (
            "b150910_2036.txt",
            "b150910_2036.fits",
            ("LB.20150910.15729.27.fits", "bias", "SPEC", 3010, 5600, 1100.0, 1.7),
        ),
    ],
)
def test_real_frame(maker: Any, dump: Any, dumped: str, name: str, expected: Any) -> None:
    frame = dump(f"LRIS/{dumped}")
    out = maker.run("LRIS", frame.raw, f"/s/sdata243/lris8/x/{name}")
    keys = ("KOAID", "KOAIMTYP", "OBSMODE", "WAVEBLUE", "WAVERED", "SPECRES", "CCDGN04")
    assert found(out, *keys) == expected
    archived = frame.archived.get("KOAIMTYP", value(out, "KOAIMTYP"))
    assert value(out, "KOAIMTYP") == str(archived).strip()
    assert out.extra["DATE_BEG"].startswith("20")
    assert out.extra["MJD-OBS"].startswith("5")


def test_real_blue_image(maker: Any, dump: Any) -> None:
    frame = dump("LRIS/framework_570_0000.txt")
    out = maker.run("LRIS", frame.raw, "/s/sdata243/lriseng/2019sep25/b190924_0133.fits")
    keys = ("KOAIMTYP", "OBSMODE", "WAVEBLUE", "WAVECNTR", "WAVERED", "PROGID")
    expected = ("object", "IMAGING", 4100, 4700, 5300, "ENG")
    assert found(out, *keys) == expected
    assert found(out, "CRPIX1", "CRPIX2") == pytest.approx((1005.93, 1442.59), abs=0.006)
    assert not set(SLIT) & out.keywords.keys()


WILD = st.one_of(
    st.sampled_from(["", "on", "off", "open", "closed", "clear", "mirror", "NB", "600/7500"]),
    st.sampled_from(["#### Error ###", 0, 1, -1, 1e308, 1e-320, True, "long_1.0", "560", "REF"]),
    st.text("0,1:-[*]", max_size=12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**30), 10**30),
)
KEYS = [
    *("SLITNAME", "SLITMASK", "TRAPDOOR", "LAMPS", "NEON", "AUTOSHUT", "AXESTAT", "OBJECT"),
    *("GRANAME", "GRISNAME", "WAVELEN", "DICHNAME", "REDFILT", "BLUFILT", "PONAME", "RA"),
    *("DEC", "ROTPOSN", "IROT2ANG", "PARANG", "EL", "DATE-BEG", "DATE_END", "MJD", "XPOSURE"),
    *("DATE-OBS", "ELAPTIME", "TTIME"),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    header=st.dictionaries(st.sampled_from(KEYS), WILD),
    side=st.sampled_from([RED, RED_IMAGE, BLUE, BLUE_IMAGE]),
    extensions=st.integers(0, 5),
)
def test_no_header_crashes_a_rule(
    maker: Any, make_file: Any, header: Any, side: Any, extensions: int
) -> None:
    out = run(maker, make_file, side | header, ["IMAGE"] * extensions)
    assert "RULE_CRASHED" not in codes(out)
