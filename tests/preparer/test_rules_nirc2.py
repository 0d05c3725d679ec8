"""The rules of NIRC2 (facts 3.2, 3.10, 3.11) against what the archive wrote."""

from typing import Any

import numpy as np
import pytest

PATH = "/s/sdata901/nirc4/2022jun19/n0113.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "NIRC2",
    "FILENAME": "n0113.fits",
    "DATE-OBS": "2022-06-19",
    "UTC": "17:23:40.57",
    "COADDS": 2,
    "ITIME": 0.5,
    "PROGNAME": "C272",
}
LAMPS = {"FLIMAGIN": "off", "FLSPECTR": "on"}
DOMEFLAT = {"EL": 45.0, "AZ": 58.0, "DOMEPOSN": 147.48}
MOVING = {"DOMESTAT": "slewing", "AXESTAT": "in position"}
TELESCOPE = {"OBSFNAME": "telescope"}
TELSIM = {"OBSFNAME": "telsim"}


def run(maker: Any, make_file: Any, header: Any, image: Any = None) -> Any:
    return maker.run("NIRC2", make_file(HEADER | header, image), PATH)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"IMTYPE": "Standard"}, "object"),
        ({"IMTYPE": "Calibration"}, "calib"),
        ({"IMTYPE": "domeflat"}, "domeflat"),
        ({"IMTYPE": "unheard of", "SHRNAME": "Closed"}, "dark"),
        ({"SHRNAME": "closed"} | TELESCOPE | MOVING, "dark"),
        (TELESCOPE | LAMPS | DOMEFLAT, "flatlamp"),
        (TELESCOPE | {"FLIMAGIN": "on"} | DOMEFLAT, "flatlamp"),
        (TELESCOPE | LAMPS | DOMEFLAT | {"EL": 45.04}, "undefined"),
        (TELESCOPE | LAMPS | DOMEFLAT | {"AZ": 58.0 + 720}, "flatlamp"),
        (TELESCOPE | LAMPS | DOMEFLAT | {"DOMEPOSN": 140.0}, "undefined"),
        (TELESCOPE | MOVING, "object"),
        (TELESCOPE | MOVING | DOMEFLAT, "object"),
        (TELESCOPE | MOVING | {"AXESTAT": "stopped"}, "undefined"),
        (TELESCOPE | DOMEFLAT, "flatlampoff"),
        (TELSIM | {"XENONPWR": 1, "LAMPPWR": 1}, "arclamp"),
        (TELSIM | {"NEONPWR": 1}, "arclamp"),
        (TELSIM | {"LAMPPWR": 1}, "flatlamp"),
        (TELSIM | {"LAMPPWR": 0}, "undefined"),
        (TELSIM | {"LAMPPWR": "on"}, "undefined"),
        ({"OBSFNAME": "home"}, "calib"),
        ({}, "calib"),
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    undefined = [f for f in out.findings if f.code == "KOAIMTYP_UDF"]
    assert bool(undefined) == (kind == "undefined")


@pytest.mark.parametrize(
    ("waves", "expected"),
    [
        ((2.028, 2.196, 2.364), (2.028, 2.196, 2.364)),
        ((0, 2.5, 5), (0.9, 2.5, 5)),
        ((0, 0, 0), ("null", "null", "null")),
        ((0, 2, 3), ("null", 2, 3)),
        (("#### Error ###", 2, 3), ("null", 2, 3)),
    ],
)
def test_passband(maker: Any, make_file: Any, waves: Any, expected: Any) -> None:
    header = dict(zip(("MINWAVE", "CENWAVE", "MAXWAVE"), waves, strict=True))
    out = run(maker, make_file, header)
    found = tuple(value(out, k) for k in ("WAVEBLUE", "WAVECNTR", "WAVERED"))
    assert found == expected


