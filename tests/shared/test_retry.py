"""Back-off with full jitter, and circuits (design 5)."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koa_shared.metrics import Metrics
from koa_shared.retry import Circuit, Circuits, backoff


def gauge(metrics: Metrics, dependency: str) -> float | None:
    labels = {"service": "monitor", "dependency": dependency}
    return metrics.registry.get_sample_value("koa_circuit_open", labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("monitor")


@given(st.integers(0, 10_000), st.floats(0.01, 5), st.floats(5, 100))
def test_backoff_stays_within_its_bounds(attempt: int, first: float, longest: float) -> None:
    delay = backoff(attempt, first, longest)
    bound = min(longest, first * 2 ** min(attempt, 16))
    assert bound / 10 <= delay <= bound


def test_backoff_doubles_and_is_jittered() -> None:
    means = [sum(backoff(n, 1.0, 60.0) for _ in range(400)) / 400 for n in range(5)]
    for before, after in pairwise(means):
        assert 1.6 < after / before < 2.5
    assert len({backoff(3) for _ in range(20)}) == 20


def test_a_circuit_opens_and_one_success_closes_it(metrics: Metrics) -> None:
    circuit = Circuit("s3", metrics)
    assert (circuit.wait(), circuit.reason, gauge(metrics, "s3")) == (0.0, "", 0)
    delay = circuit.failed("connection refused")
    assert 0 < circuit.wait() <= delay <= 0.2
    assert (circuit.reason, gauge(metrics, "s3")) == ("connection refused", 1)
    circuit.succeeded()
    assert (circuit.wait(), circuit.reason, gauge(metrics, "s3")) == (0.0, "", 0)


def test_after_the_wait_a_probe_may_go_while_it_is_still_open(metrics: Metrics) -> None:
    circuits = Circuits(metrics)
    time.sleep(circuits["s3"].failed("down"))
    assert circuits.wait(["s3"]) == 0.0
    assert circuits.open(["s3"])


def test_what_was_down_all_night_is_asked_every_ten_seconds(metrics: Metrics) -> None:
    circuit = Circuit("s3", metrics)
    delays = [circuit.failed("down") for _ in range(60)]
    assert max(delays) <= 10.0
    assert max(delays[20:]) > 5.0
    circuit.succeeded()
    assert circuit.failed("again") <= 0.2  # and starts anew


def test_a_peer_that_returns_is_seen_within_two_seconds(metrics: Metrics) -> None:
    """A probe of a peer is one post; one of the store reads a whole frame."""
    circuit = Circuit("ingestor", metrics)
    assert max(circuit.failed("down") for _ in range(60)) <= 2.0


def test_an_empty_reason_opens_it_too(metrics: Metrics) -> None:
    circuit = Circuit("s3", metrics)
    circuit.failed("")
    assert circuit.wait() > 0
    assert circuit.reason


def test_only_what_is_needed_is_waited_for(metrics: Metrics) -> None:
    circuits = Circuits(metrics)
    circuits["s3"].failed("down")
    assert circuits.wait(["ingestor"]) == 0.0
    assert not circuits.open(["ingestor"])
    assert circuits.wait(["ingestor", "s3"]) > 0
    assert circuits.wait([]) == 0.0
    assert circuits["s3"] is circuits["s3"]
