"""Programs, semesters, proprietary periods (facts 3.3, 3.4, 3.5)."""

from datetime import UTC, datetime, time
from typing import Any

import pytest

from koa_preparer.providers import Facts, Night, Proposal, Slot
from koa_preparer.rules import identify_program
from koa_preparer.rules.program import is_open_calibration, is_valid, semester

PREPARED = datetime(2019, 6, 15, 12, tzinfo=UTC)
UT = datetime(2019, 6, 15, 9, 30, 20, tzinfo=UTC)


def night(*slots: Slot) -> Night:
    return Night(
        slots=slots,
        sunrise=time(16, 0),
        sunset=time(5, 0),
        oa="jpelletier",
    )


def facts(*slots: Slot, **more: Any) -> Facts:
    return Facts(prepared_at=PREPARED, night=night(*slots), **more)


FIRST = Slot(project="2019A_C272", start=time(6), end=time(9, 30))
SECOND = Slot(project="N123", start=time(10), end=time(15))


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2019-02-01T19:59:59", "2018B"),  # days begin at 10:00 HST = 20:00 UT
        ("2019-02-01T20:00:00", "2019A"),
        ("2019-02-01T20:00:01", "2019A"),
        ("2019-02-02T00:00:00", "2019A"),
        ("2019-08-01T19:59:59", "2019A"),
        ("2019-08-01T20:00:00", "2019B"),
        ("2019-08-02T00:00:00", "2019B"),
        ("2019-12-31T23:00:00", "2019B"),
        ("2020-01-01T10:00:00", "2019B"),
        ("2020-01-31T10:00:00", "2019B"),
        ("2019-06-15T03:29:31", "2019A"),  # facts 8.3
    ],
)
def test_semester(at: str, expected: str) -> None:
    when = datetime.fromisoformat(at).replace(tzinfo=UTC)
    assert semester(when) == expected


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("C272", True),
        ("2019A_C272", True),
        ("U12", True),
        ("ABCDE", True),
        ("", False),
        ("NONE", False),
        ("AB", False),
        ("ABCDEF", False),
        ("undefined", False),
        ("2019_C272", False),
        ("2019A_C272_X", False),
        ("C 72", False),
        ("PROGID", False),
    ],
)
def test_validity(text: str, *, valid: bool) -> None:
    assert is_valid(text) is valid


@pytest.mark.parametrize(
    ("header", "given", "progid", "semid"),
    [
        ({"PROGNAME": "C272"}, facts(), "C272", "2019A_C272"),
        ({"PROGNAME": " c272 "}, facts(FIRST), "C272", "2019A_C272"),
        ({"PROGNAME": "2018B_C272"}, facts(), "C272", "2018B_C272"),
        ({"PROGNAME": "undefined"}, facts(FIRST), "NONE", "2019A_NONE"),
        ({}, facts(), "NONE", "2019A_NONE"),
        ({}, Facts(prepared_at=PREPARED), "NONE", "2019A_NONE"),
        ({}, facts(FIRST), "C272", "2019A_C272"),  # the only entry
        ({}, facts(FIRST, SECOND), "C272", "2019A_C272"),  # 09:30:20 is in 06:00-09:30
        ({"PROGNAME": "C272"}, facts(override="2020B_X001"), "X001", "2020B_X001"),
        (
            {"OUTDIR": "/s/sdata1/x/2019jun15_B"},
            facts(FIRST, SECOND),
            "N123",
            "2019A_N123",
        ),
        (
            {"OUTDIR": "/s/sdata1/x/2019jun15_B/"},
            facts(FIRST, SECOND),
            "N123",
            "2019A_N123",
        ),
        (
            {"OUTDIR": "/s/sdata1/x/2019jun15_E"},
            facts(FIRST, SECOND),
            "NONE",
            "2019A_NONE",
        ),
        ({"OUTDIR": "/s/sdata1/x/d_ToO_U055/"}, facts(FIRST), "U055", "2019A_U055"),
    ],
)
def test_program(maker: Any, header: Any, given: Facts, progid: str, semid: str) -> None:
    found = identify_program(maker.view("NIRES", header), UT, given)
    assert (found.progid, found.semid) == (progid, semid)
    assert found.proposal == (None if progid == "NONE" else semid)
    codes = [n.code for n in found.notes]
    assert codes == ["INVALID_PROGID_WARN"] * (progid == "NONE")