@pytest.mark.parametrize(
    ("header", "mode", "dispersion"),
    [
        ({"GRSNAME": "clear"}, "image", "unknown"),
        ({"GRSNAME": "lowres"}, "spec", "low"),
        ({"GRSNAME": "medres"}, "spec", "medium"),
        ({"GRSNAME": "GR1"}, "spec", "unknown"),
        ({}, "null", "unknown"),
    ],
)
def test_modes(maker: Any, make_file: Any, header: Any, mode: str, dispersion: str) -> None:
    out = run(maker, make_file, header)
    assert (value(out, "DETMODE"), value(out, "DISPERS")) == (mode, dispersion)
    assert (value(out, "DETGAIN"), value(out, "DETRN")) == (4, 39)
    assert value(out, "ISAO") == "yes"


def test_known_gain_stays(maker: Any, make_file: Any) -> None:
    assert "DETGAIN" not in run(maker, make_file, {"DETGAIN": 8.0}).keywords


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"PSINAME": "a", "PSONAME": "b"}, 1),
        ({"PSINAME": "blank_center", "PSONAME": "b"}, 0),
        ({"PSINAME": "a", "PSONAME": "blank_center"}, 0),
        ({"PSONAME": "blank_center"}, -1),
        ({}, -1),
    ],
)
def test_status(maker: Any, make_file: Any, header: Any, status: int) -> None:
    assert value(run(maker, make_file, header), "INSTSTAT") == status


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({}, 1.0),
        ({"TRUITIME": 0.44718607, "COADDS": 45}, 20.12337),
        ({"ELAPTIME": 3.0}, None),
        ({"COADDS": "?"}, None),
    ],
)
def test_elaptime(maker: Any, make_file: Any, header: Any, seconds: Any) -> None:
    out = run(maker, make_file, header)
    assert out.keywords.get("ELAPTIME", (None,))[0] == seconds
    failed = any(f.code == "SET_ELAPTIME_ERROR" for f in out.findings)
    assert failed == ("COADDS" in header and seconds is None)


def test_image(maker: Any, make_file: Any) -> None:
    image = np.full((64, 64), 1000, ">i4")
    image[:8] = 9999  # 512 pixels at 2 coadds x 5000 less 1
    image[8:10] = 10000
    image[10, :2] = 36000
    image[20, 22:42] = 1900  # one row stands out at the centre: root of 900
    out = run(maker, make_file, {}, image)
    assert value(out, "NPIXSAT") == 2
    assert value(out, "NLINEAR") == 130
    assert value(out, "NONLIN") == 10000
    assert value(out, "SIG2NOIS") == 30.0
    assert value(out, "IMAGEMN") == round(float(image.mean()), 2)
    assert value(out, "IMAGESD") == round(float(image.std()), 2)
    assert value(out, "IMAGEMD") == 1000.0


def test_cube_gets_no_statistics(maker: Any, make_file: Any) -> None:  # facts 2.6
    image = np.zeros((32, 32), ">i4")
    out = run(maker, make_file, {"LEV0TYPE": "unprocessed"}, image)
    assert value(out, "KOAID") == "N2.20220619.62620.57_unp.fits"
    for keyword in ("IMAGEMN", "NPIXSAT", "NLINEAR", "SIG2NOIS", "CD1_1"):
        assert keyword not in out.keywords
    assert value(out, "WAVEBLUE") == "null"


POINTING: dict[str, Any] = {
    "CAMNAME": "narrow",
    "RA": 58.0,
    "DEC": 45.0,
    "EQUINOX": 2000.0,
    "ROTPOSN": 0.7,
    "PARANTEL": 10.0,
    "PARANG": 20.0,
    "EL": 30.0,
}


