"""The rules of HIRES (facts 2.1-2.3, 3.2-3.5, 3.10, 3.11)."""

from datetime import UTC, datetime, time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koa_preparer.providers import Facts, Night, Proposal
from koa_preparer.rules import core_metadata, program_of, run_rules
from koa_shared.errors import FrameFault
from koa_shared.fits import edit_header

PATH = "/s/sdata125/hires9/2020may07/hires0007.fits"
NAMES = ["CAF", "COF", "DECK", "ECH", "FIL1", "FIL2", "LFIL", "LSEL", "SLIT", "TVA", "TVF"]
STAGES = [f"{name}CAL" for name in (*NAMES, "TVF1", "TVF2", "XD")]
COVERS = ["C1CV", "C2CV", "ECOV", "XCOV", "RCCV", "HAT"]
HEADER: dict[str, Any] = {
    "INSTRUME": "HIRES: High Resolution Echelle Spectrometer",
    "OUTDIR": "/s/sdata125/hires9/2020may07",
    "OUTFILE": "hires",
    "FRAMENO": 7,
    "DATE-OBS": "2020-05-07",
    "UTC": "02:13:42.04",
    "UTC-END": "02:18:45.29",
    "PROGNAME": "C272",
    "AUTOSHUT": True,
    "LAMPNAME": "none",
    "LMIRRIN": False,
    "DARKCLOS": False,
    "TTIME": 300,
    "DECKNAME": "C1",
    "CATCUR1": 0.024,
    "CATCUR2": 0.037,
    "TEMPDET": -130.04327393,
    "XDISPERS": "RED",
    "XDSIGMAI": 250.0,
    "XDANGL": 0.0,
    "ECHANGL": 0.0,
    "SLITWID": 10.21401882,
    "BINNING": "2,1",
    "CCDGAIN": "low",
    "IROT2ANG": 201.87260437,
    "PARANG": "0.00",
    "EL": "45.00",
    "PEXPTIME": 0,
    "PEXPELAP": 0,
    "ERAMODE": "B, G, R",
    "MOSMODE": "B, G, R",
    "BCCVOPEN": False,
    "BCCVCLOS": True,
}
HEADER |= dict.fromkeys(STAGES, True)
HEADER |= {f"{name}OPEN"[:8]: True for name in COVERS}
HEADER |= {f"{name}CLOS"[:8]: False for name in COVERS}


def frame_bytes(make_file: Any, header: Any, amplifiers: Any = ()) -> bytes:
    """Return a frame with an extension of each amplifier."""
    raw: bytes = make_file({k: v for k, v in (HEADER | header).items() if v is not None})
    for place in amplifiers:
        cards = ["XTENSION= 'IMAGE   '", "BITPIX  =                   16"]
        cards += ["NAXIS   =                    0", "PCOUNT  =                    0"]
        cards += ["GCOUNT  =                    1"]
        cards += [f"AMPLOC  = {place}"] * bool(place)
        text = "".join(card.ljust(80) for card in [*cards, "END"])
        raw += text.ljust(2880).encode()
    return raw


def run(maker: Any, make_file: Any, header: Any, amplifiers: Any = (), facts: Any = None) -> Any:
    return maker.run("HIRES", frame_bytes(make_file, header, amplifiers), PATH, facts)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


