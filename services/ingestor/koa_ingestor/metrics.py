"""What the ingestor counts besides what all services count."""

from datetime import datetime
from typing import Any

from koa_shared.contracts import Timeline, utcnow
from koa_shared.metrics import Metrics

# Name, from, to: where the time between the shutter and the archive goes.
HOPS = (
    ("detect", "acquired", "detected"), ("queue", "detected", "process_start"),
    ("prepare", "process_start", "process_end"), ("transfer", "transfer_start", "transfer_end"),
    ("handover", "transfer_end", "ingest_start"), ("copy", "copy_start", "copy_end"),
    ("publish", "copy_end", "available"),
)  # fmt: skip


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
        self.mismatches = self.gauge(
            "koa_scrub_mismatches", "Archived objects that are marked damaged", "instrument"
        )
        self.scrubbed = self.counter("koa_scrub_objects_total", "Archived objects read again", "")
        self.scrubbed_bytes = self.counter("koa_scrub_bytes_total", "Bytes of them", "")
        self.deleted = self.counter("koa_deleted_objects_total", "Objects deleted", "policy")
        self.unscrubbed = self.gauge(
            "koa_scrub_oldest_seconds", "Since the version not read for longest was read", ""
        )

    def measured(self, waiting: list[Any], parked: list[str]) -> None:
        """Tell what the catalogue says now, and nothing of what it said before."""
        self.unfinished.clear()
        for instrument, step, acquired in waiting:
            self.unfinished.labels(instrument, step).set((utcnow() - acquired).total_seconds())
        self.frames_parked.clear()
        for instrument in parked:
            self.frames_parked.labels(instrument).inc()

    def scrubbing(self, oldest: datetime | None, damaged: list[str]) -> None:
        """Tell the state of the scrub, also where another replica does it."""
        self.unscrubbed.set((utcnow() - oldest).total_seconds() if oldest else 0)
        self.mismatches.clear()
        for instrument in damaged:
            self.mismatches.labels(instrument).inc()

    def available(
        self, instrument: str, level: int, origin: str, timeline: Timeline, trace: str
    ) -> None:
        """Observe a frame that became available for the first time; `trace` is its traceparent."""
        if (latency := timeline.latency_seconds) is not None:
            exemplar = {"trace_id": trace[3:35]}
            self.latency.labels(instrument, str(level), origin).observe(latency, exemplar)
        for hop, start, end in HOPS:
            begun, done = getattr(timeline, start), getattr(timeline, end)
            if begun and done:
                self.hop.labels(hop, instrument).observe(max(0.0, (done - begun).total_seconds()))
