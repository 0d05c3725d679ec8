"""What the ingestor counts besides what all services count."""

from typing import Any

from koa_shared.contracts import Timeline, utcnow
from koa_shared.metrics import Metrics

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
        self.latency = self.histogram(
            "koa_acquisition_to_availability_seconds",
            "Time from the last write of the raw file to its availability",
            "instrument level origin",
        )
        self.hop = self.histogram(
            "koa_hop_seconds", "Time between two points of the timeline", "hop instrument"
        )
        self.types = self.counter(
            "koa_frame_types_total", "Archived: science, calibration", "instrument type"
        )
        self.unfinished = self.gauge(
            "koa_unfinished_seconds", "Age of the oldest frame on its way, by its last step",
            "instrument step",
        )  # fmt: skip
        self.frames_parked = self.gauge(
            "koa_frames_parked", "Frames that wait for an operator", "instrument"
        )

    def measured(self, waiting: list[Any], parked: list[str]) -> None:
        """Tell what the catalogue says now, and nothing of what it said before."""
        self.unfinished.clear()
        for instrument, step, acquired in waiting:
            self.unfinished.labels(instrument, step).set((utcnow() - acquired).total_seconds())
        self.frames_parked.clear()
        for instrument in parked:
            self.frames_parked.labels(instrument).inc()

    def available(self, instrument: str, level: int, origin: str, timeline: Timeline) -> None:
        """Observe a frame that became available for the first time."""
        if (latency := timeline.latency_seconds) is not None:
            self.latency.labels(instrument, str(level), origin).observe(latency)
        for hop, start, end in HOPS:
            begun, done = getattr(timeline, start), getattr(timeline, end)
            if begun and done:
                self.hop.labels(hop, instrument).observe(max(0.0, (done - begun).total_seconds()))