@pytest.mark.parametrize(
    ("header", "angle"),
    [
        ({"ROTMODE": "position angle"}, 0.7),
        ({"ROTMODE": "vertical angle"}, 10.7),
        ({"ROTMODE": "stationary"}, -19.3),
        ({"ROTMODE": "vertical angle", "PARANTEL": "#### Error ###"}, 20.7),
        ({"ROTMODE": "unknown"}, None),
        ({"ROTMODE": "position angle", "CAMNAME": "unknown"}, None),
        ({}, None),
    ],
)
def test_wcs(maker: Any, make_file: Any, header: Any, angle: float | None) -> None:
    out = run(maker, make_file, POINTING | header, np.zeros((40, 60), ">i4"))
    if angle is None:
        assert value(out, "CD1_1") == value(out, "PIXSCALE") == "null"
        assert "SET_WCS_ERROR" in {f.code for f in out.findings}
        return
    turn = np.radians(0.448 - angle)
    scale = 0.009952 / 3600
    assert value(out, "CD1_1") == pytest.approx(-scale * np.cos(turn), abs=1e-12)
    assert value(out, "CD2_2") == pytest.approx(scale * np.cos(turn), abs=1e-12)
    assert value(out, "CD1_2") == pytest.approx(-scale * np.sin(turn), abs=1e-12)
    assert value(out, "CD2_1") == value(out, "CD1_2")
    assert (value(out, "CRPIX1"), value(out, "CRPIX2")) == (30.5, 20.5)
    assert (value(out, "CRVAL1"), value(out, "CRVAL2")) == (58.0, 45.0)
    assert value(out, "RADECSYS") == "FK5"


def test_southern_sign_and_sexagesimal(maker: Any, make_file: Any) -> None:
    header = POINTING | {"ROTMODE": "posi", "RA": "04:00:00.0", "DEC": "-00:30:00.0"}
    out = run(maker, make_file, header, np.zeros((40, 60), ">i4"))
    assert (value(out, "CRVAL1"), value(out, "CRVAL2")) == (60.0, -0.5)


# What the archive wrote into the frame of facts 7.2; the rest depends on the pixels,
# on the weather or on the clock.
SAME = [
    *("KOAID", "OFNAME", "INSTRUME", "UT", "KOAIMTYP", "SEMESTER", "PROGID", "PROGPI"),
    *("PROGINST", "PROGTL1", "PROGTL2", "PROGTL3", "WAVERED", "WAVEBLUE", "WAVECNTR"),
    *("DETMODE", "DISPERS", "DETGAIN", "DETRN", "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"),
    *("CTYPE1", "CTYPE2", "WAT0_001", "WAT1_001", "WAT2_001", "WCSDIM", "LTM1_1"),
    *("LTM2_2", "RADECSYS", "ELAPTIME", "INSTSTAT", "NONLIN", "ISAO", "DATLEVEL"),
]
# These are text in the archive's headers and numbers in ours.
NUMBERS = ("PIXSCALE", "PIXSCAL1", "PIXSCAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")


def test_real_frame(maker: Any, dump: Any) -> None:
    found = dump("NIRC2/kcal_flat_512_512_narrow_K+clear.txt")
    out = maker.run("NIRC2", found.raw, "/sdata901/nirc2eng/2022jun19/n0113.fits")
    assert {k: value(out, k) for k in SAME} == {k: found.archived[k] for k in SAME}
    for keyword in NUMBERS:
        assert value(out, keyword) == float(found.archived[keyword])
    ours = {k for k, (_, comment) in out.keywords.items() if comment.startswith("KOA: ")}
    theirs = set(found.archived)
    assert ours <= theirs


def test_real_frame_of_2025(maker: Any, dump: Any) -> None:
    found = dump("NIRC2/n0902_2025dec08.txt")
    out = maker.run("NIRC2", found.raw, "/s/sdata907/nirc4/2025dec08/n0902.fits")
    assert value(out, "KOAID") == "N2.20251208.32682.82.fits"
    assert value(out, "KOAIMTYP") == "object"
    assert value(out, "PROGID") == "U294"
    assert value(out, "SEMESTER") == "2025B"
    assert value(out, "ELAPTIME") == 20.12337


def test_real_frame_of_2017(maker: Any, dump: Any) -> None:
    found = dump("NIRC2/standard_2.txt")
    out = maker.run("NIRC2", found.raw, "/s/sdata903/nirc18/2017jul25/n0052.fits")
    assert value(out, "KOAID") == "N2.20170725.51493.00.fits"
    assert value(out, "INSTRUME") == "NIRC2"
    assert value(out, "KOAIMTYP") == "object"
