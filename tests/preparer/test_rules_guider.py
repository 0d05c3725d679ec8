"""The rules of the guide cameras (facts 2.1, 3.2, 3.4, 3.10, 3.11)."""

from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pytest

from koa_preparer.providers import Facts, Night, Slot, Weather
from koa_preparer.providers.gather import gather_facts
from koa_preparer.rules import identify, identify_program, schedule_of
from koa_shared.errors import FrameFault

NAME = "MAGIQ_230611_0042.fits"
PATH = f"/s/sdata1400/guider/2023jun10/{NAME}"
UT = datetime(2023, 6, 11, 8, 30, 56, 220000, UTC)
HEADER: dict[str, Any] = {
    "CURRINST": "KCWI",
    "CAMNAME": "KCWIA",
    "TELESCOP": "Keck II",
    "DATE-OBS": "2023-06-11",
    "UTC": "08:30:56.22",
    "TTIME": 2.0,
    "PROGNAME": "N123",
}
NIGHT = Night(
    slots=(
        Slot(project="C272", start=time(6), end=time(9, 30)),
        Slot(project="N123", start=time(9, 30), end=time(15)),
    ),
    sunrise=time(16),
    sunset=time(5),
    oa="x",
)


def file_of(make_file: Any, header: Any) -> Any:
    return make_file({k: v for k, v in (HEADER | header).items() if v is not None})


def run(maker: Any, make_file: Any, header: Any, path: str = PATH, **facts: Any) -> Any:
    given = Facts(prepared_at=UT, **facts)
    return maker.run("GUIDER", file_of(make_file, header), path, given)


def value(out: Any, keyword: str) -> Any:
    return out.keywords[keyword][0]


def codes(out: Any) -> set[str]:
    return {f.code for f in out.findings}


@pytest.mark.parametrize(
    ("header", "koaid", "instrume"),
    [
        pytest.param({}, "GR.20230611.30656.22_KCWIA", "KCWI", id="2.1-CURRINST"),
        pytest.param(
            {"INSTRUME": "MAGIQ", "CAMNAME": "K1ACAMA"},
            "GR.20230611.30656.22_K1ACAMA",
            "MAGIQ",
            id="2.1-INSTRUME",
        ),
        pytest.param(
            {"UTC": "08:30:56.05"}, "GR.20230611.30656.50_KCWIA", "KCWI", id="2.2-fraction"
        ),
    ],
)
def test_identity(maker: Any, make_file: Any, header: Any, koaid: str, instrume: str) -> None:
    out = run(maker, make_file, header)
    frame = header | {k: pair[0] for k, pair in out.keywords.items()}
    assert frame["KOAID"] == f"{koaid}.fits"
    assert frame["INSTRUME"] == instrume
    assert frame["OFNAME"] == NAME
    assert frame["UT"] == (HEADER | header)["UTC"]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        pytest.param({"CAMNAME": None}, "KOAID_CREATE_FAIL", id="2.1-no-CAMNAME"),
        pytest.param({"CURRINST": None}, "SET_INSTR_ERROR", id="2.1-neither"),
    ],
)
def test_refused(maker: Any, header: Any, code: str) -> None:
    told = {k: v for k, v in (HEADER | header).items() if v is not None}
    with pytest.raises(FrameFault) as raised:
        identify(maker.view("GUIDER", told, PATH))
    assert raised.value.code == code


def test_original_name_must_be_the_file_s(maker: Any, make_file: Any) -> None:  # facts 2.6
    assert "MISMATCHED_FILENAME" in codes(run(maker, make_file, {"OFNAME": "other.fits"}))
    assert "MISMATCHED_FILENAME" not in codes(run(maker, make_file, {"OFNAME": NAME}))


