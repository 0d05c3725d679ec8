"""The metrics of design 11, one registry per process."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Dense below the minute that is the objective, sparse above it (design 11).
BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 900)
# From what a call of a database here takes to what counts as hung (S3: 60 s).
OPERATIONS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60)


class Metrics:
    """What every service counts; a service's own `metrics` room adds to it."""

    def __init__(self, service: str) -> None:
        self.service, self.registry = service, CollectorRegistry()
        ended = "instrument status origin"
        self.frames = self.counter("koa_frames_total", "Frames that ended", ended)
        self.attempts = self.counter("koa_attempts_total", "Jobs' tries", "service step outcome")
        self.findings = self.counter("koa_findings_total", "Findings", "code instrument")
        self.depth = self.gauge("koa_queue_depth", "Jobs that wait or run", "service queue")
        self.oldest = self.gauge("koa_queue_oldest_seconds", "Oldest job's age", "service queue")
        self.parked = self.gauge("koa_parked", "Jobs that failed until they were parked", "service")
        self.circuit = self.gauge("koa_circuit_open", "1 while down", "service dependency")
        self.token_expires = self.gauge(
            "koa_token_expires_seconds", "Time until a token of the tokens file expires", "name"
        )
        self.skew = self.counter("koa_clock_skew_total", "File times not believed", "instrument")
        self.migration = self.gauge(
            "koa_migration_pending", "1 while the schema is not this program's", "service"
        )
        text = "Jobs, and calls of database and s3 with the wait for a thread, by `kind`"
        labels = "service kind operation"
        self.took = self.histogram("koa_operation_seconds", text, labels, OPERATIONS)
        build = self.gauge("koa_build_info", "1 of the version that runs", "service version")
        build.labels(service, version("koa-rti")).set(1)

    def found(self, instrument: str, findings: Iterable[Any]) -> None:
        """Count a frame's findings."""
        for finding in findings:
            self.findings.labels(finding.code, instrument).inc()

    def counter(self, name: str, text: str, labels: str) -> Counter:
        """Add a counter; `labels` are words."""
        return Counter(name, text, labels.split(), registry=self.registry)

    def gauge(self, name: str, text: str, labels: str) -> Gauge:
        """Add a gauge."""
        return Gauge(name, text, labels.split(), registry=self.registry)

    def histogram(self, name: str, text: str, labels: str, buckets: Any = BUCKETS) -> Histogram:
        """Add a histogram of seconds."""
        return Histogram(name, text, labels.split(), buckets=buckets, registry=self.registry)

    def timer(self, kind: str) -> Callable[[str], AbstractContextManager[Any]]:
        """Return what times a block as one operation of this kind."""
        return lambda operation: self.took.labels(self.service, kind, operation).time()
