"""The rules of KPF (facts 2.1, 2.2, 3.2, 3.4, 3.5, 3.10, 3.11)."""

import string
from datetime import UTC, datetime, time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_preparer.providers import Facts, Night, Proposal
from koa_shared.errors import FrameFault

NAME = "KP.20240422.28832.89"
PATH = f"/s/sdata1701/kpf1/2024apr21/L0/{NAME}.fits"
HEADER: dict[str, Any] = {
    "INSTRUME": "KPF",
    "OFNAME": f"{NAME}.fits",
    "DATE-OBS": "2024-04-22",
    "UT": "08:00:32.82",
    "IMTYPE": "Object",
    "OBJECT": "T001823",
    "ELAPSED": 600.068,
    "DATE-BEG": "2024-04-22T08:00:32.886179",
    "DATE-END": "2024-04-22T08:10:32.954200",
    "GREEN": "YES",
    "RED": "YES",
    "CA_HK": "YES",
    "PROGNAME": "C050",
}
TITLE = "A title that does not fit one card of a header, because it is as long as titles are"
FACTS = Facts(
    prepared_at=datetime(2024, 4, 22, 8, 12, tzinfo=UTC),
    night=Night(sunrise=time(15, 30), sunset=time(4, 45), oa="aconnor"),
    proposal=Proposal(pi="Howard", institution="CIT", title=TITLE, propint=24),
)


def cases(section: str, table: Any) -> Any:
    return [pytest.param(*row, id=f"facts {section}: {name}") for name, row in table.items()]


def run(maker: Any, make_file: Any, header: Any, facts: Facts = FACTS) -> Any:
    return maker.run("KPF", make_file(HEADER | header), PATH, facts)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


def codes(out: Any) -> set[str]:
    return {finding.code for finding in out.findings}


KINDS = {
    "object": ({}, "object"),
    "the sun": ({"OBJECT": "SoCal"}, "solar"),
    "the sun's name alone": ({"IMTYPE": "Dark", "OBJECT": "SoCal"}, "dark"),
    "another name": ({"OBJECT": "SoCal-2"}, "object"),
    "bias": ({"IMTYPE": "Bias"}, "bias"),
    "dark": ({"IMTYPE": "Dark"}, "dark"),
    "arc lamp": ({"IMTYPE": "Arclamp"}, "arclamp"),
    "flat lamp": ({"IMTYPE": "Flatlamp"}, "flatlamp"),
    "dome flat": ({"IMTYPE": "Domeflat"}, "domeflat"),
    "twilight flat": ({"IMTYPE": "Twiflat"}, "twiflat"),
    "undefined": ({"IMTYPE": "Undefined"}, "undefined"),
    "unheard of": ({"IMTYPE": "Focus"}, "undefined"),
    "none": ({"IMTYPE": ""}, "undefined"),
    "a number": ({"IMTYPE": 7}, "undefined"),
}


@pytest.mark.parametrize(("header", "kind"), cases("3.10", KINDS))
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert ("KOAIMTYP_UDF" in codes(out)) == (kind == "undefined")


@pytest.mark.parametrize(
    ("ofname", "ok"),
    cases(
        "2.2",
        {
            "as KPF writes it": (f"{NAME}.fits", True),
            "without .fits": (NAME, True),
            "another date": ("KP.20240423.28832.89.fits", False),
            "no date": ("KP.20249999.28832.89.fits", False),
            "three parts": ("KP.20240422.28832.fits", False),
            "five parts": ("KP.20240422.28832.89.1.fits", False),
            "four digits of seconds": ("KP.20240422.2883.89.fits", False),
            "three digits of the fraction": ("KP.20240422.28832.890.fits", False),
            "letters": ("KP.20240422.2883x.89.fits", False),
            "a suffix": (f"{NAME}_2.fits", False),
            "a camera's file": ("kpf_215921.fits", False),
        },
    ),
)
def test_koaid_is_the_original_name(maker: Any, make_file: Any, ofname: str, *, ok: bool) -> None:
    if not ok:
        with pytest.raises(FrameFault) as raised:
            run(maker, make_file, {"OFNAME": ofname})
        assert raised.value.code == "KOAID_CREATE_FAIL"
        return
    out = run(maker, make_file, {"OFNAME": ofname})
    assert value(out, "KOAID") == f"{NAME}.fits"
    assert value(out, "OFNAME") == f"{NAME}.fits"
    assert value(out, "UTC") == "08:00:32.82"  # from UT, and not the KOAID's
    assert value(out, "SEMESTER") == "2024A"


