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
        self.registry = registry = CollectorRegistry()
        self.frames = Counter(
            "koa_frames_total",
            "Frames that reached a status",
            ["instrument", "status"],
            registry=registry,
        )
        self.attempts = Counter(
            "koa_attempts_total",
            "Attempts at a step and how they ended",
            ["service", "step", "outcome"],
            registry=registry,
        )
        self.findings = Counter(
            "koa_findings_total",
            "Findings by code",
            ["code", "instrument"],
            registry=registry,
        )
        self.hop = Histogram(
            "koa_hop_seconds",
            "Time between two points of a frame's timeline",
            ["hop", "instrument"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.depth = Gauge(
            "koa_queue_depth",
            "Jobs that wait or run",
            ["service", "queue"],
            registry=registry,
        )
        self.oldest = Gauge(
            "koa_queue_oldest_seconds",
            "Age of the oldest job that waits",
            ["service", "queue"],
            registry=registry,
        )
        self.parked = Gauge(
            "koa_parked", "Frames parked for an operator", ["service"], registry=registry
        )
        self.circuit = Gauge(
            "koa_circuit_open",
            "1 while a dependency's circuit is open",
            ["service", "dependency"],
            registry=registry,
        )
        self.skew = Counter(
            "koa_clock_skew_total",
            "Frames whose file time could not be believed",
            ["instrument"],
            registry=registry,
        )
