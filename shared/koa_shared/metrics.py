"""The metrics of design 11, one registry per process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["LATENCY_BUCKETS", "Metrics"]

# Dense below the minute that is the objective, sparse above it (design 11).
LATENCY_BUCKETS = (
    0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 900,
)  # fmt: skip


class Metrics:
    """What every service counts; a service's own `metrics` room adds to it."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.frames = self.counter(
            "koa_frames_total", "Frames that reached a status", ["instrument", "status"]
        )
        self.attempts = self.counter(
            "koa_attempts_total",
            "Attempts at a step and how they ended",
            ["service", "step", "outcome"],
        )
        self.findings = self.counter(
            "koa_findings_total", "Findings by code", ["code", "instrument"]
        )
        self.hop = self.histogram(
            "koa_hop_seconds",
            "Time between two points of a frame's timeline",
            ["hop", "instrument"],
        )
        self.depth = self.gauge(
            "koa_queue_depth", "Jobs that wait or run", ["service", "queue"]
        )
        self.oldest = self.gauge(
            "koa_queue_oldest_seconds",
            "Age of the oldest job that waits",
            ["service", "queue"],
        )
        self.parked = self.gauge(
            "koa_parked", "Frames parked for an operator", ["service"]
        )
        self.circuit = self.gauge(
            "koa_circuit_open",
            "1 while a dependency's circuit is open",
            ["service", "dependency"],
        )
        self.skew = self.counter(
            "koa_clock_skew_total",
            "Frames whose file time could not be believed",
            ["instrument"],
        )

    def counter(self, name: str, text: str, labels: list[str]) -> Counter:
        """Add a counter to this process's registry."""
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        """Add a gauge to this process's registry."""
        return Gauge(name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, labels: list[str]) -> Histogram:
        """Add a histogram of seconds to this process's registry."""
        return Histogram(
            name, text, labels, buckets=LATENCY_BUCKETS, registry=self.registry
        )