SHUT = {"AUTOSHUT": False}
HATCH = {"HATCLOS": True, "HATOPEN": False}
MIRROR = {"LMIRRIN": True}
QUARTZ = {"LAMPNAME": "quartz1"} | MIRROR
THAR1 = {"LAMPNAME": "ThAr1", "CATCUR1": 5.0} | MIRROR
THAR2 = {"LAMPNAME": "ThAr2", "CATCUR2": 9.8} | MIRROR
UNKNOWN = {"LAMPNAME": "undefined"}
COVERED = {"XCOVCLOS": True, "ECOVCLOS": True}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        pytest.param(header, kind, id=f"facts-3.10-{kind}-{number}")
        for number, (header, kind) in enumerate(
            [
                ({}, "object"),
                (MIRROR, "object"),
                ({"LAMPNAME": "edser"}, "object"),
                ({"TTIME": 0}, "bias"),
                (HATCH, "dark"),
                (HATCH | {"TTIME": 0}, "bias"),
                # The shutter stays closed
                (SHUT, "dark"),
                (SHUT | {"TTIME": 0}, "bias"),
                (SHUT | QUARTZ, "dark_lamp_on"),
                (SHUT | THAR1 | {"TTIME": 0}, "bias_lamp_on"),
                (SHUT | QUARTZ | {"LMIRRIN": False}, "dark_lamp_on"),
                (SHUT | QUARTZ | {"DARKCLOS": True}, "dark_lamp_on"),
                (SHUT | QUARTZ | {"LMIRRIN": False, "DARKCLOS": True}, "dark"),
                (SHUT | UNKNOWN | {"TTIME": 0}, "bias_lamp_on"),
                (SHUT | {"DECKNAME": None, "CATCUR1": None}, "dark"),
                # Lamps
                (QUARTZ, "flatlamp"),
                (QUARTZ | HATCH, "flatlamp"),
                (QUARTZ | {"DECKNAME": "D5"}, "trace"),
                (QUARTZ | {"LMIRRIN": False}, "object_lamp_on"),
                (QUARTZ | {"LMIRRIN": False} | HATCH, "undefined"),
                (QUARTZ | COVERED, "flatlamp"),
                (UNKNOWN | MIRROR | {"LAMPQTZ2": True}, "flatlamp"),
                (UNKNOWN | MIRROR | {"LAMPQTZ1": True, "DECKNAME": "D5"}, "trace"),
                (UNKNOWN | MIRROR | {"LAMPQTZ2": False}, "undefined"),
                (UNKNOWN, "undefined"),
                (THAR1, "arclamp"),
                (THAR2, "arclamp"),
                (THAR1 | {"DECKNAME": "D5"}, "focus"),
                (THAR2 | {"DECKNAME": "D5"}, "focus"),
                (THAR1 | {"CATCUR1": 4.99}, "undefined"),
                (THAR2 | {"CATCUR1": 9.8, "CATCUR2": 0.1}, "undefined"),
                (THAR1 | {"LMIRRIN": False}, "object_lamp_on"),
                (THAR1 | {"LMIRRIN": False, "CATCUR1": 0.0}, "object_lamp_on"),
                (THAR1 | {"LMIRRIN": False} | HATCH, "undefined"),
                (THAR1 | COVERED, "undefined"),
                (THAR1 | {"XCOVCLOS": True}, "arclamp"),
                # What is missing or wild
                *(
                    ({keyword: odd}, "undefined")
                    for keyword in ("AUTOSHUT", "LMIRRIN", "DARKCLOS", "TTIME", "HATCLOS")
                    for odd in (None, "#### Error ###")
                ),
                *(
                    ({keyword: None}, "undefined")
                    for keyword in ("LAMPNAME", "DECKNAME", "CATCUR1", "CATCUR2")
                ),
                (THAR1 | {"CATCUR1": "#### Error ###"}, "undefined"),
            ]
        )
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == value(out, "IMAGETYP") == kind
    assert ("KOAIMTYP_UDF" in {f.code for f in out.findings}) == (kind == "undefined")


NIGHT = Night(sunrise=time(15, 40), sunset=time(5, 0))
KNOWN = Proposal(pi="deKleer", institution="CIT", title="T", propint=12)


