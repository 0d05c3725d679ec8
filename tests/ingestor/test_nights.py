"""What a night's numbers mean."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from koa_ingestor.nights import Group, Moment, judge, latency, report, slowest
from koa_shared.contracts import Inventory
from koa_shared.reports import Verdict
from tests.conftest import NOON

NIGHT = NOON.date().isoformat()
MORROW = NOON + timedelta(days=1)
COUNTS = {"announced": 3, "archived": 3}


def disk(**more: Any) -> Inventory:
    known = {"night": NIGHT, "instrument": "KCWI", "at": MORROW, "on_disk": 3, "announced": 3}
    return Inventory.model_validate(known | more)


@pytest.mark.parametrize(
    ("counts", "over", "compared", "verdict", "word"),
    [
        ({}, True, True, Verdict.COMPLETE, "3 of 3"),
        ({"archived": 2, "duplicate": 1}, True, True, Verdict.COMPLETE, "3 of 3"),
        ({"found": 1}, True, True, Verdict.COMPLETE, "no keyword had told of them: 1."),
        ({"archived": 2, "invalid": 1}, True, True, Verdict.INCOMPLETE, "Invalid"),
        ({"archived": 2, "parked": 1}, True, True, Verdict.INCOMPLETE, "Parked"),
        ({"gaps": 2}, True, True, Verdict.INCOMPLETE, "Gaps in the frame numbers on the disks: 2."),
        ({"archived": 2, "unfinished": 1}, True, True, Verdict.UNFINISHED, "on their way: 1."),
        ({"untaken": 2}, True, True, Verdict.UNFINISHED, "not taken on yet: 2."),
        ({}, False, True, Verdict.UNFINISHED, "The UT date is not over."),
        ({}, True, False, Verdict.UNPROVEN, "not compared after the last frame."),
        ({"invalid": 1, "unfinished": 1}, False, False, Verdict.INCOMPLETE, "not over"),
        ({"unfinished": 1}, True, False, Verdict.UNFINISHED, "not compared"),
    ],
)
def test_the_verdict_has_its_reasons(
    counts: dict[str, int], *, over: bool, compared: bool, verdict: Verdict, word: str
) -> None:
    found, reasons = judge(Counter(COUNTS | counts), over=over, compared=compared)
    assert found is verdict
    assert word in " ".join(reasons)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (disk(), Verdict.COMPLETE),
        (None, Verdict.UNPROVEN),
        (disk(at=None), Verdict.UNPROVEN),
        (disk(at=NOON - timedelta(hours=1)), Verdict.UNPROVEN),
        (disk(on_disk=4), Verdict.UNFINISHED),
        (disk(on_disk=4, announced=4), Verdict.UNFINISHED),
        (disk(frame_gaps=["/s/kb0002-0003"]), Verdict.INCOMPLETE),
    ],
)
def test_the_disks_are_part_of_the_verdict(seen: Inventory | None, verdict: Verdict) -> None:
    groups = [Group("KCWI", 0, "COMPLETE", "object", 3, 0, 60.0, 300)]
    disks = {"KCWI": seen} if seen else {}
    told = report(groups, [Moment("KCWI", 0, NOON, 3.0)], disks, NIGHT, MORROW)
    assert (told.verdict, told.instruments[0].verdict) == (verdict, verdict)
    reduced = [group._replace(level=1) for group in groups]
    told = report(reduced, [Moment("KCWI", 1, NOON, None)], {}, NIGHT, MORROW)
    assert told.instruments[0].verdict is Verdict.COMPLETE  # no disk tells of it
    assert (told.verdict, told.reasons) == (Verdict.UNPROVEN, ["No raw frame was announced."])


def test_products_are_told_and_leave_the_verdict_alone() -> None:
    raw = Group("KCWI", 0, "COMPLETE", "object", 3, bytes=300)
    reduced = [
        Group("KCWI", 1, "COMPLETE", "object", 1, bytes=50, pipeline="KCWI_DRP 1.1.0"),
        Group("KCWI", 1, "COMPLETE", None, 1, bytes=50, pipeline="KCWI_DRP 1.2.0"),
        Group("KCWI", 1, "INVALID", None, 1),
        Group("KCWI", 1, "MISSING", None, 2),
    ]
    moments = [Moment("KCWI", level, NOON, seconds) for level, seconds in ((0, 1.0), (1, 70.0))]
    told = report([raw, *reduced], moments, {"KCWI": disk()}, NIGHT, MORROW)
    row = told.instruments[1]
    assert (row.announced, row.archived, row.invalid, row.missing) == (3, 2, 1, 2)
    assert row.pipelines == ["KCWI_DRP 1.1.0", "KCWI_DRP 1.2.0"]
    assert (row.latency and row.latency.max, [one.max for one in told.latencies]) == (70.0, [1.0])
    assert (told.verdict, row.verdict) == (Verdict.COMPLETE, Verdict.INCOMPLETE)
    [why] = told.reasons
    assert why.startswith("KCWI, level 1: 2 of 3 are in the archive. Invalid")
    assert why.endswith("Science frames of which no set of products came: 2.")
    young = report([raw, *reduced[3:]], moments, {"KCWI": disk()}, NIGHT, NOON)
    assert young.instruments[1].verdict is Verdict.UNFINISHED  # they may still come


def test_percentiles_are_values_that_were_measured() -> None:
    assert latency([]) is None
    told = latency(float(n) for n in range(1, 101))
    assert told is not None
    assert (told.p50, told.p90, told.p99, told.max, told.within_minute) == (50, 90, 99, 100, 60)
    one = latency([7.0, None])
    assert one is not None
    assert (one.frames, one.p50, one.p99, one.max) == (1, 7, 7, 7)


def test_the_slowest_step_is_named() -> None:
    times = {"acquired": 0, "detected": 1, "queued": 2, "available": 9}
    timeline = {k: (NOON + timedelta(seconds=s)).isoformat() for k, s in times.items()}
    row = {"frame_id": "f", "koaid": "K", "instrument": "ESI", "timeline": timeline}
    slow = slowest(row)
    assert (slow.hop, slow.hop_seconds, slow.latency_seconds) == ("queued to available", 7, 9)


def test_instruments_levels_types_and_hours_are_kept_apart() -> None:
    groups = [
        Group("ESI", 0, "COMPLETE", "object", 2, 0, 60.0, 200),
        Group("ESI", 0, "COMPLETE", None, 1, 0, None, 100),
        Group("ESI", 1, "COMPLETE", "object", 1, 0, 30.0, 50),
        Group("ESI", 0, "INVALID", None, 1, 1, None, 0),
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