@pytest.mark.parametrize(
    ("header", "path", "number"),
    [
        pytest.param({}, PATH, 42, id="3.3-of-the-name"),
        pytest.param({"FRAMENO": 7}, PATH, None, id="3.3-there"),
        pytest.param({}, "/s/sdata1/0042.fits", 42, id="3.3-nothing-but-digits"),
        pytest.param({}, "/s/sdata1/magiq.fits", None, id="3.3-no-digits"),
    ],
)
def test_frameno(maker: Any, make_file: Any, header: Any, path: str, number: Any) -> None:
    out = run(maker, make_file, header, path)
    assert out.keywords.get("FRAMENO", (None,))[0] == number
    assert ("SET_FRAMENO_ERROR" in codes(out)) == (path.endswith("magiq.fits"))


@pytest.mark.parametrize(
    ("header", "kind", "seconds"),
    [
        pytest.param({"TTIME": 0}, "bias", 0.0, id="3.10-bias"),
        pytest.param({"TTIME": 0.0}, "bias", 0.0, id="3.10-bias-float"),
        pytest.param({"TTIME": 1.2345}, "object", 1.23, id="3.10-object"),
        pytest.param({"TTIME": None}, "object", None, id="3.10-no-TTIME"),
        pytest.param({"TTIME": "#### Error ###"}, "object", None, id="3.10-wild-TTIME"),
        pytest.param({"IMTYPE": "DARK"}, "object", 2.0, id="3.10-IMTYPE-is-not-asked"),
    ],
)
def test_image_type(maker: Any, make_file: Any, header: Any, kind: str, seconds: Any) -> None:
    out = run(maker, make_file, header)
    assert value(out, "KOAIMTYP") == kind
    assert out.keywords.get("ELAPTIME", (None,))[0] == seconds
    assert ("SET_ELAPTIME_ERROR" in codes(out)) == (seconds is None)


def test_exposure_that_is_there_stays(maker: Any, make_file: Any) -> None:
    assert "ELAPTIME" not in run(maker, make_file, {"ELAPTIME": 3.0}).keywords


@pytest.mark.parametrize(
    ("header", "name"),
    [
        pytest.param({"FILTER0": "BG38", "FILTER1": "V"}, "BG38+V", id="3.11-both"),
        pytest.param({"FILTER0": "BG38"}, "BG38", id="3.11-first"),
        pytest.param({"FILTER0": "", "FILTER1": "V"}, "V", id="3.11-second"),
        pytest.param({}, "blank", id="3.11-blank"),
        pytest.param({"FILTER": "RG780", "FILTER0": "V"}, None, id="3.11-there"),
    ],
)
def test_filter(maker: Any, make_file: Any, header: Any, name: Any) -> None:
    out = run(maker, make_file, header)
    assert out.keywords.get("FILTER", (None,))[0] == name


SLIT = (0.38, 0.64, 0.7)
NULLS = ("null", "null", "null")


