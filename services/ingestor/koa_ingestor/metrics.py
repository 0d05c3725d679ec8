"""What the ingestor counts besides what all services count."""

from prometheus_client import Histogram

from koa_shared.contracts import Origin, Timeline
from koa_shared.metrics import LATENCY_BUCKETS, Metrics

__all__ = ["HOPS", "IngestorMetrics"]

# Name, from, to: where the time between the shutter and the archive goes.
HOPS = (
    ("detect", "acquired", "detected"),
    ("queue", "detected", "process_start"),
    ("prepare", "process_start", "process_end"),
    ("transfer", "transfer_start", "transfer_end"),
    ("handover", "transfer_end", "ingest_start"),
    ("copy", "copy_start", "copy_end"),
    ("publish", "copy_end", "available"),
)


class IngestorMetrics(Metrics):
    """The latency that this system exists for."""

    def __init__(self) -> None:
        super().__init__("ingestor")
        self.latency = Histogram(
            "koa_acquisition_to_availability_seconds",
            "Time from the last write of the raw file to its availability",
            ["instrument", "level", "origin"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )

    def available(
        self, instrument: str, level: int, origin: Origin, timeline: Timeline
    ) -> None:
        """Observe a frame that became available for the first time."""
        latency = timeline.latency_seconds
        if latency is not None:
            self.latency.labels(instrument, str(level), origin).observe(latency)
        for hop, start, end in HOPS:
            begun, done = getattr(timeline, start), getattr(timeline, end)
            if begun is not None and done is not None:
                seconds = max(0.0, (done - begun).total_seconds())
                self.hop.labels(hop, instrument).observe(seconds)
