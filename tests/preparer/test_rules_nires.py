"""The rules of NIRES (facts 3.2, 3.10, 3.11, 8.3)."""

from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pytest

from koa_preparer.providers import Facts, Night, Proposal, Weather
from koa_preparer.rules import core_metadata, program_of, run_rules

PATH = "/s/sdata1500/nires9/2019jun15/s190615_0020.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "NIRES",
    "INSTR": "spec",
    "DATAFILE": "s190615_0020",
    "DATE-OBS": "2019-06-15",
    "UTC": "03:29:31.36",
    "OBSTYPE": "domeflat",
    "ITIME": 100.0,
    "COADDS": 1,
    "SATURATE": 33000,
    "PROGNAME": "C272",
}
FACTS = Facts(
    prepared_at=datetime(2021, 3, 16, 0, 16, 52, tzinfo=UTC),
    night=Night(
        sunrise=time(15, 40),
        sunset=time(2, 0),
        oa="jpelletier",
    ),
    proposal=Proposal(
        pi="deKleer",
        institution="CIT",
        title="Origin of the Irregular Satellites",
        propint=18,
    ),
    weather=Weather(
        values={"WXDOMHUM": 5.0, "WXWNDIR": None, "GUIDFWHM": float("nan")},
        time=datetime(2019, 6, 15, 3, 29, 31, 50_000, UTC),
    ),
)


def run(maker: Any, make_file: Any, header: Any, image: Any = None) -> Any:
    return maker.run("NIRES", make_file(HEADER | header, image), PATH, FACTS)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


@pytest.mark.parametrize(
    ("obstype", "kind"),
    [
        ("object", "object"),
        ("Standard", "object"),
        ("telluric", "object"),
        ("astro", "object"),
        ("star", "object"),
        ("bias", "bias"),
        ("dark", "dark"),
        ("domeflat", "domeflat"),
        ("domearc", "domearc"),
        ("calib", "undefined"),
        ("", "undefined"),
        (7, "undefined"),
    ],
)
def test_image_type(maker: Any, make_file: Any, obstype: Any, kind: str) -> None:
    out = run(maker, make_file, {"OBSTYPE": obstype})
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in {f.code for f in out.findings}) == (kind == "undefined")


SPEC = {
    "WAVEBLUE": 9400,
    "WAVECNTR": 16950,
    "WAVERED": 24500,
    "SPECRES": 2700.0,
    "SLITLEN": 18.1,
    "SLITWIDT": 0.5,
    "SPATSCAL": 0.15,
    "DISPSCAL": 0.15,
}
IMAG = {
    "WAVEBLUE": 19500,
    "WAVECNTR": 21225,
    "WAVERED": 22950,
    "FILTER": "Kp",
    "SPATSCAL": 0.12,
    "DISPSCAL": 0.12,
}


@pytest.mark.parametrize(("instr", "expected"), [("spec", SPEC), ("imag", IMAG)])
def test_modes(maker: Any, make_file: Any, instr: str, expected: Any) -> None:
    out = run(maker, make_file, {"INSTR": instr})
    assert {k: value(out, k) for k in expected} == expected
    assert not (SPEC.keys() | IMAG.keys()) - expected.keys() & out.keywords.keys()


def test_sample(maker: Any, make_file: Any) -> None:  # facts 8.3
    out = run(maker, make_file, {})
    expected = {
        "KOAID": "NR.20190615.12571.36.fits",
        "OFNAME": "s190615_0020.fits",
        "UT": "03:29:31.36",
        "FRAMENO": 20,
        "FRAMENUM": 20,
        "ELAPTIME": 100.0,
        "SEMESTER": "2019A",
        "PROGID": "C272",
        "PROGPI": "deKleer",
        "PROGINST": "CIT",
        "PROGTL1": "Origin of the Irregular Satellites",
        "PROGTL2": "",
        "OA": "jpelletier",
        "DATLEVEL": 0,
        "DQA_DATE": "2021-03-16T00:16:52",
        "WXDOMHUM": 5.0,
        "WXWNDIR": "null",
        "GUIDFWHM": "null",
        "WXTIME": "03:29:31.05",
        "GUIDTIME": "null",
    }
    assert {k: value(out, k) for k in expected} == expected
    assert out.extra["PROPINT"] == 18
    assert all(c.startswith("KOA: ") for _, c in out.keywords.values())


