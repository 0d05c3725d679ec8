"""Which files make a set of reduced products, by the shipped instruments (facts 5.5)."""

import pytest
from pydantic import ValidationError

from koa_shared.errors import Rejected
from koa_shared.instruments import load_instruments
from koa_shared.products import Delivery, Incomplete, by_koaid, stored_names

KCWI, NIRES = "KB.20251208.32798.80", "NR.20251208.32798.80"
REDUCED = {(name, r.level): r for name, i in load_instruments().items() for r in i.reduced}


def test_a_kcwi_set_holds_plots_of_frames_before_it() -> None:
    cube, plots = f"redux/{KCWI}_icubed.fits", ("plots/arc_11_a.png", "plots/bars_12_b.png")
    others = ("plots/sky_12_c.png", "plots/sky_11_d.png", "logs/kcwi.log", "kcwi.proc")
    names = [cube, "redux/KB.20251208.11111.10_icubed.fits", *plots, *others]
    assert REDUCED["KCWI", 1].choose(names, KCWI, 12) == [cube, plots[0]]
    science = [cube, plots[0], others[0], "kcwi.proc", "logs/kcwi.log"]
    assert REDUCED["KCWI", 2].choose(names, KCWI, 12) == science
    assert REDUCED["KCWI", 1].choose(names, KCWI, None) == [cube]


def test_a_pypeit_set_holds_calibrations_of_its_detectors() -> None:
    spec = f"Science/spec1d_{NIRES}-HD1_DET01.fits"
    masters = ["Masters/MasterArc_A_1_DET01.fits", "Masters/MasterArc_A_1_DET02.fits"]
    found = REDUCED["NIRES", 2].choose([*masters, "mask.pypeit", spec], NIRES, None)
    assert found == [spec, "mask.pypeit", masters[0]]


def test_a_set_that_lacks_a_file_is_none() -> None:
    with pytest.raises(Incomplete, match="icube"):
        REDUCED["KCWI", 1].choose(["plots/arc_1_a.png"], KCWI, 2)


@pytest.mark.parametrize("key", sorted(REDUCED))
def test_an_empty_directory_holds_no_set(key: tuple[str, int]) -> None:
    with pytest.raises(LookupError):
        REDUCED[key].choose([], KCWI, 1)


def test_koaids_of_a_night() -> None:
    names = [f"Science/spec1d_{NIRES}-x.fits", f"{KCWI}.fits", "NR.20251209.00001.10.fits", "a"]
    assert by_koaid(names, ("NR", "NI"), "2025-12-08") == {NIRES: names[:1]}


def test_names_in_the_archive_are_unique() -> None:
    assert stored_names(["a/x.log", "b/x.log", "b/y.log"]) == {
        "a/x.log": "a_x.log", "b/x.log": "b_x.log", "b/y.log": "y.log",
    }  # fmt: skip


GOOD = {
    "instrument": "KCWI", "level": 1, "koaid": KCWI, "pipeline": "KCWI_DRP",
    "pipeline_version": "1", "directory": "/s/sdata1400/kcwi1/2025dec08",
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"night": "2025-12-08"}, {"koaid": None}, {"level": 0}, {"level": 3},
        {"directory": "relative"}, {"files": ["../../etc/passwd"]}, {"files": ["/etc/passwd"]},
        {"manifest": {"a": "no digest"}}, {"koaid": "../x"}, {"files": ["a\0b"]}, {"files": [""]},
        {"koaid": "KB.20251399.00000.00"}, {"koaid": None, "night": "2025-13-99"},
        {"files": ["a"], "manifest": {"b": "0" * 64}},
    ],
)  # fmt: skip
def test_a_delivery_says_one_thing(wrong: dict[str, object]) -> None:
    assert Delivery.model_validate(GOOD).koaid == KCWI
    with pytest.raises((ValidationError, Rejected)):
        Delivery.model_validate(GOOD | wrong).check()
