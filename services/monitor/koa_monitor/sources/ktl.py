"""KTL: the keyword library of the observatory, through its Python module `ktl`.

KTL tells nothing of connections, only heartbeats (facts 1.1, 1.5).  Without one, a
source counts as connected once it could subscribe.
"""

import threading
from types import ModuleType
from typing import Any

from koa_shared.instruments import Source

from .base import HEARTBEAT_GRACE, READ_SECONDS, ThreadedSource, from_epoch, load_module


class KtlSource(ThreadedSource):
    """One KTL keyword."""

    def __init__(self, source: Source, module: ModuleType | Any = None) -> None:
        super().__init__(source)
        self._ktl: Any = module or load_module(
            "ktl", "run the monitor with the observatory's KTL Python installed"
        )
        self._subscribed = False
        self._last: tuple[float, str] | None = None
        self._lock = threading.Lock()

    def subscribe(self) -> None:
        """Register the callbacks, once, and read the trigger."""
        trigger = self._ktl.cache(self.source.service, self.source.keyword)
        if not self._subscribed:
            self._register(trigger)
        with self._lock:
            self._last = None
        trigger.read(timeout=READ_SECONDS)
        self._on_trigger(trigger)

    def _register(self, trigger: Any) -> None:
        service, beat = self.source.service, self.source.heartbeat
        if beat:
            heartbeat = self._ktl.cache(service, beat.keyword)
            heartbeat.callback(self._on_heartbeat)
            heartbeat.monitor(wait=False)
            # KTL then renews its own broken subscriptions (facts 1.1).
            period = beat.seconds + HEARTBEAT_GRACE
            self._ktl.cache(service).heartbeat(beat.keyword, period)
        trigger.callback(self._on_trigger)
        trigger.monitor(prime=False)
        self._subscribed = True

    def fetch(self, keyword: str) -> str:
        """Read one keyword as KTL's text."""
        item = self._ktl.cache(self.source.service, keyword)
        return str(item.read(timeout=READ_SECONDS))

    def _on_trigger(self, keyword: Any) -> None:
        # The keyword may have moved on since this call was due: take its history.
        with self._lock:
            if not keyword["populated"]:
                return
            history = [(past.time, past.ascii) for past in list(keyword.history)]
            if self._last is None:
                new = history[-1:]
            elif self._last in history:
                new = history[history.index(self._last) + 1 :]
            else:
                new = history
            for stamp, text in new:
                self.hand_over(self.heard, text, from_epoch(stamp))
            self._last = history[-1] if history else None

    def _on_heartbeat(self, _: Any) -> None:
        self.hand_over(self.beat)