def test_a_date_must_be_one_though_none_is_told(maker: Any, make_file: Any) -> None:
    header = {"DATE-OBS": "#### Error ###", "OFNAME": "KP.20249999.28832.89.fits"}
    with pytest.raises(FrameFault, match="no KOAID"):
        run(maker, make_file, header)


def test_without_a_name_koaid_is_of_the_time(maker: Any, make_file: Any) -> None:  # facts 2.2
    out = run(maker, make_file, {"OFNAME": ""})
    assert value(out, "KOAID") == "KP.20240422.28832.82.fits"
    assert "BAD_OFNAME" in codes(out)


@pytest.mark.parametrize(
    ("header", "utc"),
    cases(
        "2.1",
        {
            "UT": ({}, "08:00:32.82"),
            "UTC goes first": ({"UTC": "08:00:33.10"}, None),
            "neither": ({"UT": ""}, "05:06:07.00"),
        },
    ),
)
def test_time(maker: Any, make_file: Any, header: Any, utc: str | None) -> None:
    out = run(maker, make_file, header)
    assert out.keywords.get("UTC", (None,))[0] == utc
    assert value(out, "KOAID") == f"{NAME}.fits"


@pytest.mark.parametrize(
    ("given", "selected", "forced"),
    cases(
        "2.1",
        {
            "KPF": ("KPF", "KPF", None),
            "another instrument": ("HIRES", "HIRES", "KPF"),
            "none": ("", "null", "KPF"),
        },
    ),
)
def test_instrument(
    maker: Any, make_file: Any, given: str, selected: str, forced: str | None
) -> None:
    out = run(maker, make_file, {"INSTRUME": given})
    assert value(out, "INSTSLCT") == selected
    assert out.keywords.get("INSTRUME", (None,))[0] == forced


CAMERAS = {
    "all": ({}, 3900, 6300, 8700),
    "without Ca H&K": ({"CA_HK": "NO"}, 4450, 6575, 8700),
    "Ca H&K is not told": ({"CA_HK": ""}, 4450, 6575, 8700),
    "red": ({"CA_HK": "no", "GREEN": "no"}, 5900, 7300, 8700),
    "green": ({"CA_HK": "no", "RED": "no"}, 4450, 5175, 5900),
    "Ca H&K": ({"GREEN": "NO", "RED": "NO"}, 3900, 4175, 4450),
    "Ca H&K and green": ({"RED": "NO"}, 3900, 4900, 5900),
    "Ca H&K and red": ({"GREEN": "NO"}, 3900, 6300, 8700),
    "none": ({"CA_HK": "NO", "GREEN": "NO", "RED": "NO"}, "null", "null", "null"),
    "nothing told": ({"CA_HK": "", "GREEN": "", "RED": ""}, 4450, 6575, 8700),
}


@pytest.mark.parametrize(("header", "blue", "centre", "red"), cases("3.11", CAMERAS))
def test_wavelengths(
    maker: Any, make_file: Any, header: Any, blue: Any, centre: Any, red: Any
) -> None:
    out = run(maker, make_file, header)
    assert [value(out, f"WAVE{end}") for end in ("BLUE", "CNTR", "RED")] == [blue, centre, red]
    assert maker.instruments["KPF"].wave_unit == "angstrom"


BEGIN, END = "DATE-BEG", "DATE-END"
TIMES = {
    "ELAPSED": ({}, 600),
    "rounded up": ({"ELAPSED": 599.5}, 600),
    "given": ({"ELAPTIME": 12.5}, None),
    "0": ({"ELAPSED": 0.0}, 0),
    "the shutter's times": ({"ELAPSED": ""}, 600),
    "ELAPSED is wild": ({"ELAPSED": "#### Error ###"}, 600),
    "over midnight": (
        {"ELAPSED": "", BEGIN: "2024-04-21T23:59:50.5", END: "2024-04-22T00:01:00.1"},
        69,
    ),
    "whole seconds": (
        {"ELAPSED": "", BEGIN: "2024-04-22T08:00:11.1", END: "2024-04-22T08:00:12.1"},
        1,
    ),
    "no end": ({"ELAPSED": "", END: ""}, None),
    "no time": ({"ELAPSED": "", BEGIN: "2024-04-22"}, None),
}


@pytest.mark.parametrize(("header", "elapsed"), cases("3.11", TIMES))
def test_elapsed_time(maker: Any, make_file: Any, header: Any, elapsed: int | None) -> None:
    out = run(maker, make_file, header)
    assert out.keywords.get("ELAPTIME", (None,))[0] == elapsed
    missing = elapsed is None and "ELAPTIME" not in header
    assert ("SET_ELAPTIME_ERROR" in codes(out)) == missing


