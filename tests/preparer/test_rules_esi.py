"""The rules of ESI (facts 3.2, 3.10, 3.11) against what the archive wrote."""

from typing import Any

import pytest

PATH = "/s/sdata703/esi9/2023feb15/e230215_0007.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "ESI: Echellette Spectrograph and Imager",
    "OUTFILE": "e230215_",
    "FRAMENO": 7,
    "DATE-OBS": "2023-02-15",
    "UT": "16:07:27.03",
    "PROGNAME": "U177",
}
ECHELLE = {"PRISMNAM": "in", "IMFLTNAM": "out"}
HOLES = {"SLMSKNAM": "MultiHoles"}
CLOSED = {"HATCHPOS": "closed"}
QUARTZ = {"LAMPQTZ1": "on"}
ARC = {"LAMPNE2": "on"}
SCREEN = {"EL": 45.0}
TRACKING = {"AXESTAT": "tracking", "DOMESTAT": "tracking"}


def run(maker: Any, make_file: Any, header: Any) -> Any:
    return maker.run("ESI", make_file(HEADER | header), PATH)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"OBSTYPE": "Bias"} | HOLES, "bias"),
        ({"OBSTYPE": "Dark"} | QUARTZ, "dark"),
        (HOLES | CLOSED | QUARTZ | ECHELLE, "trace"),
        (HOLES | CLOSED | QUARTZ | {"PRISMNAM": "out", "IMFLTNAM": "in"}, "focus"),
        (HOLES | CLOSED | QUARTZ | {"PRISMNAM": "out", "IMFLTNAM": "out"}, "undefined"),
        (HOLES | CLOSED | QUARTZ | ARC | ECHELLE, "undefined"),
        (HOLES | CLOSED | ARC | ECHELLE, "focus"),
        (HOLES | CLOSED | ECHELLE, "undefined"),
        (HOLES | CLOSED | ECHELLE | {"DWFILNAM": "Clear_S"}, "focus"),
        (
            HOLES | {"PRISMNAM": "out", "IMFLTNAM": "in", "LDFLTNAM": "out"} | TRACKING,
            "focus",
        ),
        (HOLES | SCREEN | ECHELLE, "trace"),
        (HOLES | SCREEN | ECHELLE | {"EL": 46.01}, "trace"),
        (HOLES | SCREEN | ECHELLE | {"EL": 46.02}, "undefined"),
        (HOLES | SCREEN | ECHELLE | {"EL": "#### Error ###"}, "undefined"),
        (
            HOLES | SCREEN | ECHELLE | {"OBSTYPE": "dmflat", "AXESTAT": "tracking"},
            "trace",
        ),
        (HOLES | SCREEN | ECHELLE | {"AXESTAT": "tracking"}, "undefined"),
        (HOLES | SCREEN | {"PRISMNAM": "out"}, "focus"),
        (HOLES | SCREEN | {"OBSTYPE": "DmFlat", "DOMESTAT": "tracking"}, "focus"),
        (HOLES | SCREEN | TRACKING | {"OBSTYPE": "dmflat"}, "undefined"),
        (CLOSED | QUARTZ, "flatlamp"),
        (CLOSED | ARC | ECHELLE, "arclamp"),
        (CLOSED | ARC, "undefined"),
        (CLOSED | ARC | QUARTZ | ECHELLE, "undefined"),
        (CLOSED, "undefined"),
        (SCREEN, "flatlamp"),
        (SCREEN | {"OBSTYPE": "dmflat", "DOMESTAT": "tracking"}, "flatlamp"),
        ({"OBSTYPE": "dmflat"}, "flatlamp"),
        (SCREEN | TRACKING, "object"),
        (TRACKING, "object"),
        ({"EL": 70.0}, "object"),
        (TRACKING | ARC, "undefined"),
        (TRACKING | QUARTZ, "undefined"),
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in {f.code for f in out.findings}) == (kind == "undefined")


