"""The contracts: who may set which status, times on the wire, the timeline (design 4)."""

import re
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from koa_shared.contracts import (
    FileWritten,
    Service,
    SourceState,
    Status,
    Timeline,
    may_follow,
    utcnow,
)

State = tuple[int, Status]

# Design 4, "Who may set what", once more and by hand.
SETS = {
    "monitor": "QUEUED",
    "preparer": "PROCESSING TRANSFERRING TRANSFERRED INVALID ERROR",
    "ingestor": "INGESTING COMPLETE DUPLICATE INVALID ERROR",
}
LADDER = ["QUEUED", "PROCESSING", "TRANSFERRING", "TRANSFERRED", "INGESTING"]
ENDS = ["COMPLETE", "INVALID", "ERROR", "DUPLICATE"]
LEGAL = [(Service(by), Status(name)) for by, names in SETS.items() for name in names.split()]


def fold(events: list[tuple[int, Service, Status]]) -> list[State]:
    """The states a frame goes through when these events arrive in this order."""
    states: list[State] = []
    for generation, by, status in events:
        if may_follow(states[-1] if states else None, (generation, status), by):
            states.append((generation, status))
    return states


def rank(status: Status) -> int:
    return LADDER.index(status) if status in LADDER else len(LADDER)


@pytest.mark.parametrize(("by", "status"), list(product(Service, Status)))
def test_each_service_sets_only_its_own(by: Service, status: Status) -> None:
    may = status in SETS[by].split()
    assert may_follow(None, (1, status), by) is may
    assert may_follow((1, Status.QUEUED), (2, status), by) is may


@pytest.mark.parametrize(("old", "new", "by"), list(product(Status, Status, Service)))
def test_within_a_generation_only_upwards(old: Status, new: Status, by: Service) -> None:
    upwards = new in SETS[by].split() and rank(new) > rank(old)
    assert may_follow((3, old), (3, new), by) is upwards
    assert not may_follow((3, old), (2, new), by)
    assert may_follow((3, old), (4, new), by) is (new in SETS[by].split())


@st.composite
def ladders(draw: st.DrawFn) -> list[tuple[int, Service, Status]]:
    """Events as services send them: any of the road, one end a generation; repeats."""
    events = []
    for generation in range(1, draw(st.integers(1, 3)) + 1):
        end = draw(st.sampled_from([pair for pair in LEGAL if pair[1] in ENDS]))
        road = [pair for pair in LEGAL if pair[1] in LADDER]
        some = draw(st.lists(st.sampled_from([*road, end]), min_size=1))
        events += [(generation, by, status) for by, status in some]
    return events


@given(st.data(), ladders())
def test_the_order_of_arrival_does_not_matter(
    data: st.DataObject, events: list[tuple[int, Service, Status]]
) -> None:
    arrived = data.draw(st.permutations(events))
    highest = max((g, rank(s)) for g, _, s in events)
    last = fold(arrived)[-1]
    assert (last[0], rank(last[1])) == highest
    assert last == fold(events)[-1]


anything = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(Service), st.sampled_from(Status)), max_size=30
)


@given(anything)
def test_nothing_leaves_an_end_but_a_new_generation(
    events: list[tuple[int, Service, Status]],
) -> None:
    states = fold(events)
    for (old_generation, old), (generation, new) in pairwise(states):
        assert generation >= old_generation
        if old in ENDS:
            assert generation > old_generation
        if generation == old_generation:
            assert rank(new) > rank(old)


times = st.datetimes(
    datetime(2020, 1, 1),  # noqa: DTZ001 (Hypothesis adds the zone)
    datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
timelines = st.builds(Timeline, **{name: st.none() | times for name in Timeline.model_fields})


@given(timelines, timelines)
def test_a_timeline_is_never_rewritten(mine: Timeline, other: Timeline) -> None:
    merged = mine.merged(other)
    for name in Timeline.model_fields:
        before, offered = getattr(mine, name), getattr(other, name)
        assert getattr(merged, name) == (before if before is not None else offered)
    assert merged.merged(other) == merged.merged(mine) == merged


def test_latency_is_available_minus_acquired() -> None:
    start = datetime(2025, 12, 8, tzinfo=UTC)
    assert Timeline(acquired=start).latency_seconds is None
    assert Timeline(available=start).latency_seconds is None
    both = Timeline(acquired=start, available=start + timedelta(seconds=1.25))
    assert both.latency_seconds == 1.25


@given(times, st.integers(-14 * 60, 14 * 60))
def test_times_on_the_wire_are_utc_with_milliseconds(time: datetime, minutes: int) -> None:
    elsewhere = time.astimezone(timezone(timedelta(minutes=minutes)))
    wire = Timeline(acquired=elsewhere).model_dump(mode="json", exclude_none=True)["acquired"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", wire)
    back = datetime.fromisoformat(wire)
    assert timedelta(0) <= time - back < timedelta(milliseconds=1)  # cut, never rounded


def test_the_wire_loses_nothing_of_utcnow() -> None:
    now = utcnow()
    assert Timeline.model_validate_json(Timeline(acquired=now).model_dump_json()).acquired == now


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        Timeline.model_validate({"acquired": "2025-12-08T01:02:03"})


def test_messages_are_frozen_and_refuse_what_they_do_not_know() -> None:
    known = {"name": "a", "instrument": "KCWI", "connected": True}
    with pytest.raises(ValidationError, match="extra"):
        SourceState.model_validate(known | {"colour": "blue"})
    with pytest.raises(ValidationError, match="frozen"):
        SourceState.model_validate(known).name = "b"  # type: ignore[misc]


@pytest.mark.parametrize("frame_id", ["", "x", "A" * 36, "0" * 36, "f" * 8 + "-1111" * 3 + "-2"])
def test_a_frame_id_is_a_lower_case_uuid(frame_id: str) -> None:
    known = {"source": "a", "instrument": "A", "path": "/s/sdata1/a", "size": 1, "mtime_ns": 1}
    values = known | {"detected": utcnow(), "origin": "live"}
    FileWritten.model_validate(values | {"frame_id": "f" * 8 + "-1111" * 3 + "-" + "0" * 12})
    with pytest.raises(ValidationError, match="frame_id"):
        FileWritten.model_validate(values | {"frame_id": frame_id})
