"""How rules are named, checked and run; no header makes one crash."""

import string
from collections.abc import Iterator
from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koa_preparer.providers import Facts, Night, Slot
from koa_preparer.rules import (
    RULES,
    Note,
    Set,
    check_rules,
    core_metadata,
    program_of,
    rule,
    run_rules,
)
from koa_preparer.rules.registry import card_value
from koa_shared.contracts import Severity
from koa_shared.fits import Value, edit_header
from koa_shared.instruments import Instrument, InstrumentError, RuleCall

PATH = "/s/sdata1/x/n0001.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "NIRC2",
    "FILENAME": "n0001.fits",
    "DATE-OBS": "2019-06-15",
    "UTC": "03:29:31.36",
}


@pytest.fixture
def extra_rules() -> Iterator[None]:
    """Name two rules for a test."""

    @rule
    def test_crash(frame: Any) -> Iterator[Set]:
        yield Set("BEFORE", 1)
        raise ValueError(f"{frame.path} is too much")

    @rule
    def test_two(frame: Any, *, level: float, name: str = "X") -> Iterator[Set | Note]:
        yield Set(name, level)
        yield Note("SEEN", frame.text(name))

    yield
    del RULES["test_crash"], RULES["test_two"]


def test_shipped_instruments_pass(maker: Any) -> None:
    check_rules(maker.instruments)


@pytest.mark.usefixtures("extra_rules")
@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ([{"rule": "no_such"}], "'no_such', is unknown"),
        ([{"rule": "test_two"}], "level"),
        ([{"rule": "stamp"}, {"rule": "test_two", "params": {"level": "hi"}}], "rule 2"),
        ([{"rule": "test_two", "params": {"level": 1, "more": 2}}], "more"),
        (
            [{"rule": "lookup", "params": {"keyword": "A", "table": "none"}}],
            "tables hold no 'none'",
        ),
        ([{"rule": "choose", "params": {"keywords": ["X"]}}], "choices hold no 'X'"),
    ],
)
def test_wrong_rules_stop_the_start(calls: Any, says: str) -> None:
    data = {"name": "TEST", "roots": [], "rules": calls}
    instrument = Instrument.model_validate(data)
    with pytest.raises(InstrumentError, match=r"TEST\.toml") as raised:
        check_rules({"TEST": instrument})
    assert says in str(raised.value)


@pytest.mark.usefixtures("extra_rules")
@pytest.mark.parametrize("critical", [True, False])
def test_crash_is_a_finding(maker: Any, make_file: Any, *, critical: bool) -> None:
    frame = maker.frame("NIRC2", make_file(HEADER), PATH)
    calls = [
        RuleCall(rule="test_crash", critical=critical),
        RuleCall(rule="test_two", params={"level": 3}),
        RuleCall(rule="test_two", params={"level": 4}),
        RuleCall(rule="test_two", params={"level": 4, "name": "NEVER"}, when={"UTC": ""}),
    ]
    out = run_rules(frame, calls)
    assert "BEFORE" not in out.keywords  # all of a rule or nothing
    assert out.keywords["X"] == (4.0, "KOA: Set by the archive")
    assert "NEVER" not in out.keywords
    crash, first, second = out.findings
    assert (crash.code, crash.step) == ("RULE_CRASHED", "test_crash")
    assert crash.severity is (Severity.ERROR if critical else Severity.WARNING)
    assert "too much" in crash.message
    # A rule sees what earlier ones have set.
    assert [(f.code, f.message) for f in (first, second)] == [
        ("SEEN", ""),
        ("SEEN", "3.0"),
    ]


def test_identity_is_part_of_the_outcome(maker: Any, make_file: Any) -> None:
    header = HEADER | {"UTC": "#### Error ###", "INSTRUME": "", "OUTDIR": "/s/nirc4"}
    out = maker.run("NIRC2", make_file(header), PATH)
    assert out.keywords["INSTRUME"] == ("NIRC2", "KOA: Fixing INSTRUME keyword")
    assert out.keywords["UTC"] == ("05:06:07.00", "KOA: UTC keyword corrected")
    assert (out.findings[0].code, out.findings[0].step) == ("SET_UTC_WARN", "identity")


@pytest.mark.parametrize(
    ("value", "card"),
    [
        (None, "null"),  # facts 3.3
        (float("nan"), "null"),
        (float("inf"), "null"),
        (np.float64(1.5), 1.5),
        (True, True),
        ("é", "&#233;"),
        ("a\nb\x00", "a b\\x00"),
        ("x" * 100, "x" * 68),
        ("'" * 40, "'" * 34),
        ("x" * 60 + "'" * 10, "x" * 60 + "'" * 4),
    ],
)
def test_card_value(value: Any, card: Any) -> None:
    assert card_value(value) == card