OPTICS = (
    "OBSMODE",
    "WAVEBLUE",
    "WAVECNTR",
    "WAVERED",
    "SLITWIDT",
    "SLITLEN",
    "SPECRES",
)
LOW = ECHELLE | {"LDFLTNAM": "in"}
HIGH = ECHELLE | {"LDFLTNAM": "out"}
IMAGE = {"PRISMNAM": "out", "IMFLTNAM": "in", "LDFLTNAM": "out"}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            HIGH | {"SLMSKNAM": "0.75_arcsec"},
            ("high", 3900, 7400, 10900, 0.75, 20, 5500.0),
        ),
        (
            LOW | {"SLMSKNAM": "long_1.00"},
            ("low", 3900, 7400, 10900, 1.0, 480, 4130.0),
        ),
        (HIGH | {"SLMSKNAM": "IFU"}, ("high", 3900, 7400, 10900, 1.13, 4.0, 3650.0)),
        (HIGH | HOLES, ("high", 3900, 7400, 10900, 0.5, 20, 8250.0)),
        (
            HIGH | {"SLMSKNAM": "what_ever"},
            ("high", 3900, 7400, 10900, "null", 20, "null"),
        ),
        (
            HIGH | {"SLMSKNAM": "0_0"},
            ("high", 3900, 7400, 10900, "null", 20, "null"),
        ),
        (
            IMAGE | {"DWFILNAM": "B", "SLMSKNAM": "0.75_arcsec"},
            ("image", 3700, 4400, 5400, "null", "null", "null"),
        ),
        (
            IMAGE | {"DWFILNAM": "V"},
            ("image", 4900, 5200, 6450, "null", "null", "null"),
        ),
        (
            IMAGE | {"DWFILNAM": "R"},
            ("image", 6000, 6500, 7400, "null", "null", "null"),
        ),
        (
            IMAGE | {"DWFILNAM": "I"},
            ("image", 7000, 8000, 9000, "null", "null", "null"),
        ),
        (
            IMAGE | {"DWFILNAM": "Clear_S"},
            ("image", "null", "null", "null", "null", "null", "null"),
        ),
        ({}, ("null", "null", "null", "null", "null", "null", "null")),
    ],
)
def test_optics(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    out = run(maker, make_file, header)
    assert tuple(value(out, k) for k in OPTICS) == expected
    assert value(out, "SPATSCAL") == value(out, "DISPSCAL") == 0.1542
    assert value(out, "CAMERA") == "ESI"


def test_original_name_and_time(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {})
    assert value(out, "OFNAME") == "e230215_0007.fits"
    assert value(out, "UTC") == "16:07:27.03"
    assert "UT" not in out.keywords
    assert value(out, "KOAID") == "ES.20230215.58047.30.fits"


SAME = [
    *("KOAID", "OFNAME", "INSTRUME", "UTC", "CAMERA", "KOAIMTYP", "SEMESTER", "FILTER"),
    *("DATLEVEL", "OBSMODE", "WAVERED", "WAVECNTR", "WAVEBLUE", "SLITWIDT", "SLITLEN"),
    *("SPATSCAL", "DISPSCAL", "SPECRES"),
]


def test_real_frame(maker: Any, dump: Any) -> None:
    found = dump("ESI/bstarorder_1.txt", ["INSTRUME='ESI'"])
    out = maker.run("ESI", found.raw, "/sdata703/esi9/2023feb15_B/e230215_1046.fits")
    want = {k: found.archived[k] for k in SAME if k != "INSTRUME"}
    assert {k: value(out, k) for k in want} == want


def test_real_frame_of_2000(maker: Any, dump: Any) -> None:
    found = dump("ESI/PH957_e.txt")
    out = maker.run("ESI", found.raw, "/sdata707/esi14/4aug00/esi0254.fits")
    assert value(out, "KOAID") == "ES.20000804.48270.34.fits"
    assert value(out, "KOAIMTYP") == "object"
    assert value(out, "INSTRUME") == "ESI"