@pytest.mark.parametrize(
    ("header", "waves"),
    [
        pytest.param({"CAMNAME": "ACAM"}, SLIT, id="ACAM"),
        pytest.param({"CAMNAME": "ACAMA"}, SLIT, id="ACAMA"),
        pytest.param({"CAMNAME": "K1ACAMA"}, SLIT, id="K1ACAMA"),
        pytest.param({"CAMNAME": "K2ACAMA"}, SLIT, id="K2ACAMA"),
        pytest.param({"CAMNAME": "DEIMOS"}, (0.4, 0.65, 0.9), id="DEIMOS"),
        pytest.param({"CAMNAME": "ESI"}, (0.4, 0.65, 0.9), id="ESI"),
        pytest.param({"CAMNAME": "HIRESslit"}, (0.36, 0.68, 1.0), id="HIRESSLIT"),
        pytest.param({"CAMNAME": "KCWIA"}, SLIT, id="KCWIA"),
        pytest.param({"CAMNAME": "KPF"}, (0.95, 1.075, 1.2), id="KPF"),
        pytest.param({"CAMNAME": "LRISoffset"}, SLIT, id="LRISOFFSET"),
        pytest.param({"CAMNAME": "LRISslit"}, SLIT, id="LRISSLIT"),
        pytest.param({"CAMNAME": "MOSFIRE"}, (0.7, 0.85, 1.0), id="MOSFIRE"),
        pytest.param({"CAMNAME": "NIRESA"}, SLIT, id="NIRESA"),
        pytest.param({"CAMNAME": "NIRESslit"}, (1.95, 2.1225, 2.295), id="NIRESSLIT"),
        pytest.param({"CAMNAME": "NIRSPECM"}, SLIT, id="NIRSPECM"),
        pytest.param({"CAMNAME": "NSCAM"}, (0.95, 3.225, 5.5), id="NSCAM"),
        pytest.param({"CAMNAME": "other"}, NULLS, id="no-row"),
        pytest.param({"FILTER0": "BG38"}, (0.335, 0.47, 0.605), id="BG38"),
        pytest.param({"FILTER1": "V"}, (0.5, 0.6, 0.7), id="V"),
        pytest.param({"FILTER": "rg780"}, (0.78, 0.89, 1.0), id="RG780"),
        pytest.param({"FILTER0": "BG38", "FILTER1": "V"}, (0.5, 0.6, 0.7), id="the-last"),
        pytest.param({"FILTER0": "V", "FILTER1": "clear"}, (0.5, 0.6, 0.7), id="the-known"),
        pytest.param({"FILTER0": "clear"}, SLIT, id="the-camera-s"),
    ],
)
def test_wavelengths(maker: Any, make_file: Any, header: Any, waves: Any) -> None:
    out = run(maker, make_file, header)
    assert tuple(value(out, f"WAVE{end}") for end in ("BLUE", "CNTR", "RED")) == waves


def test_wavelengths_are_microns(maker: Any) -> None:
    assert maker.instruments["GUIDER"].wave_unit == "micron"


@pytest.mark.parametrize(
    ("header", "speed"),
    [
        pytest.param({"TARGRADV": "NaN"}, "", id="3.11-NaN"),
        pytest.param({}, "", id="3.11-absent"),
        pytest.param({"TARGRADV": -3.5}, None, id="3.11-there"),
        pytest.param({"TARGRADV": 0}, None, id="3.11-zero-is-there"),
    ],
)
def test_targradv(maker: Any, make_file: Any, header: Any, speed: Any) -> None:
    assert run(maker, make_file, header).keywords.get("TARGRADV", (None,))[0] == speed


@pytest.mark.parametrize(
    ("told", "number"),
    [
        pytest.param("Keck I", 1, id="2.1-K1"),
        pytest.param("Keck II", 2, id="2.1-K2"),
        pytest.param("Keck III", None, id="2.1-wild"),
        pytest.param(None, None, id="2.1-absent"),
    ],
)
def test_telescope(maker: Any, make_file: Any, told: Any, number: Any) -> None:
    """A frame of an unknown telescope has no weather, rather than that of Keck 1."""
    weather = Weather(values={"WXPRESS": 617.0})
    out = run(maker, make_file, {"TELESCOP": told}, weather=weather)
    view = maker.view("GUIDER", {"TELESCOP": told} if told else {})
    assert view.telescope == number
    assert ("TELNR_VALUE_ERROR" in codes(out)) == (number is None)
    assert out.keywords.get("WXPRESS", (None,))[0] == (617.0 if number else None)


@pytest.mark.parametrize(
    ("header", "name", "progid"),
    [
        pytest.param({"CURRINST": "KCWI"}, "KCWI", "C272", id="3.4-CURRINST"),
        pytest.param({"CURRINST": "LRISADC"}, "LRIS", "C272", id="3.4-LRISADC"),
        pytest.param({"CURRINST": "SSC"}, "", "NONE", id="3.4-SSC"),
        pytest.param({"CURRINST": "PCS"}, "", "NONE", id="3.4-PCS"),
        pytest.param({"CURRINST": "#### Error ###"}, "", "NONE", id="3.4-dead-server"),
        pytest.param({}, "", "NONE", id="3.4-absent"),
        pytest.param({"PROGNAME": "U055", "CURRINST": "PCS"}, "", "U055", id="3.4-PROGNAME"),
    ],
)
def test_whose_schedule(maker: Any, header: Any, name: str, progid: str) -> None:
    view = maker.view("GUIDER", header)
    assert schedule_of(view) == name
    found = identify_program(view, UT, Facts(prepared_at=UT, night=NIGHT))
    assert found.progid == progid