@pytest.mark.parametrize(
    ("clock", "progid"),
    [
        (time(5, 59), "C272"),  # before the first
        (time(9, 30, 59), "C272"),
        (time(9, 31), "NONE"),  # between
        (time(10), "N123"),
        (time(15, 1), "N123"),  # after the last
    ],
)
def test_schedule_by_time(maker: Any, clock: time, progid: str) -> None:
    at = datetime.combine(UT.date(), clock, UTC)
    found = identify_program(maker.view("NIRES", {}), at, facts(FIRST, SECOND))
    assert found.progid == progid


def test_guider_before_the_first_only_if_classical(maker: Any) -> None:  # facts 3.4
    cadence = FIRST.model_copy(update={"kind": "Cadence"})
    early = datetime.combine(UT.date(), time(5), UTC)
    view = maker.view("GUIDER", {"CURRINST": "KCWI"})
    for slot, progid in ((FIRST, "C272"), (cadence, "NONE")):
        found = identify_program(view, early, facts(slot, SECOND))
        assert found.progid == progid


@pytest.mark.parametrize(
    ("header", "progid"),
    [
        ({"PROGNAME": "NIRES Eng"}, "ENG"),
        ({"PROGNAME": "Calibrations"}, "ENG"),
        ({"PROGNAME": "my program"}, "ENG"),
        ({"PROGNAME": "C272", "OUTDIR": "/s/sdata901/nirc2eng/2022jun19"}, "ENG"),
        ({"PROGNAME": "C272", "OUTDIR": "/s/sdata1400/kcwirun/x"}, "ENG"),
        ({"PROGNAME": "C272", "OUTDIR": "/s/sdata1100/osrseng/x"}, "C272"),
        ({"PROGNAME": "C272", "OBSERVER": "Keck IPDM"}, "ENG"),
        ({"PROGNAME": "C272", "CAMERA": "FPC"}, "ENG"),
        ({"OUTDIR": "/s/sdata901/nireseng/x_ToO_U055"}, "U055"),  # not with ToO
        ({"PROGNAME": "C272"}, "C272"),
    ],
)
def test_engineering(maker: Any, header: Any, progid: str) -> None:
    found = identify_program(maker.view("NIRES", header), UT, facts())
    assert found.progid == progid
    assert bool(found.proposal) == (progid != "ENG")


@pytest.mark.parametrize(
    ("name", "kind", "clock", "opened"),
    [
        ("NIRES", "domeflat", time(3, 29, 31), True),  # facts 8.3: before sunset
        ("NIRES", "domeflat", time(16, 0, 1), True),
        ("NIRES", "domeflat", time(9), False),
        ("NIRES", "object", time(3), False),
        ("NIRES", "unknown", time(3), False),
        ("NIRES", "", time(3), False),  # P8: the type is not known yet
        ("MOSFIRE", "dark", time(3), True),  # no table extension, no target
        ("MOSFIRE", "object", time(3), False),
        ("MOSFIRE", "", time(3), False),
        ("HIRES", "", time(3), False),
        ("GUIDER", "bias", time(3), False),
        ("KPF", "bias", time(3), True),
    ],
)
def test_daytime_calibrations_are_open(
    maker: Any, name: str, kind: str, clock: time, *, opened: bool
) -> None:
    view = maker.view(name, {"KOAIMTYP": kind} if kind else {})
    at = datetime.combine(UT.date(), clock, UTC)
    assert is_open_calibration(view, at, night()) is opened
    assert not is_open_calibration(view, at, None)  # an unknown night opens nothing


def test_image_type_comes_before_the_period(maker: Any) -> None:  # facts 3.2, 7.3 P8
    for instrument in maker.instruments.values():
        rules = [call.rule for call in instrument.rules]
        if "image_type" in rules:
            assert rules.index("image_type") < rules.index("program"), instrument.name


