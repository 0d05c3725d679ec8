"""What the monitor counts besides what all services count."""

from koa_shared.metrics import Metrics


class MonitorMetrics(Metrics):
    """Sources and what they said."""

    def __init__(self) -> None:
        super().__init__("monitor")
        self.connected = self.gauge("koa_source_connected", "1 while connected", "source")
        self.heartbeat_age = self.gauge(
            "koa_source_heartbeat_age_seconds", "Age of the last heartbeat", "source"
        )
        self.triggers = self.counter(
            "koa_triggers_total", "Broadcasts, by what was decided", "source decision"
        )
        self.last_frame = self.gauge(
            "koa_source_last_frame_timestamp_seconds", "When a source's last frame was heard of",
            "source instrument",
        )  # fmt: skip
        self.gaps = self.gauge(
            "koa_frame_gaps", "Gaps in tonight's frame numbers, of the last rescan", "instrument"
        )
        self.disk_free = self.gauge(
            "koa_data_root_free_bytes", "Free space where an instrument writes", "instrument root"
        )
        self.missed = self.counter(
            "koa_broadcasts_missed_total", "Broadcasts the ledger could not take", "source"
        )