def test_the_others_have_their_own_schedule(maker: Any) -> None:
    assert schedule_of(maker.view("NIRES", {"CURRINST": "KCWI"})) == "NIRES"


@pytest.mark.parametrize(
    ("kind", "at", "progid"),
    [
        pytest.param("Classical", time(5), "C272", id="3.4-before-the-first"),
        pytest.param("Twilight", time(5), "NONE", id="3.4-before-no-classical"),
        pytest.param("Classical", time(15, 1), "N123", id="3.4-after-the-last"),
        pytest.param("ToO", time(15, 1), "NONE", id="3.4-after-no-classical"),
        pytest.param("ToO", time(9, 31), "N123", id="3.4-during"),
    ],
)
def test_outside_the_slots(maker: Any, kind: str, at: time, progid: str) -> None:
    slots = tuple(slot.model_copy(update={"kind": kind}) for slot in NIGHT.slots)
    night = NIGHT.model_copy(update={"slots": slots})
    when = datetime.combine(UT.date(), at, UTC)
    view = maker.view("GUIDER", {"CURRINST": "KCWI"})
    found = identify_program(view, when, Facts(prepared_at=UT, night=night))
    assert found.progid == progid


async def test_the_schedule_of_the_instrument_is_asked() -> None:
    class Provider:
        asked: tuple[Any, ...] = ()

        async def night(self, *about: Any) -> Night:
            self.asked += about[1:]
            return NIGHT

        async def weather(self, *_: Any) -> None:
            return None

        def override(self, instrument: str, _: Any) -> str:
            return instrument

    source: Any = Provider()
    facts = await gather_facts(
        source,
        instrument="GUIDER",
        schedule="KCWI",
        telescope=2,
        ut=UT,
        semid_of=lambda _: None,
        wait=1.0,
    )
    assert source.asked == (2, "KCWI")
    assert facts.override == "GUIDER"


def test_no_statistics(maker: Any, make_file: Any) -> None:  # facts 3.2, 3.3
    raw = make_file(HEADER, np.zeros((4, 4), ">i2"))
    out = maker.run("GUIDER", raw, PATH)
    assert not {"IMAGEMN", "NPIXSAT"} & out.keywords.keys()
    assert {"DATLEVEL", "DQA_VERS", "DQA_DATE", "OA", "SEMESTER", "PROGID"} <= out.keywords.keys()


def test_calibration_by_day_keeps_its_period(maker: Any, make_file: Any) -> None:  # facts 3.5
    out = run(maker, make_file, {"TTIME": 0, "UTC": "03:00:00.00"}, night=NIGHT)
    assert value(out, "PROGID") == "N123"
    assert out.extra["PROPINT"] == 18


def test_real_frame(maker: Any, dump: Any) -> None:
    sets = ["CAMNAME='KPF'", "DATE-OBS='2023-06-11'", "UTC='08:30:56.22'"]
    found = dump("GUIDER/kpfguide_cube_4259.txt", sets)
    path = "/s/sdata1701/kpf1/2023jun10/CRED2/kpfguide_cube_4259.fits"
    out = maker.run("GUIDER", found.raw, path)
    assert value(out, "KOAID") == "GR.20230611.30656.22_KPF.fits"
    assert value(out, "FRAMENO") == 4259
    assert value(out, "WAVECNTR") == 1.075
    assert "TELNR_VALUE_ERROR" not in codes(out)
