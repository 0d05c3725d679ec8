"""Identities: KOAIDs equal to the production archive's (facts 2.2), frame_ids (design 4)."""

from datetime import date, time
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koa_shared.ids import Fraction, frame_id, koaid, normal_path, safe_name

DAY = date(2025, 12, 8)


@pytest.mark.parametrize(
    ("ut", "expected"),
    [
        ("03:29:31.36", "12571.36"),
        ("02:05:54.57", "07554.57"),
        ("09:06:38.08", "32798.80"),
        ("00:00:00.05", "00000.50"),
        ("00:00:00.005", "00000.50"),
        ("00:00:00.000007", "00000.07"),
        ("00:00:00", "00000.00"),
        ("00:00:00.1", "00000.10"),
        ("23:59:59.999999", "86399.99"),
    ],
)
def test_vectors_of_facts_2_2(ut: str, expected: str) -> None:
    assert koaid("N2", DAY, time.fromisoformat(ut)) == f"N2.20251208.{expected}"


@pytest.mark.parametrize(
    ("ut", "expected"),
    [
        ("09:06:38.08", "32798.08"),
        ("00:00:00.05", "00000.05"),
        ("00:00:00.005", "00000.00"),
        ("03:29:31.36", "12571.36"),
    ],
)
def test_padded_gives_true_hundredths(ut: str, expected: str) -> None:
    assert koaid("N2", DAY, time.fromisoformat(ut), fraction="padded") == f"N2.20251208.{expected}"


def test_a_suffix_stands_behind_and_a_date_keeps_its_zeros() -> None:
    assert koaid("GR", date(2026, 1, 2), time(1), "_SSC") == "GR.20260102.03600.00_SSC"


fractions = st.sampled_from(("production", "padded"))


@given(st.dates(date(1990, 1, 1)), st.times(), fractions)
def test_the_form_is_always_the_same(day: date, ut: time, fraction: Fraction) -> None:
    name = koaid("KB", day, ut, fraction=fraction)
    assert len(name) == 20
    prefix, ymd, seconds, hundredths = name.split(".")
    assert (prefix, ymd) == ("KB", day.isoformat().replace("-", ""))
    assert len(seconds) == 5
    assert int(seconds) == (ut.hour * 60 + ut.minute) * 60 + ut.second <= 86399
    assert len(hundredths) == 2
    assert hundredths.isdigit()


@given(st.dates(), st.times(), st.integers(100_000, 999_999))
def test_from_a_tenth_of_a_second_on_both_fractions_agree(
    day: date, ut: time, microsecond: int
) -> None:
    ut = ut.replace(microsecond=microsecond)
    name = koaid("KB", day, ut)
    assert name == koaid("KB", day, ut, fraction="padded")
    assert int(name[-2:]) == ut.microsecond // 10_000


paths = st.text(min_size=1).map(lambda text: f"/s/sdata1400/{text}")
numbers = st.integers(0, 2**63)


@given(paths, numbers, numbers)
def test_frame_id_is_stable_and_tells_files_apart(path: str, size: int, mtime: int) -> None:
    found = frame_id(path, size, mtime)
    assert found == frame_id(path, size, mtime) == str(UUID(found))
    others = {
        frame_id(path + "x", size, mtime),
        frame_id(path, size + 1, mtime),
        frame_id(path, size, mtime + 1),
        frame_id(path, mtime, size) if size != mtime else "",
    }
    assert len(others | {found}) == 5


@given(st.lists(st.tuples(paths, numbers, numbers), unique=True, min_size=2, max_size=2))
def test_two_files_never_share_a_frame_id(files: list[tuple[str, int, int]]) -> None:
    assert frame_id(*files[0]) != frame_id(*files[1])


def test_frame_id_is_the_same_for_ever() -> None:
    known = frame_id("/s/sdata1400/kb0001.fits", 5760, 1_765_195_200_123_456_789)
    assert known == "32fd9cf9-68ad-5b49-8e02-402ca89a222c"
    assert UUID(known).version == 5


def test_sdata_is_what_lies_under_s() -> None:
    assert normal_path("/sdata1400/a.fits") == "/s/sdata1400/a.fits"
    assert normal_path("/s/sdata1400/a.fits") == "/s/sdata1400/a.fits"
    assert normal_path("/x/sdata1400/a.fits") == "/x/sdata1400/a.fits"
    assert frame_id("/sdata9/a", 1, 2) == frame_id("/s/sdata9/a", 1, 2)
    assert frame_id("/sdata9/a", 1, 2) != frame_id("/t/sdata9/a", 1, 2)


@given(st.text())
def test_a_safe_name_is_a_plain_file_name(text: str) -> None:
    name = safe_name(text)
    assert name
    assert not name.startswith(".")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
    assert safe_name(name) == name
