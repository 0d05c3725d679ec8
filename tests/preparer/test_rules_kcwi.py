"""The rules of KCWI (facts 3.2, 3.10, 3.11, 8.4)."""

from typing import Any

import numpy as np
import pytest

PATH = "/s/sdata1400/kcwi1/2019may09/kb190509_00001.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "KCWI",
    "CAMERA": "BLUE",
    "OFNAME": "kb190509_00001.fits",
    "DATE-OBS": "2019-05-09",
    "UT": "02:05:54.57",
    "FRAMENO": 1,
    "XPOSURE": 100.0,
    "IMTYPE": "OBJECT",
    "IFUNAM": "Medium",
    "BGRATNAM": "None",
    "BINNING": "2,2",
    "PROGNAME": "C257",
}


def run(maker: Any, make_file: Any, header: Any, image: Any = None) -> Any:
    return maker.run("KCWI", make_file(HEADER | header, image), PATH)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({}, "object"),
        ({"CAMERA": "fpc"}, "fpc"),
        ({"CAMERA": "SVC"}, "svc"),
        ({"XPOSURE": 0.0}, "bias"),
        ({"XPOSURE": 0}, "bias"),
        ({"XPOSURE": "#### Error ###"}, "object"),
        ({"IMTYPE": "CONTBARS"}, "contbars"),
        ({"IMTYPE": ""}, "undefined"),
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in {f.code for f in out.findings}) == (kind == "undefined")


OPTICS = (
    "WAVEBLUE",
    "WAVECNTR",
    "WAVERED",
    "SPECRES",
    "SLITWIDT",
    "SLITLEN",
    "SPATSCAL",
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # facts 8.4: no grating
        ({}, ("null", "null", "null", "null", 0.69, 20.4, 0.294)),
        (
            {
                "BGRATNAM": "BL",
                "BCWAVE": 4800.0029,
                "IFUNAM": "Large",
                "BINNING": "1,1",
            },
            (3800, 4800, 5800, 900, 1.35, 20.4, 0.147),
        ),
        (
            {"BGRATNAM": "BH3", "BCWAVE": 4800.4, "IFUNAM": "Small"},
            (4550, 4800, 5050, 18000, 0.35, 20.4, 0.294),
        ),
        (
            {"BGRATNAM": "BH2", "BCWAVE": 4800},  # span 405
            (4598, 4800, 5002, 9000, 0.69, 20.4, 0.294),
        ),
        (
            {"BGRATNAM": "BL", "BCWAVE": 4800, "BNASNAM": "Mask"},
            (4100, 4800, 5500, 1800, 0.69, 20.4, 0.294),
        ),
        (
            {"BGRATNAM": "BL", "BCWAVE": 0.0},
            ("null", "null", "null", 1800, 0.69, 20.4, 0.294),
        ),
        (
            {"CAMERA": "RED", "RGRATNAM": "RM2", "RCWAVE": 7000.0, "BINNING": 2},
            (6905, 7000, 7095, 2800, 0.69, 20.4, 0.294),
        ),
        (
            {"IFUNAM": "Home", "BGRATNAM": "BL", "BCWAVE": 4800},
            ("null", "null", "null", "null", "null", "null", 0.294),
        ),
        (
            {"CAMERA": "fpc", "BINNING": "1,1"},
            (3700, 6850, 10000, "null", 0.69, 20.4, 0.0075),
        ),
        ({"CAMERA": "svc"}, ("null", "null", "null", "null", 0.69, 20.4, "null")),
        ({"BINNING": ""}, ("null", "null", "null", "null", 0.69, 20.4, "null")),
    ],
)
def test_optics(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    out = run(maker, make_file, header)
    assert tuple(value(out, k) for k in OPTICS) == expected
    assert value(out, "DISPSCAL") == value(out, "SPATSCAL")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({}, 100.0),
        ({"EXPTIME": 7.5}, 7.5),
        ({"XPOSURE": "", "ITIME": 2.0, "COADDS": 3}, 6.0),
        ({"ELAPTIME": 1.0}, None),
    ],
)
def test_elaptime(maker: Any, make_file: Any, header: Any, seconds: Any) -> None:
    out = run(maker, make_file, header)
    assert out.keywords.get("ELAPTIME", (None,))[0] == seconds


def test_unsigned_image(maker: Any, make_file: Any) -> None:
    """BZERO 32768: stored 32767 is 65535, which is saturated (facts 3.2)."""
    image = np.full((20, 30), -22768, ">i2")  # 10000
    image[0, :7] = 32767
    out = run(maker, make_file, {"BZERO": 32768, "BSCALE": 1}, image)
    pixels = image.astype(float) + 32768
    assert value(out, "NPIXSAT") == 7
    assert value(out, "IMAGEMN") == round(float(pixels.mean()), 2)
    assert value(out, "IMAGESD") == round(float(pixels.std()), 2)
    assert value(out, "IMAGEMD") == 10000.0


def test_telescope_only_where_absent(maker: Any, make_file: Any) -> None:
    assert value(run(maker, make_file, {}), "TELESCOP") == "Keck II"
    assert "TELESCOP" not in run(maker, make_file, {"TELESCOP": "Keck 2"}).keywords


def test_wcs_of_the_field_camera(maker: Any, make_file: Any) -> None:
    header = {
        "CAMERA": "FPC",
        "RA": "03:52:00.00",
        "DEC": "+45:00:00.0",
        "BINNING": "2,2",
        "ROTMODE": "position angle",
        "ROTPOSN": 0.7,
        "EQUINOX": 1950.0,
    }
    out = run(maker, make_file, header, np.zeros((40, 60), ">i2"))
    assert value(out, "CD2_2") == pytest.approx(0.015 / 3600, abs=1e-12)
    assert value(out, "CD1_2") == pytest.approx(0, abs=1e-12)
    assert (value(out, "CRVAL1"), value(out, "CRVAL2")) == (58.0, 45.0)
    assert value(out, "RADECSYS") == "FK4"
    assert "PIXSCALE" not in out.keywords
    assert "CD1_1" not in run(maker, make_file, {}).keywords


def test_real_frames(maker: Any, dump: Any) -> None:
    found = dump("KCWI/kb181012_00003.txt")
    out = maker.run("KCWI", found.raw, "/s/sdata1400/kcwi3/2018oct12/kb181012_00003.fits")
    assert value(out, "KOAID") == "KB.20181012.05955.21.fits"
    assert value(out, "KOAIMTYP") == "bias"
    assert value(out, "ELAPTIME") == 0.0
    assert value(out, "SEMESTER") == "2018B"
    assert value(out, "PROGID") == "NONE"  # PROGNAME is `undefined`
    assert 32866 < value(out, "IMAGEMN") < 32869  # noise about 100, BZERO 32768
    assert value(out, "NPIXSAT") == 0


def test_real_science_frame(maker: Any, dump: Any) -> None:
    found = dump("KCWI/cwitools_test_coadd_pNB.txt")
    out = maker.run("KCWI", found.raw, "/s/sdata1400/kcwi3/2019feb02/kb190202_00061.fits")
    assert value(out, "KOAID") == "KB.20190202.31269.38.fits"
    assert value(out, "KOAIMTYP") == "object"
    assert tuple(value(out, k) for k in OPTICS) == (*(3800, 4800, 5800, 900, 1.35, 20.4, 0.294),)
    assert value(out, "PROGID") == "C257"
    assert value(out, "SEMESTER") == "2019A"