def test_number_of_the_header_goes_first(maker: Any, make_file: Any) -> None:
    assert value(run(maker, make_file, {"FRAMENUM": 21}), "FRAMENO") == 21
    assert "FRAMENO" not in run(maker, make_file, {"FRAMENO": 22}).keywords


def test_saturated_pixels(maker: Any, make_file: Any) -> None:
    image = np.full((16, 16), 100.5, ">f4")
    image[0, :3] = 33000
    out = run(maker, make_file, {}, image)
    assert value(out, "NPIXSAT") == 3
    assert value(out, "IMAGEMD") == 100.5
    out = run(maker, make_file, {"SATURATE": ""}, image)
    assert "NPIXSAT" not in out.keywords
    assert "SET_NPIXSAT_ERROR" in {f.code for f in out.findings}


def test_nan_pixels_make_null(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {}, np.array([[1, np.nan]], ">f4"))
    assert value(out, "IMAGEMN") == value(out, "IMAGEMD") == "null"


def test_real_metadata(maker: Any, dump: Any) -> None:
    """The values KOA holds, but for what the sample can't tell (facts 8.3)."""
    found = dump("NIRES/NR.20190615.12571.36_from_metadata.txt")
    out = maker.run("NIRES", found.raw, PATH, FACTS)
    keys = [*SPEC, "KOAID", "OFNAME", "KOAIMTYP", "SEMESTER", "ELAPTIME", "PROGID"]
    keys += ["PROGPI", "PROGINST", "DATLEVEL", "OA"]
    assert {k: value(out, k) for k in keys} == {k: found.archived[k] for k in keys}


def test_catalogue(maker: Any, make_file: Any) -> None:
    header = HEADER | {
        "RA": "03:52:00.00",
        "DEC": "-00:30:00.0",
        "AZ": 58.0,
        "EL": "?",
        "OBJECT": "NAME",
        "TARGNAME": "",
        "AIRMASS": 1.41,
    }
    raw = make_file(header, np.full((4, 4), 7, ">i2"))
    frame = maker.frame("NIRES", raw, PATH, FACTS)
    out = run_rules(frame, frame.instrument.rules)
    core = core_metadata(frame, out, 18_904_320)
    assert (
        core
        | {
            "koaid": "NR.20190615.12571.36",
            "instrument": "NIRES",
            "ra": 58.0,
            "utdatetime": "2019-06-15T03:29:31.360Z",
            "date_obs": "2019-06-15",
            "ut": "03:29:31.36",
            "koaimtyp": "domeflat",
            "dec": -0.5,
            "el": None,
            "object": "NAME",
            "targname": None,
            "exposure": 100.0,
            "filter": None,
            "frameno": 20,
            "airmass": 1.41,
            "az": 58.0,
            "camera": "spec",
            "mode": "spec",
            "semid": "2019A_C272",
            "progid": "C272",
            "propint": 18,
            "wave_blue": 9400.0,
            "wave_center": 16950.0,
            "wave_red": 24500.0,
            "wave_unit": "angstrom",
            "filesize_mb": 18.9043,
            "image_mean": 7.0,
            "npixsat": 0,
        }
        == core
    )
    program = program_of(frame, out)
    assert program.semid == "2019A_C272"
    assert program.pi == "deKleer"
    assert program.title == "Origin of the Irregular Satellites"
    assert program.release_date == datetime(2020, 12, 15, 3, 29, 31, 360000, UTC)


@pytest.mark.parametrize(("ra", "dec"), [(-20.0, 91.0), ("wild", ""), (400, "-91:00:00")])
def test_wild_pointing_is_no_position(maker: Any, make_file: Any, ra: Any, dec: Any) -> None:
    frame = maker.frame("NIRES", make_file(HEADER | {"RA": ra, "DEC": dec}), PATH, FACTS)
    core = core_metadata(frame, run_rules(frame, frame.instrument.rules), 0)
    assert core["ra"] is core["dec"] is None
