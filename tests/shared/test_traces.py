"""Traces: off costs nothing, on tells the truth, and a collector that is away harms nobody."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from koa_ingestor.config import Config
from koa_ingestor.metrics import IngestorMetrics
from koa_shared import logs
from koa_shared.contracts import Timeline
from koa_shared.traces import _STEP, Traces

from ..collector import Collector

START, END = datetime(2026, 11, 29, 9, tzinfo=UTC), datetime(2026, 11, 29, 9, 0, 2, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_step_of_others() -> Iterator[None]:
    """A step is its task's; these tests share the context of all."""
    token = _STEP.set(None)
    yield
    _STEP.reset(token)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def test_off_loads_nothing() -> None:
    """FastAPI takes OpenTelemetry's API where it lies about; of the rest nothing is loaded."""
    code = (
        "import sys, koa_monitor.app, koa_preparer.app, koa_ingestor.app\n"
        "from koa_shared.traces import Traces\n"
        "Traces('monitor', '', None).begin('resolve', '')[1]('done')\n"
        "sdk = ('opentelemetry.sdk', 'opentelemetry.exporter', 'google.protobuf', 'requests')\n"
        "sys.exit(any(name.startswith(sdk) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_off_keeps_the_trace() -> None:
    traces, mine = Traces("monitor", "", None), logs.new_trace()
    trace, end = traces.begin("resolve", mine)
    end("done")
    traces.frame(trace, START, END)
    traces.close()
    assert trace == mine
    _STEP.set("of another installation in this process")
    assert traces.timer("s3", nullcontext) is nullcontext


def test_a_step_its_calls_and_the_frame(collector: Collector) -> None:
    traces, mine = Traces("ingestor", f"{collector.url}/", None), logs.new_trace()
    calls = traces.timer("s3", lambda _: nullcontext())
    with calls("bucket"):  # of no step
        pass
    trace, end = traces.begin("ingest", mine)
    logs.bind("ingestor", trace, frame_id="f1", koaid="K1", path="/s/secret", instrument="ESI")
    with calls("copy"):
        pass
    with pytest.raises(OSError, match="secret"), calls("get"):
        raise OSError("secret")
    end("failed")
    traces.frame(trace, START, END)
    traces.close()

    spans = {span["name"]: span for span in collector.spans}
    assert set(spans) == {"frame", "ingest", "s3 copy", "s3 get"}
    assert {span["service"] for span in collector.spans} == {"koa-ingestor"}
    assert {span["trace"] for span in collector.spans} == {mine[3:35], trace[3:35]} == {mine[3:35]}
    names = {"frame_id": "f1", "koaid": "K1", "instrument": "ESI"}
    frame, step = spans["frame"], spans["ingest"]
    assert (frame["parent"], frame["about"]) == ("", names)
    assert frame["end"] - frame["start"] == 2_000_000_000
    assert (step["parent"], step["id"]) == (frame["id"], trace[36:52])
    assert (step["about"], step["error"]) == (names | {"outcome": "failed"}, True)
    assert [spans[f"s3 {call}"]["parent"] for call in ("copy", "get")] == [step["id"]] * 2
    assert [spans[f"s3 {call}"]["error"] for call in ("copy", "get")] == [False, True]
    assert "secret" not in str(collector.spans)


def test_housekeeping_has_no_trace(collector: Collector) -> None:
    traces = Traces("ingestor", collector.url, None)
    trace, end = traces.begin("sweep", "")
    end("done")
    traces.close()
    assert (trace, collector.spans) == ("", [])


def test_what_is_not_sampled_is_not_sent(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    traces = Traces("ingestor", collector.url, None)
    trace, end = traces.begin("ingest", logs.new_trace().removesuffix("01") + "00")
    end("done")
    traces.frame(trace, START, END)
    traces.close()
    assert (trace[-3:], collector.spans) == ("-00", [])


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    traces = Traces("ingestor", "http://127.0.0.1:9", None)
    begun = time.monotonic()
    for _ in range(3000):
        traces.begin("ingest", logs.new_trace())[1]("done")
    assert time.monotonic() - begun < 10
    begun = time.monotonic()
    traces.close()
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("url", ["collector:4318", "ftp://c", "http://secret@collector"])
def test_a_wrong_address_is_told(url: str) -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint") as told:
        Config(dev=True, otlp_endpoint=url)
    assert "secret" not in str(told.value)


def test_the_trace_is_the_exemplar() -> None:
    metrics, trace = IngestorMetrics(), logs.new_trace()
    metrics.available("ESI", 0, "live", Timeline(acquired=START, available=END), trace)
    found = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.exemplar
    ]
    assert found == [("2.0", {"trace_id": trace[3:35]}, 2.0)]
