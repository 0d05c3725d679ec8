"""What the preparer counts besides what all services count."""

from prometheus_client import Counter

from koa_shared.metrics import Metrics

__all__ = ["PreparerMetrics"]


class PreparerMetrics(Metrics):
    """Bytes that went through."""

    def __init__(self) -> None:
        super().__init__("preparer")
        self.bytes_read = Counter(
            "koa_raw_bytes_total",
            "Bytes of raw files that were prepared",
            ["instrument"],
            registry=self.registry,
        )
