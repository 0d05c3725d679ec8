"""What the monitor counts besides what all services count."""

from prometheus_client import Counter, Gauge

from koa_shared.metrics import Metrics

__all__ = ["MonitorMetrics"]


class MonitorMetrics(Metrics):
    """Sources and what they said."""

    def __init__(self) -> None:
        super().__init__("monitor")
        self.connected = Gauge(
            "koa_source_connected",
            "1 while a keyword source is connected",
            ["source"],
            registry=self.registry,
        )
        self.heartbeat_age = Gauge(
            "koa_source_heartbeat_age_seconds",
            "Age of a source's last heartbeat",
            ["source"],
            registry=self.registry,
        )
        self.triggers = Counter(
            "koa_triggers_total",
            "Broadcasts heard, by what was decided about them",
            ["source", "decision"],
            registry=self.registry,
        )
        self.missed = Counter(
            "koa_broadcasts_missed_total",
            "Broadcasts that could not be written to the ledger",
            ["source"],
            registry=self.registry,
        )