@pytest.mark.parametrize(
    ("name", "header", "extensions", "opened"),
    [
        ("DEIMOS", {}, ["BINTABLE"], False),
        ("DEIMOS", {}, ["IMAGE"], True),
        ("LRIS", {"SLITNAME": "long_1.0"}, [], True),
        ("LRIS", {"SLITNAME": "secret_mask"}, [], False),
    ],
)
def test_target_info(
    maker: Any, name: str, header: Any, extensions: list[str], *, opened: bool
) -> None:
    view = maker.view(name, header | {"KOAIMTYP": "dark"}, extensions=extensions)
    at = datetime.combine(UT.date(), time(3), UTC)
    assert is_open_calibration(view, at, night()) is opened


KNOWN = Proposal(
    pi="de Kleer", institution="Cal Tech", title="O" * 49 + "é" + "x" * 120, propint=12
)
HEADER: dict[str, Any] = {
    "INSTRUME": "NIRES",
    "INSTR": "spec",
    "DATAFILE": "s190615_0020",
    "DATE-OBS": "2019-06-15",
    "UTC": "09:30:20.00",
    "OBSTYPE": "object",
    "PROGNAME": "C272",
}


def run(maker: Any, make_file: Any, header: Any, given: Facts) -> Any:
    path = "/s/sdata1500/nires9/2019jun15/s190615_0020.fits"
    return maker.run("NIRES", make_file(HEADER | header), path, given)


def test_keywords_of_a_known_program(maker: Any, make_file: Any) -> None:
    out = run(maker, make_file, {}, facts(proposal=KNOWN))
    values = {k: v for k, (v, _) in out.keywords.items()}
    assert values["SEMESTER"] == "2019A"
    assert (values["PROGID"], values["PROGPI"]) == ("C272", "de Kleer")
    assert values["PROGINST"] == "CalTech"
    title = "O" * 49 + "&#233;" + "x" * 120
    assert out.extra["PROGTITL"] == title
    parts = values["PROGTL1"], values["PROGTL2"], values["PROGTL3"]
    assert parts == (title[:50], title[50:100], title[100:150])
    assert out.extra["PROPINT"] == 12
    assert out.extra["SEMID"] == "2019A_C272"
    assert "PROPINT" not in out.keywords


@pytest.mark.parametrize(
    ("header", "given", "propint", "codes"),
    [
        ({}, facts(), 18, {"PROPINT_ERROR"}),
        ({}, facts(missing=("proposal",)), 18, {"PROPINT_ERROR", "PROP_API_ERROR"}),
        ({"PROGNAME": "E123"}, facts(), 18, set()),
        ({"PROGNAME": ""}, facts(), 18, {"INVALID_PROGID_WARN"}),
        ({"PROGNAME": "eng"}, facts(), 18, set()),
        ({}, facts(proposal=KNOWN), 12, set()),
        ({"OBSTYPE": "dark", "UTC": "03:00:00.00"}, facts(proposal=KNOWN), 0, set()),
        ({"OBSTYPE": "object", "UTC": "03:00:00.00"}, facts(proposal=KNOWN), 12, set()),
    ],
)
def test_propint(
    maker: Any, make_file: Any, header: Any, given: Facts, propint: int, codes: set[str]
) -> None:
    out = run(maker, make_file, header, given)
    assert out.extra["PROPINT"] == propint
    ours = {"PROPINT_ERROR", "PROP_API_ERROR", "INVALID_PROGID_WARN"}
    assert {f.code for f in out.findings} & ours == codes
    by_day = header.get("OBSTYPE") == "dark"
    assert (out.keywords["PROGID"][0] == "ENG") == (by_day or header.get("PROGNAME") == "eng")
    if out.keywords["PROGID"][0] == "ENG":  # facts 3.4
        assert out.keywords["PROGPI"][0] == "nireseng"
        assert out.keywords["PROGINST"][0] == "KECK"
        assert out.extra["PROGTITL"] == "NIRES Engineering"