@pytest.mark.parametrize(
    ("header", "progid", "months"),
    [
        # facts 3.2, 7.3 P8: known before the image type, science in daylight was engineering
        pytest.param({}, "C272", 12, id="facts-7.3-P8-object-by-day"),
        pytest.param(THAR1, "ENG", 0, id="facts-3.5-arclamp-by-day"),
        pytest.param(SHUT, "ENG", 0, id="facts-3.5-dark-by-day"),
        pytest.param(THAR1 | {"UTC": "09:30:00.00"}, "C272", 12, id="facts-3.5-arclamp-by-night"),
    ],
)
def test_period_knows_the_image_type(
    maker: Any, make_file: Any, header: Any, progid: str, months: int
) -> None:
    prepared = datetime(2020, 5, 7, 12, tzinfo=UTC)
    facts = Facts(prepared_at=prepared, night=NIGHT, proposal=KNOWN)
    out = run(maker, make_file, header, facts=facts)
    assert value(out, "PROGID") == progid
    assert out.extra["PROPINT"] == months


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # By facts 3.11 and the grating equation; J316's of 2019-01-07, hires3027's of 2013
        pytest.param({}, (3640, 5750, 8100), id="facts-3.11-red"),
        pytest.param({"XDANGL": 1.2, "ECHANGL": 0.3}, (5250, 7440, 9910), id="facts-3.11-steep"),
        pytest.param(
            {"XDANGL": -0.1055, "ECHANGL": -0.00904866}, (3360, 5660, 8100), id="facts-3.11-j316"
        ),
        pytest.param(
            {"XDISPERS": "UV", "XDSIGMAI": 400.0, "XDANGL": 1.99549997, "ECHANGL": -0.00008457},
            (3790, 5250, 6730),
            id="facts-3.11-uv",
        ),
        pytest.param(
            {"XDISPERS": "UV", "XDSIGMAI": 400.0}, (2110, 3600, 5100), id="facts-3.11-uv-at-0"
        ),
        pytest.param({"XDANGL": 3.0, "ECHANGL": -0.5}, (7400, 9870, 12260), id="facts-3.11-far"),
        pytest.param({"XDISPERS": None}, (3640, 5750, 8100), id="facts-3.11-red-if-not-told"),
        # Production looks for an order in vain and ends at 1260.
        pytest.param(
            {"XDANGL": -1.0971, "ECHANGL": -0.00913}, (1940, 4290, 6360), id="facts-3.11-steepest"
        ),
        pytest.param(
            {"XDISPERS": "UV", "XDSIGMAI": 400.0, "XDANGL": -1.5, "ECHANGL": -0.2},
            ("null", 2360, 3830),
            id="facts-3.11-below-1000",
        ),
        *(
            pytest.param(odd, ("null", "null", "null"), id=f"facts-3.11-null-{number}")
            for number, odd in enumerate(
                [
                    {"XDCAL": False},
                    {"ECHCAL": None},
                    {"XDSIGMAI": 0.0},
                    {"XDSIGMAI": None},
                    {"XDANGL": None},
                    {"XDANGL": 40.0},
                    {"ECHANGL": "#### Error ###"},
                    {"XDISPERS": "none"},
                ]
            )
        ),
    ],
)
def test_wavelengths(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    out = run(maker, make_file, header)
    assert tuple(value(out, k) for k in ("WAVEBLUE", "WAVECNTR", "WAVERED")) == expected


A_LENGTHS = [0.3, 0.5, 0.75, 1.0, 1.36, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 20.0, 40.0, 80.0]
FIXED_SLITS = {
    "B1": (3.5, 0.574, 71600),
    "B2": (7.0, 0.574, 71600),
    "B3": (14.0, 0.574, 71600),
    "B4": (28.0, 0.574, 71600),
    "B5": (3.5, 0.861, 47700),
    "C1": (7.0, 0.861, 47700),
    "C2": (14.0, 0.861, 47700),
    "C3": (28.0, 0.861, 47700),
    "C4": (3.5, 1.148, 35800),
    "C5": (7.0, 1.148, 35800),
    "D1": (14.0, 1.148, 35800),
    "D2": (28.0, 1.148, 35800),
    "D3": (7.0, 1.722, 23800),
    "D4": (14.0, 1.722, 23800),
    "D5": (0.119, 0.179, 229700),
    "E1": (1.0, 0.4, 102700),
    "E2": (3.0, 0.4, 102700),
    "E3": (5.0, 0.4, 102700),
    "E4": (7.0, 0.4, 102700),
    "E5": (1.0, 0.4, 102700),
}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        *(
            pytest.param(
                {"DECKNAME": f"A{number}", "SLITWID": 0.6222},
                (length, 0.86, 47800),
                id=f"facts-3.11-A{number}",
            )
            for number, length in enumerate(A_LENGTHS, 1)
        ),
        *(
            pytest.param({"DECKNAME": name}, expected, id=f"facts-3.11-{name}")
            for name, expected in FIXED_SLITS.items()
        ),
        pytest.param({"DECKNAME": "A4"}, (1.0, 14.118, 2900), id="facts-3.11-wide"),
        pytest.param({"DECKNAME": "B1", "SLITWID": None}, (3.5, 0.574, 71600), id="facts-3.11-B"),
        pytest.param(
            {"DECKNAME": "A4", "SLITWID": None}, (1.0, "null", "null"), id="facts-3.11-no-width"
        ),
        pytest.param({"DECKNAME": "A4", "SLITWID": 0}, (1.0, 0.0, "null"), id="facts-3.11-closed"),
        pytest.param({"DECKNAME": "F1"}, ("null", "null", "null"), id="facts-3.11-no-decker"),
        pytest.param({"DECKNAME": None}, ("null", "null", "null"), id="facts-3.11-none"),
    ],
)
def test_slits(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    out = run(maker, make_file, header)
    assert tuple(value(out, k) for k in ("SLITLEN", "SLITWIDT", "SPECRES")) == expected


@pytest.mark.parametrize(
    ("binning", "written", "scales"),
    [
        pytest.param("1,1", None, (0.119, 0.179), id="facts-3.11-1x1"),
        pytest.param("2,1", None, (0.239, 0.179), id="facts-3.11-2x1"),
        pytest.param("2,2", None, (0.239, 0.359), id="facts-3.11-2x2"),
        pytest.param("3,1", None, (0.358, 0.179), id="facts-3.11-3x1"),
        pytest.param("4, 3", "4,3", (0.478, 0.538), id="facts-7.3-P9-blank"),
        pytest.param("0,0", None, ("null", "null"), id="facts-3.11-0"),
        pytest.param("2", None, ("null", "null"), id="facts-3.11-one"),
        pytest.param(None, None, ("null", "null"), id="facts-3.11-none"),
        pytest.param("#### Error ###", "#### Error ###", ("null", "null"), id="facts-3.11-wild"),
    ],
)
def test_binning(maker: Any, make_file: Any, binning: Any, written: Any, scales: Any) -> None:
    out = run(maker, make_file, {"BINNING": binning})
    assert (value(out, "SPATSCAL"), value(out, "DISPSCAL")) == scales
    assert out.keywords.get("BINNING", (None,))[0] == written


LOW = [1.20, 1.95, 1.13, 2.09, 1.26, 2.09], [2.20, 2.90, 2.50, 3.00, 2.90, 3.10]
HIGH = [0.48, 0.78, 0.45, 0.84, 0.50, 0.89], [2.00, 2.34, 2.50, 2.40, 2.60, 2.84]
NONE = ["null"] * 6, ["null"] * 6


@pytest.mark.parametrize(
    ("gain", "amplifiers", "expected"),
    [
        pytest.param("low", "123456", LOW, id="facts-3.11-low"),
        pytest.param("high", "123456", HIGH, id="facts-3.11-high"),
        pytest.param(
            "low",
            "246",
            ([1.95, 2.09, 2.09, *NONE[0][:3]], [2.90, 3.00, 3.10, *NONE[0][:3]]),
            id="facts-3.11-by-AMPLOC",
        ),
        pytest.param(
            "high",
            "21654312",
            ([0.78, 0.48, 0.89, 0.50, 0.84, 0.45], [2.34, 2.00, 2.84, 2.60, 2.40, 2.50]),
            id="facts-3.11-two-too-many",
        ),
        pytest.param("low", ["", "'9'", "'x'"], NONE, id="facts-3.11-wild"),
        pytest.param("medium", "123456", NONE, id="facts-3.11-no-gain"),
        pytest.param(None, "123456", NONE, id="facts-3.11-none"),
    ],
)
def test_gain_and_read_noise(
    maker: Any, make_file: Any, gain: Any, amplifiers: Any, expected: Any
) -> None:
    places = [f"'{place}'" if place.isdigit() else place for place in amplifiers]
    out = run(maker, make_file, {"CCDGAIN": gain}, places)
    for name, values in zip(("CCDGN", "CCDRN"), expected, strict=True):
        assert [value(out, f"{name}0{n}") for n in range(1, 7)] == values
        assert f"{name}07" not in out.keywords


@pytest.mark.parametrize(
    ("header", "status"),
    [
        pytest.param({}, 1, id="facts-3.11-good"),
        *(pytest.param({name: None}, -1, id=f"facts-3.11-no-{name}") for name in STAGES),
        *(pytest.param({name: False}, 0, id=f"facts-3.11-{name}") for name in STAGES),
        pytest.param({"TEMPDET": None}, -1, id="facts-3.11-no-temperature"),
        pytest.param({"TEMPDET": -115.1}, 1, id="facts-3.11-cold"),
        pytest.param({"TEMPDET": -114.9}, 0, id="facts-3.11-warm"),
        pytest.param({"TEMPDET": -135.1}, 0, id="facts-3.11-colder"),
        pytest.param({"TEMPDET": 32.5}, 1, id="facts-3.11-32.5"),
        *(
            pytest.param(header, 0, id=f"facts-3.11-{next(iter(header))}")
            for header in (
                {"C1CVOPEN": False},
                {"C2CVCLOS": True},
                {"ECOVOPEN": False},
                {"XCOVCLOS": True},
                {"RCCVOPEN": False},
                {"HATOPEN": False},
            )
        ),
        pytest.param({"XCOVOPEN": None}, -1, id="facts-3.11-no-XCOVOPEN"),
        pytest.param({"BCCVCLOS": None}, -1, id="facts-3.11-no-BCCVCLOS"),
        pytest.param({"XDISPERS": None}, -1, id="facts-3.11-no-XDISPERS"),
        pytest.param({"XDISPERS": "UV"}, 0, id="facts-3.11-uv-behind-the-red-collimator"),
        pytest.param(
            {"XDISPERS": "UV", "BCCVOPEN": True, "BCCVCLOS": False, "RCCVOPEN": False},
            1,
            id="facts-3.11-uv",
        ),
        pytest.param(SHUT | {"C1CVOPEN": False, "RCCVOPEN": False}, 1, id="facts-3.11-dark"),
        pytest.param(SHUT | QUARTZ | {"C1CVOPEN": False}, 0, id="facts-3.11-dark-lamp-on"),
        pytest.param(THAR1 | HATCH, 1, id="facts-3.11-arclamp-needs-no-hatch"),
        pytest.param({"HATCLOS": None}, -1, id="facts-3.11-no-hatch"),
    ],
)
def test_instrument_status(maker: Any, make_file: Any, header: Any, status: int) -> None:
    assert value(run(maker, make_file, header), "INSTSTAT") == status


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param({}, 358.7452, id="facts-3.11-angle"),
        pytest.param({"PARANG": "-170.5", "EL": 60.25}, 203.4952, id="facts-3.11-turned"),
        pytest.param({"IROT2ANG": None}, "null", id="facts-3.11-no-rotator"),
        pytest.param({"EL": "#### Error ###"}, "null", id="facts-3.11-wild"),
    ],
)
def test_sky_angle(maker: Any, make_file: Any, header: Any, expected: Any) -> None:
    assert value(run(maker, make_file, header), "SKYPA") == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param({}, "False", id="facts-3.11-whole"),
        pytest.param({"PEXPTIME": None, "PEXPELAP": None}, "False", id="facts-3.11-none"),
        pytest.param({"PEXPTIME": "#### Error ###"}, "False", id="facts-3.11-wild"),
        pytest.param({"ERAMODE": "B"}, "False", id="facts-3.11-no-part-of-the-time"),
        pytest.param({"PEXPTIME": 30}, "False", id="facts-7.3-P9-all-erased"),
        pytest.param({"PEXPTIME": 30, "ERAMODE": "B"}, "True", id="facts-7.3-P9-part-erased"),
        pytest.param({"PEXPELAP": 30, "MOSMODE": "R"}, "True", id="facts-7.3-P9-part-read"),
        pytest.param(
            {"PEXPELAP": 30, "ERAMODE": "B", "MOSMODE": "B"}, "True", id="facts-7.3-P9-part"
        ),
    ],
)
def test_sub_exposure(maker: Any, make_file: Any, header: Any, expected: str) -> None:
    assert value(run(maker, make_file, header), "SUBEXP") == expected


