"""What the monitor decides: paths, when to look again, gaps (facts 1.1, 1.2; design 5)."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koa_monitor.pipeline import (
    Ignored,
    Stat,
    announced_path,
    canary_frame,
    file_written,
    frame_gaps,
    instrument_of,
    is_wanted,
    look_again,
    refusal,
)
from koa_shared.contracts import Origin
from koa_shared.fits import read_structure
from koa_shared.ids import frame_id
from koa_shared.instruments import Instrument, Source, load_instruments

NOW = datetime(2025, 12, 8, tzinfo=UTC)
ALL = load_instruments()
KCWI, ESI = ALL["KCWI"], ALL["ESI"]


def source_of(instrument: Instrument, name: str) -> Source:
    return next(source for source in instrument.sources if source.name == name)


def announced(name: str, value: str, **read: str) -> str:
    instrument = next(i for i in ALL.values() if any(s.name == name for s in i.sources))
    return announced_path(source_of(instrument, name), instrument, value, read)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/s/sdata1400/kcwi1/kb0001.fits", "/s/sdata1400/kcwi1/kb0001.fits"),
        ("/sdata1400/kcwi1/kb0001.fits", "/s/sdata1400/kcwi1/kb0001.fits"),
        ("  /s/sdata1400/kb0001.fits \n", "/s/sdata1400/kb0001.fits"),
    ],
)
def test_the_value_is_the_path(value: str, expected: str) -> None:
    assert announced("kcwi_blue", value) == expected


def test_a_path_built_from_keywords() -> None:
    source = source_of(ESI, "esi")
    read = {"OUTDIR": "/s/sdata700/esi1", "OUTFILE": "e", "LFRAMENO": "7"}
    assert set(source.path_keywords) == set(read)
    assert source.required is not None
    path = announced_path(source, ESI, source.required, read)
    assert path == "/s/sdata700/esi1/e0007.fits"
    for missing in read:
        with pytest.raises(Ignored, match=f"{missing} could not be read"):
            announced_path(source, ESI, source.required, read | {missing: "  "})
        with pytest.raises(Ignored, match=missing):
            announced_path(source, ESI, source.required, {k: read[k] for k in read if k != missing})
    with pytest.raises(Ignored, match="not"):
        announced_path(source, ESI, "nonsense", read)


@pytest.mark.parametrize(
    "path",
    [
        "", "  ", "/s/sdata1400/a\x00.fits", "/elsewhere/a.fits", "kb0001.fits",
        "/s/sdata1400/mira/x.fits", "/s/sdata1100/osiris/test/a.fits",
        "/s/sdata125/hireseng/xdchange/a.fits", "/s/sdata1400/TEMPFITS.fits",
        "/s/sdata1701/KP.20251208.43200.00-1.fits",
    ],
)  # fmt: skip
def test_paths_that_are_not_looked_at(path: str) -> None:
    with pytest.raises(Ignored):
        announced("kcwi_blue", path)
    assert refusal(KCWI, path.strip())


@pytest.mark.parametrize("path", ["/s/sdata1400/a.fits", "/k/operations/x/a.fits"])
def test_paths_that_are(path: str) -> None:
    assert refusal(KCWI, path) is None


def test_a_blank_path_is_told_from_a_nul() -> None:
    assert refusal(KCWI, "") == "the path is blank"
    assert refusal(KCWI, "/s/sdata1/\x00") == "the path holds a NUL"


def test_looks_again_after_10_ms_doubling_to_5_s_until_the_limit() -> None:
    waited, delays = 0.0, []
    while (delay := look_again(NOW, NOW + timedelta(seconds=waited), 120.0)) is not None:
        delays.append(delay)
        waited += delay
    assert delays[:10] == pytest.approx(
        [0.01, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56]
    )
    assert set(delays[11:]) == {5.0}
    assert 120 <= waited < 126


@given(st.floats(-100, 1000), st.floats(0.1, 500))
def test_never_hurries_and_never_sleeps_long(waited: float, limit: float) -> None:
    """Also when the clock was set back in between."""
    delay = look_again(NOW, NOW + timedelta(seconds=waited), limit)
    real = timedelta(seconds=waited).total_seconds()
    assert (delay is None) is (real >= limit)
    assert delay is None or 0.01 <= delay <= 5.0


def test_frame_gaps() -> None:
    night = "/s/sdata1400/kcwi1/2025dec08/"
    names = ["kb0001", "kb0002", "kb0005", "kb0010", "kr0001", "kr0003", "note", "kr0002-x"]
    found = frame_gaps(f"{night}{name}.fits" for name in names)
    assert found == [f"{night}kb0003-0004", f"{night}kb0006-0009", f"{night}kr0002-0002"]


def test_other_directories_are_other_runs() -> None:
    assert frame_gaps(["/s/sdata1/a/k0001.fits", "/s/sdata1/b/k0003.fits"]) == []
    assert frame_gaps([]) == []


@given(st.sets(st.integers(1, 60)))
def test_gaps_and_frames_together_are_whole(numbers: set[int]) -> None:
    gaps = frame_gaps(f"/s/sdata1/k{number:04}.fits" for number in numbers)
    missing = set()
    for gap in gaps:
        first, last = gap.removeprefix("/s/sdata1/k").split("-")
        missing |= set(range(int(first), int(last) + 1))
    everything = set(range(min(numbers), max(numbers) + 1)) if numbers else set()
    assert missing == everything - numbers


def test_at_most_100_gaps_are_told() -> None:
    assert len(frame_gaps(f"/s/sdata1/k{n:04}.fits" for n in range(0, 500, 2))) == 100


def test_what_a_rescan_takes() -> None:
    assert is_wanted(KCWI, "/s/sdata1400/kb0001.fits")
    assert not is_wanted(KCWI, "/s/sdata1400/kb0001.jpg")
    assert not is_wanted(KCWI, "/s/sdata1400/mira/kb0001.fits")
    assert not is_wanted(KCWI, "/s/sdata1400/kcwi1/redux/KB.20251208.43200.00_icubed.fits")
    assert not is_wanted(KCWI, "/tmp/kb0001.fits")


def test_the_instrument_is_told_by_its_data_roots() -> None:
    assert instrument_of(ALL.values(), "/s/sdata1400/x/a.fits") is KCWI
    assert instrument_of(ALL.values(), "/s/sdata14000/a.fits") is None
    assert instrument_of(ALL.values(), "/elsewhere") is None


def test_no_two_instruments_share_a_data_root() -> None:
    roots = [root for instrument in ALL.values() for root in instrument.roots]
    assert len(roots) == len(set(roots))


def test_file_written() -> None:
    stat = Stat("/s/sdata1400/a.fits", 5, 7)
    file = file_written(stat, ("KCWI", "kcwi_blue"), NOW, Origin.LIVE)
    assert (file.instrument, file.source, file.origin) == ("KCWI", "kcwi_blue", "live")
    assert file.frame_id == frame_id("/sdata1400/a.fits", 5, 7) == stat.frame_id


def test_a_canary_is_good_fits() -> None:
    found = read_structure(canary_frame("canary_1.fits", NOW + timedelta(seconds=9.08)))
    [hdu] = found.hdus
    assert (found.odd, hdu.bitpix, hdu.shape, hdu.data_start) == ({}, 16, (256, 256), 2880)
    said = {key: hdu.header.get(key) for key in ("INSTRUME", "DATE-OBS", "UTC", "OFNAME")}
    assert said == {
        "INSTRUME": "CANARY", "DATE-OBS": "2025-12-08", "UTC": "00:00:09.080000",
        "OFNAME": "canary_1.fits",
    }  # fmt: skip
