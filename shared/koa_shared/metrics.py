"""The metrics of design 11, one registry per process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Dense below the minute that is the objective, sparse above it (design 11).
BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 300, 900)


class Metrics:
    """What every service counts; a service's own `metrics` room adds to it."""

    def __init__(self, service: str) -> None:
        self.service, self.registry = service, CollectorRegistry()
        self.frames = self.counter("koa_frames_total", "Frames by status", "instrument status")
        self.attempts = self.counter("koa_attempts_total", "Attempts", "service step outcome")
        self.findings = self.counter("koa_findings_total", "Findings", "code instrument")
        self.depth = self.gauge("koa_queue_depth", "Jobs that wait or run", "service queue")
        self.oldest = self.gauge("koa_queue_oldest_seconds", "Oldest job's age", "service queue")
        self.parked = self.gauge("koa_parked", "Frames parked for an operator", "service")
        self.circuit = self.gauge("koa_circuit_open", "1 while down", "service dependency")
        self.token_expires = self.gauge(
            "koa_token_expires_seconds", "Time until a token of the tokens file expires", "name"
        )
        self.skew = self.counter("koa_clock_skew_total", "File times not believed", "instrument")

    def counter(self, name: str, text: str, labels: str) -> Counter:
        """Add a counter; `labels` are words."""
        return Counter(name, text, labels.split(), registry=self.registry)

    def gauge(self, name: str, text: str, labels: str) -> Gauge:
        """Add a gauge."""
        return Gauge(name, text, labels.split(), registry=self.registry)

    def histogram(self, name: str, text: str, labels: str) -> Histogram:
        """Add a histogram of seconds."""
        return Histogram(name, text, labels.split(), buckets=BUCKETS, registry=self.registry)
