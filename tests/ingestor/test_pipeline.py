"""What the ingestor decides: "same bytes" (design 4), archive keys (design 6), priority."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from koa_ingestor.pipeline import Claimed, Verdict, archive_key, clock_skew, judge, priority
from koa_shared.contracts import FilePrepared, FileWritten, Timeline

Make = Callable[..., FilePrepared]


@pytest.fixture
def frame(new_file: Callable[..., FileWritten], new_prepared: Make) -> Make:
    """Make a prepared frame: `frame(raw, generation)`, always the same frame_id."""
    return lambda raw="a", generation=1: new_prepared(new_file(), generation, raw)


@pytest.fixture
def held(frame: Make) -> Callable[..., Claimed]:
    """Make what the KOAID holds: `held(version, whose, raw, generation, committed)`."""

    def held(
        version: int, whose: str, raw: str = "a", generation: int = 1, *, committed: bool = True
    ) -> Claimed:
        frame_id = frame().frame_id if whose == "mine" else whose
        return Claimed(version, frame_id, generation, raw * 64, committed)

    return held


Held = Callable[..., Claimed]


def test_a_free_koaid(frame: Make) -> None:
    assert judge(frame(), [], accepted=False) == (Verdict.NEW, None)


def test_same_raw_of_another_frame_is_a_duplicate(frame: Make, held: Held) -> None:
    theirs = held(1, "B", "a")
    assert judge(frame("a"), [theirs], accepted=False) == (Verdict.DUPLICATE, theirs)
    assert judge(frame("a"), [theirs], accepted=True) == (Verdict.DUPLICATE, theirs)


def test_same_raw_as_an_older_version_is_a_duplicate_of_that(frame: Make, held: Held) -> None:
    versions = [held(1, "B", "a"), held(2, "C", "b")]
    assert judge(frame("a"), versions, accepted=False) == (Verdict.DUPLICATE, versions[0])


def test_a_higher_generation_is_the_next_version(frame: Make, held: Held) -> None:
    for raw in "ab":  # whatever its bytes
        assert judge(frame(raw, 2), [held(1, "mine")], accepted=False) == (Verdict.NEW, None)


def test_other_raw_of_another_frame_is_a_conflict(frame: Make, held: Held) -> None:
    versions = [held(1, "B", "b"), held(2, "B", "c", 2)]
    assert judge(frame("a"), versions, accepted=False) == (Verdict.CONFLICT, versions[1])


def test_an_accepted_conflict_is_the_next_version(frame: Make, held: Held) -> None:
    assert judge(frame("a"), [held(1, "B", "b")], accepted=True) == (Verdict.NEW, None)


def test_after_a_crash_the_same_claim_goes_on(frame: Make, held: Held) -> None:
    mine = held(2, "mine", generation=2, committed=False)
    versions = [held(1, "mine"), mine]
    assert judge(frame("a", 2), versions, accepted=False) == (Verdict.RESUME, mine)


def test_what_an_older_generation_began_holds_nothing_up(frame: Make, held: Held) -> None:
    mine = held(1, "mine", committed=False)
    assert judge(frame("a", 2), [mine], accepted=False) == (Verdict.NEW, None)


@pytest.mark.parametrize("raw", ["a", "b"])
def test_one_at_a_time_claims_a_koaid(frame: Make, held: Held, raw: str) -> None:
    """Neither duplicate nor conflict before the other's bytes are kept."""
    theirs = held(1, "B", raw, committed=False)
    assert judge(frame("a"), [theirs], accepted=False) == (Verdict.WAIT, theirs)


def test_an_accepted_frame_waits_for_a_claim_too(frame: Make, held: Held) -> None:
    versions = [held(1, "B", "b"), held(2, "C", "c", committed=False)]
    assert judge(frame("a"), versions, accepted=True) == (Verdict.WAIT, versions[1])


def test_a_next_version_waits_for_anothers_claim_too(frame: Make, held: Held) -> None:
    versions = [held(1, "mine"), held(2, "C", "c", committed=False)]
    assert judge(frame("a", 2), versions, accepted=False) == (Verdict.WAIT, versions[1])


def test_archive_key() -> None:
    koaid = "KB.20251208.43200.00"
    where = ("KCWI", 0, koaid, 3)
    expected = f"KCWI/20251208/lev0/{koaid}/v3/{koaid}.fits"
    assert archive_key(where, f"{koaid}.fits") == expected


def test_live_before_backlog_and_science_before_calibrations(
    new_file: Callable[..., FileWritten], new_prepared: Make
) -> None:
    def of(origin: str, koaimtyp: str | None) -> int:
        file = new_file(origin=origin)
        return priority(new_prepared(file, metadata={"koaimtyp": koaimtyp}))

    assert of("live", "object") == of("canary", None) == of("live", "undefined")
    order = [
        of(origin, kind)
        for origin in ("live", "manual", "recovered", "reprocess")
        for kind in ("object", "bias")
    ]
    assert order == sorted(set(order))


def test_a_timeline_that_goes_back_says_which_clock() -> None:
    noon, hour = datetime(2025, 12, 8, 12, tzinfo=UTC), timedelta(hours=1)
    whole = Timeline(acquired=noon, detected=noon, queued=noon, available=noon)
    assert clock_skew(whole) == []
    assert clock_skew(Timeline()) == []
    [found] = clock_skew(whole.model_copy(update={"detected": noon + hour}))
    assert (found.code, found.severity) == ("CLOCK_SKEW", "warning")
    assert found.message == "queued is 3600.000 s before detected"
    [found] = clock_skew(Timeline(acquired=noon, available=noon - timedelta(milliseconds=1)))
    assert found.message == "available is 0.001 s before acquired"
