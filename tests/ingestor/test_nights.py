"""What a night's numbers mean."""

from datetime import timedelta
from typing import Any

import pytest

from koa_ingestor.nights import Group, Moment, judge, latency, rank, report, slowest
from koa_shared.reports import Inventory, Verdict
from tests.conftest import NOON

NIGHT = NOON.date().isoformat()
NO = False
MORROW = NOON + timedelta(days=1)
COUNTS = {
    "announced": 3, "archived": 3, "invalid": 0, "duplicate": 0, "parked": 0,
    "unfinished": 0, "found": 0,
}  # fmt: skip


def disk(**more: Any) -> Inventory:
    known = {"at": MORROW, "on_disk": 3, "announced": 3, "gaps": 0}
    return Inventory.model_validate(known | more)


@pytest.mark.parametrize(
    ("counts", "seen", "over", "verdict", "word"),
    [
        ({}, disk(), True, Verdict.COMPLETE, "3 of 3"),
        ({"archived": 2, "duplicate": 1}, disk(), True, Verdict.COMPLETE, "3 of 3"),
        ({"found": 1}, disk(), True, Verdict.COMPLETE, "by a rescan"),
        ({"archived": 2, "invalid": 1}, disk(), True, Verdict.INCOMPLETE, "1 invalid"),
        ({"archived": 2, "parked": 1}, disk(), True, Verdict.INCOMPLETE, "1 parked"),
        ({"archived": 2, "unfinished": 1}, disk(), True, Verdict.UNFINISHED, "on their way"),
        ({}, disk(), False, Verdict.UNFINISHED, "not over"),
        ({}, disk(on_disk=5), True, Verdict.INCOMPLETE, "2 on the disk"),
        ({}, disk(gaps=1), True, Verdict.INCOMPLETE, "1 gaps"),
        ({}, None, True, Verdict.UNPROVEN, "not compared"),
        ({}, disk(at=NOON - timedelta(hours=1)), True, Verdict.UNPROVEN, "not compared"),
        ({"invalid": 1, "unfinished": 1}, None, False, Verdict.INCOMPLETE, "not over"),
    ],
)
def test_the_verdict_has_its_reasons(
    counts: dict[str, int], seen: Inventory | None, *, over: bool, verdict: Verdict, word: str
) -> None:
    found, reasons = judge(COUNTS | counts, seen, NOON, over=over)
    assert found is verdict
    assert word in " ".join(reasons)


def test_percentiles_are_values_that_were_measured() -> None:
    assert latency([]) is None
    told = latency(float(n) for n in range(1, 101))
    assert told is not None
    assert (told.p50, told.p90, told.p99, told.max, told.within_minute) == (50, 90, 99, 100, 60)
    assert rank([7.0], 0.01) == rank([7.0], 1.0) == 7.0


def test_the_slowest_step_is_named() -> None:
    times = {"acquired": 0, "detected": 1, "queued": 2, "available": 9}
    timeline = {k: (NOON + timedelta(seconds=s)).isoformat() for k, s in times.items()}
    row = {"frame_id": "f", "koaid": "K", "instrument": "ESI", "timeline": timeline}
    slow = slowest(row)
    assert (slow.hop, slow.hop_seconds, slow.latency_seconds) == ("queued to available", 7, 9)


def test_instruments_levels_types_and_hours_are_kept_apart() -> None:
    groups = [
        Group("ESI", 0, "COMPLETE", "object", NO, 2, 60.0, 200),
        Group("ESI", 0, "COMPLETE", None, NO, 1, None, 100),
        Group("ESI", 1, "COMPLETE", "object", NO, 1, 30.0, 50),
        Group("ESI", 0, "INVALID", None, not NO, 1, None, 0),
    ]
    moments = [Moment("ESI", 0, NOON, 3.0), Moment("ESI", 1, MORROW, None)]
    told = report(groups, moments, {"KCWI": disk()}, NIGHT, MORROW)
    assert [(r.instrument, r.level, r.announced) for r in told.instruments] == [
        ("ESI", 0, 4), ("ESI", 1, 1), ("KCWI", 0, 0),
    ]  # fmt: skip
    first = told.instruments[0]
    assert (first.archived, first.invalid, first.found, first.bytes) == (3, 1, 1, 300)
    assert first.exposure_seconds == 60.0
    assert [(t.type, t.frames) for t in first.types] == [("object", 2), (None, 1)]
    assert first.hours[NOON.hour] == 1 == sum(first.hours)
    assert [(b.at, b.p50, b.max) for b in told.latencies] == [(NOON, 3.0, 3.0)]
    assert told.verdict is Verdict.INCOMPLETE
    assert report([], [], {}, NIGHT, MORROW).verdict is Verdict.UNPROVEN
