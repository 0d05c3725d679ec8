"""The metrics of design 11 exist, with their labels; others follow the same style."""

import importlib
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from koa_shared import metrics as shared
from koa_shared.metrics import Metrics

SERVICES = ("monitor", "preparer", "ingestor")
ALL = set(SERVICES)
# As design 11 has them; `origin` is added, to tell the canary's frames from the others.
DESIGN: dict[str, tuple[set[str], set[str]]] = {
    "koa_acquisition_to_availability_seconds": (
        {"instrument", "level", "origin"},
        {"ingestor"},
    ),
    "koa_hop_seconds": ({"hop", "instrument"}, {"ingestor"}),
    "koa_frames_total": ({"instrument", "status", "origin"}, ALL),
    "koa_queue_depth": ({"service", "queue"}, ALL),
    "koa_queue_oldest_seconds": ({"service", "queue"}, ALL),
    "koa_attempts_total": ({"service", "step", "outcome"}, ALL),
    "koa_findings_total": ({"code", "instrument"}, ALL),
    "koa_parked": ({"service"}, ALL),
    "koa_circuit_open": ({"service", "dependency"}, ALL),
    "koa_source_connected": ({"source"}, {"monitor"}),
    "koa_source_heartbeat_age_seconds": ({"source"}, {"monitor"}),
    "koa_clock_skew_total": ({"instrument"}, ALL),
}
BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 900)


def declared(service: str) -> dict[str, MetricWrapperBase]:
    """Return what a service's metrics object has, by the name Prometheus shows."""
    room = vars(importlib.import_module(f"koa_{service}.metrics"))
    classes: list[Any] = [v for v in room.values() if isinstance(v, type)]
    (own,) = (c for c in classes if issubclass(c, Metrics) and c is not Metrics)
    metrics = own().registry._collector_to_names
    return {
        m._name + "_total" * (m._type == "counter"): m
        for m in metrics
        if isinstance(m, MetricWrapperBase)
    }


@pytest.mark.parametrize("service", SERVICES)
def test_the_design_is_there(service: str) -> None:
    seen = {name: set(m._labelnames) for name, m in declared(service).items()}
    wanted = {n: labels for n, (labels, where) in DESIGN.items() if service in where}
    assert {name: seen.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("service", SERVICES)
def test_all_follow_the_style(service: str) -> None:
    for name, metric in declared(service).items():
        assert name.startswith("koa_")
        assert metric._documentation
        if metric._type == "histogram":
            assert name.endswith(("_seconds", "_bytes")), name


def test_buckets() -> None:
    assert shared.BUCKETS == BUCKETS