@pytest.mark.parametrize(
    ("header", "progid", "written"),
    cases(
        "3.4",
        {
            "PROGNAME": ({"GRPROGNA": "U001", "RDPROGNA": "U002"}, "C050", None),
            "green camera": (
                {"PROGNAME": "", "GRPROGNA": "U001", "RDPROGNA": "U002"},
                "U001",
                "U001",
            ),
            "red camera": ({"PROGNAME": "", "RDPROGNA": "U002"}, "U002", "U002"),
            "none": ({"PROGNAME": ""}, "NONE", None),
            "engineering": ({"PROGNAME": "", "GRPROGNA": "KPF eng"}, "ENG", "KPF eng"),
            "engineering account": ({"OUTDIR": "/s/sdata1701/kpfeng/2024apr21"}, "ENG", None),
            "developers' account": ({"OUTDIR": "/s/sdata1701/kpfdev/2024apr21"}, "ENG", None),
        },
    ),
)
def test_program(maker: Any, make_file: Any, header: Any, progid: str, written: str | None) -> None:
    out = run(maker, make_file, header)
    assert value(out, "PROGID") == progid
    assert out.keywords.get("PROGNAME", (None,))[0] == written


def test_title_stands_in_the_header(maker: Any, make_file: Any) -> None:  # facts 3.3
    out = run(maker, make_file, {})
    assert value(out, "PROGTITL") == TITLE[:68]  # all that a card holds
    assert out.extra["PROGTITL"] == TITLE
    assert value(out, "PROGTL1") == TITLE[:50]
    assert value(run(maker, make_file, {"PROGNAME": "eng"}), "PROGTITL") == "KPF Engineering"
    assert value(run(maker, make_file, {"PROGNAME": "none"}), "PROGTITL") == ""


@pytest.mark.parametrize(
    ("header", "owner"),
    cases(
        "3.5",
        {
            "a calibration by day has no target": (
                {"IMTYPE": "Arclamp", "UT": "20:00:00.00"},
                ("ENG", 0),
            ),
            "one by night has": ({"IMTYPE": "Arclamp"}, ("C050", 24)),
            "the sun by day": ({"OBJECT": "SoCal", "UT": "20:00:00.00"}, ("ENG", 0)),
            "an object by day": ({"UT": "20:00:00.00"}, ("C050", 24)),
        },
    ),
)
def test_proprietary_period(maker: Any, make_file: Any, header: Any, owner: Any) -> None:
    out = run(maker, make_file, header)
    assert (value(out, "PROGID"), out.extra["PROPINT"]) == owner


def test_no_statistics(maker: Any, make_file: Any) -> None:  # facts 3.3
    out = run(maker, make_file, {})
    assert not {"IMAGEMN", "IMAGESD", "IMAGEMD", "NPIXSAT"} & out.keywords.keys()
    assert not codes(out) & {"SET_IMAGE_STATS_ERROR", "SET_NPIXSAT_ERROR"}
    assert value(out, "DATLEVEL") == 0
    assert value(out, "OA") == "aconnor"


def test_real_header(maker: Any, dump: Any) -> None:
    found = dump(f"KPF/{NAME}.txt")
    out = maker.run("KPF", found.raw, PATH)
    expected = {
        "KOAID": f"{NAME}.fits",
        "OFNAME": f"{NAME}.fits",
        "INSTSLCT": "KPF",
        "KOAIMTYP": "object",
        "ELAPTIME": 600,
        "PROGID": "C050",
        "SEMESTER": "2024A",
        "WAVEBLUE": 3900,
        "WAVECNTR": 6300.0,
        "WAVERED": 8700,
    }
    assert {key: value(out, key) for key in expected} == expected
    assert "RULE_CRASHED" not in codes(out)


JUNK = st.one_of(
    st.text(string.printable[:95], max_size=30),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.booleans(),
    st.sampled_from(["#### Error ###", "NaN", "null", "no", "SoCal", "2024-04-22T99:99:99.9"]),
)
KEYS = ["IMTYPE", "OBJECT", "ELAPSED", "ELAPTIME", "DATE-BEG", "DATE-END", "GREEN", "RED"]
KEYS += ["CA_HK", "PROGNAME", "GRPROGNA", "RDPROGNA", "INSTRUME", "UT", "UTC", "OUTDIR"]


@settings(max_examples=100, deadline=None)
@given(header=st.dictionaries(st.sampled_from(KEYS), JUNK))
def test_no_rule_crashes(maker: Any, make_file: Any, header: Any) -> None:
    out = run(maker, make_file, header)
    assert "RULE_CRASHED" not in codes(out)
    assert value(out, "KOAIMTYP")
