"""KTL: the keyword library of the observatory, through its Python module `ktl`."""

import threading
from typing import Any

from .base import READ_SECONDS, ThreadedSource


class KtlSource(ThreadedSource):
    """One KTL keyword."""

    def _register(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[float, str] | None = None  # what was handed over last
        service, beat = self.source.service, self.source.heartbeat
        trigger = self.module.cache(service, self.source.keyword)
        if beat:
            heartbeat = self.module.cache(service, beat.keyword)
            heartbeat.callback(self.beat)
            heartbeat.monitor(wait=False)
            # KTL then renews its own broken subscriptions (facts 1.1).
            self.module.cache(service).heartbeat(beat.keyword, self.beat_limit)
        trigger.callback(self._on_trigger)
        trigger.monitor(prime=False)

    def _fetch(self, keyword: str) -> str:
        item = self.module.cache(self.source.service, keyword)
        if keyword != self.source.keyword:
            return str(item.read(timeout=READ_SECONDS))
        with self._lock:
            self._last = None  # to be told again, even if nothing changed
        text = str(item.read(timeout=READ_SECONDS))
        self._on_trigger(item)
        return text

    def _on_trigger(self, keyword: Any) -> None:
        # The keyword may have moved on since this call was due: take its history.
        with self._lock:
            if not keyword["populated"]:
                return
            history = [(past.time, past.ascii) for past in list(keyword.history)]
            start = -1 if self._last is None else 0
            if self._last in history:
                start = history.index(self._last) + 1
            for stamp, text in history[start:]:
                self.on_update(text, stamp)
            self._last = history[-1] if history else None