WORDS = [
    *("", "on", "off", "in", "out", "spec", "imag", "blue", "red", "fpc", "narrow"),
    *("posi", "vertical angle", "stationary", "#### Error ###", "NaN", "null"),
    *("tracking", "2,2", "0,0", "Large", "BL", "RM2", "mask", "ifu", "1.0_x", "closed"),
    *("2019A_C272", "nan_inf", "1e999_1", "multiholes", "00:00:00.0", "low", "high"),
    *("image", "x_999999999999999999999999", "dark", "object", "telescope", "telsim"),
]
JUNK: Any = st.one_of(
    st.sampled_from(WORDS),
    st.text(string.printable[:95], max_size=20),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.sampled_from([0, 1, 2, 45.0, 1e308, -1e308, 1e-320]),
)
FIXED: dict[str, dict[str, Value]] = {
    "NIRC2": {"INSTRUME": "NIRC2", "FILENAME": "n0001.fits"},
    "KCWI": {"INSTRUME": "KCWI", "CAMERA": "BLUE", "OFNAME": "n0001.fits"},
    "ESI": {"INSTRUME": "ESI", "OUTFILE": "n", "FRAMENO": "0001"},
    "NIRES": {"INSTRUME": "NIRES", "INSTR": "spec", "DATAFILE": "n0001"},
    "GUIDER": {"INSTRUME": "X", "CAMNAME": "y", "OFNAME": "n0001.fits"},
    "LRIS": {"INSTRUME": "LRIS", "OFNAME": "n0001.fits"},
    "NIRSPEC": {"INSTRUME": "NIRSPEC", "CAMERA": "spec", "DATAFILE": "n0001"},
}
KEYS = [
    *("BSCALE", "BZERO", "UT", "UTC", "DATE-OBS", "IMTYPE", "OBSTYPE", "SHRNAME"),
    *("OBSFNAME", "FLIMAGIN", "DOMESTAT", "AXESTAT", "EL", "AZ", "DOMEPOSN"),
    *("XENONPWR", "LAMPPWR", "MINWAVE", "CENWAVE", "MAXWAVE", "GRSNAME"),
    *("CAMNAME", "ROTMODE", "ROTPOSN", "PARANTEL", "PARANG", "RA", "DEC"),
    *("EQUINOX", "COADDS", "ITIME", "TRUITIME", "ELAPTIME", "PSINAME", "PSONAME"),
    *("XPOSURE", "EXPTIME", "IFUNAM", "BINNING", "BGRATNAM", "BCWAVE", "BNASNAM"),
    *("SATURATE", "SLMSKNAM", "HATCHPOS", "LAMPQTZ1", "LAMPAR1", "PRISMNAM"),
    *("IMFLTNAM", "LDFLTNAM", "DWFILNAM", "OBSMODE", "PROGNAME", "OUTDIR"),
    *("OBSERVER", "FRAMENUM", "TTIME", "SLITNAME", "OBJECT", "AIRMASS"),
    *("LEV0TYPE", "TELESCOP", "KOAIMTYP"),
]
KINDS = ["u1", ">i2", ">i4", ">i8", ">f4", ">f8"]
NIGHT = Night(
    slots=(Slot(project="U1"), Slot(project="?", start=time(9))),
    sunrise=time(16),
    sunset=time(5),
)
FACTS = [
    Facts(prepared_at=datetime(2020, 1, 1, tzinfo=UTC)),
    Facts(prepared_at=datetime(2020, 1, 1, tzinfo=UTC), night=NIGHT),
]


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(FIXED)),
    header=st.dictionaries(st.sampled_from(KEYS), JUNK),
    kind=st.sampled_from([None, *KINDS]),
    shape=st.sampled_from([(4,), (30, 40), (25, 21), (2, 3, 4)]),
    facts=st.sampled_from(FACTS),
)
def test_no_header_crashes_a_rule(
    maker: Any,
    make_file: Any,
    name: str,
    header: Any,
    kind: Any,
    shape: Any,
    facts: Any,
) -> None:
    image = None
    if kind:
        image = np.arange(np.prod(shape)).reshape(shape).astype(kind)
        if kind[1] == "f":
            image.flat[0] = np.inf
    raw = make_file(header | FIXED[name], image)
    frame = maker.frame(name, raw, PATH, facts)
    out = run_rules(frame, frame.instrument.rules)
    assert [f for f in out.findings if f.code == "RULE_CRASHED"] == []
    hdu = frame.hdus[0]
    edited = edit_header(raw, hdu, out.updates)
    assert len(edited) % 2880 == 0
    core_metadata(frame, out, 1)
    program_of(frame, out)


def test_common_keywords_of_the_other_eight(maker: Any, dump: Any) -> None:
    """A frame of every instrument goes through, with its common keywords."""
    found = dump("LRIS/b150910_2036.txt")
    out = maker.run("LRIS", found.raw, "/s/sdata243/lris8/2015sep10/b150910_2036.fits")
    keys = {"KOAID", "OFNAME", "UT", "SEMESTER", "PROGID", "OA", "DATLEVEL"}
    assert keys <= out.keywords.keys()
    # Its pixels are in the extensions.
    none = {"SET_IMAGE_STATS_ERROR", "SET_NPIXSAT_ERROR"}
    assert {f.code for f in out.findings} - none <= {"INVALID_PROGID_WARN"}