def test_plain_keywords(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {})
    assert value(out, "ROQUAL") == "Good"
    assert value(out, "UT") == "02:13:42.04"
    assert value(out, "UT-END") == "02:18:45.29"
    assert "UT-END" not in run(maker, make_file, {"UTC-END": None}).keywords
    assert out.keywords["CCDGN01"][1] == "KOA: CCD gain, extension 1"
    assert all(c != "KOA: Set by the archive" for _, c in out.keywords.values())


@pytest.mark.parametrize(
    ("header", "koaid"),
    [
        pytest.param({}, "HI.20200507.08022.40.fits", id="facts-2.2-unpadded-fraction"),
        pytest.param({"UTC": "02:13:42.57"}, "HI.20200507.08022.57.fits", id="facts-2.2"),
        pytest.param({"DATE-OBS": "07/05/20"}, "HI.20200507.08022.40.fits", id="facts-2.3"),
        pytest.param({"INSTRUME": None}, "HI.20200507.08022.40.fits", id="facts-2.1-OUTDIR"),
        pytest.param(
            {"INSTRUME": "x", "OUTDIR": "/s/y", "CURRINST": "HIRES"},
            "HI.20200507.08022.40.fits",
            id="facts-2.1-CURRINST",
        ),
    ],
)
def test_identity(maker: Any, make_file: Any, header: Any, koaid: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAID") == koaid
    assert value(out, "INSTRUME") == "HIRES"
    assert value(out, "OFNAME") == "hires0007.fits"


def test_another_instrument_is_refused(maker: Any, make_file: Any) -> None:  # facts 2.1
    with pytest.raises(FrameFault, match="ESI"):
        run(maker, make_file, {"INSTRUME": "ESI", "OUTDIR": "/s/sdata700/esi1"})


@pytest.mark.parametrize(
    ("header", "code"),
    [
        pytest.param({"FRAMENO": 8}, "MISMATCHED_FILENAME", id="facts-2.6-other-number"),
        pytest.param({"OUTFILE": None}, "BAD_OFNAME", id="facts-2.6-no-name"),
    ],
)
def test_rejections(maker: Any, make_file: Any, header: Any, code: str) -> None:
    assert code in {f.code for f in run(maker, make_file, header).findings}


def test_real_frame(maker: Any, dump: Any) -> None:
    raw = dump("HIRES/hires3027.txt").raw
    frame = maker.frame("HIRES", raw, "/s/sdata125/hires9/2013may07/hires3027.fits")
    out = run_rules(frame, frame.instrument.rules)
    expected = {
        "KOAID": "HI.20130507.08022.40.fits",
        "OFNAME": "hires3027.fits",
        "INSTRUME": "HIRES",
        "UT-END": "02:13:45.29",
        "KOAIMTYP": "bias",
        "IMAGETYP": "bias",
        "SEMESTER": "2013A",
        "INSTSTAT": 1,
        "WAVEBLUE": 3790,
        "WAVECNTR": 5250,
        "WAVERED": 6730,
        "SLITLEN": 7.0,
        "SLITWIDT": 0.861,
        "SPATSCAL": 0.239,
        "DISPSCAL": 0.359,
        "SPECRES": 47700,
        "CCDGN01": 1.95,
        "CCDGN02": 2.09,
        "CCDGN03": 2.09,
        "CCDGN04": "null",
        "CCDRN01": 2.90,
        "CCDRN02": 3.00,
        "CCDRN03": 3.10,
        "CCDRN06": "null",
        "SKYPA": 358.7452,
        "SUBEXP": "False",
        "ROQUAL": "Good",
    }
    assert {k: value(out, k) for k in expected} == expected
    core = core_metadata(frame, out, 1)
    assert (core["wave_unit"], core["mode"], core["filter"]) == ("angstrom", "UV", "clear")


def test_real_row(maker: Any, dump: Any) -> None:
    """A few values of a row of the archive; they do not tell the lamp."""
    raw = dump("HIRES/HI.20190107.07893_arclamp_row.txt").raw
    out = maker.run("HIRES", raw, "/s/sdata125/hires1/2019jan06/j3160007.fits")
    expected = {
        "KOAID": "HI.20190107.07893.65.fits",
        "SLITLEN": 3.5,
        "SLITWIDT": 0.574,
        "SPECRES": 71600,
        "SPATSCAL": 0.358,
        "DISPSCAL": 0.179,
        "INSTSTAT": -1,
    }
    assert {k: value(out, k) for k in expected} == expected


WILD: Any = st.one_of(
    st.sampled_from(["", "#### Error ###", "NaN", "null", "none", "ThAr2", "D5", "A1", "0,0"]),
    st.sampled_from(["undefined", "quartz", "UV", "low", "1, 2", "{x}", "B", 0, 1, -1, 5.0]),
    st.sampled_from([1e308, -1e308, 1e-320, 10**30]),
    st.text(max_size=9).filter(str.isascii).filter(str.isprintable),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    header=st.dictionaries(st.sampled_from([*HEADER, "LAMPQTZ1", "KOAIMTYP"]), WILD),
    amplifiers=st.lists(st.sampled_from(["", "1", "'7'", "T", "'x'", "1e400", "-1"]), max_size=8),
)
def test_no_header_crashes_a_rule(maker: Any, make_file: Any, header: Any, amplifiers: Any) -> None:
    header |= {"INSTRUME": "HIRES", "OUTDIR": "/s/hires1"}
    raw = frame_bytes(make_file, header, amplifiers)
    frame = maker.frame("HIRES", raw, PATH)
    out = run_rules(frame, frame.instrument.rules)
    assert [f for f in out.findings if f.code == "RULE_CRASHED"] == []
    assert len(edit_header(raw, frame.hdus[0], out.updates)) % 2880 == 0
    core_metadata(frame, out, 1)
    program_of(frame, out)
