"""What the preparer counts besides what all services count."""

from koa_shared.metrics import Metrics


class PreparerMetrics(Metrics):
    """Bytes that went through."""

    def __init__(self) -> None:
        super().__init__("preparer")
        self.bytes_read = self.counter(
            "koa_raw_bytes_total", "Bytes of raw files that were prepared", "instrument"
        )
        self.bytes_sent = self.counter(
            "koa_sent_bytes_total", "Bytes of products that were put into staging", "instrument"
        )
        self.scheduled = self.gauge(
            "koa_instrument_scheduled", "1 while the schedule has the instrument", "instrument"
        )
        self.campaigns = self.gauge("koa_campaigns", "Campaigns that are not over", "state")
        self.campaign_frames = self.gauge(
            "koa_campaign_frames", "Frames of campaigns that are not over", "state"
        )
