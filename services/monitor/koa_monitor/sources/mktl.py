"""mKTL: Keck's successor of KTL, through its Python package `mktl`.

It holds callbacks by weak reference: bound methods of a running source live long enough.
"""

from typing import Any

from .base import READ_SECONDS, ThreadedSource


class MktlSource(ThreadedSource):
    """One mKTL item."""

    def _item(self, keyword: str) -> Any:
        item = self.module.get(self.source.service, keyword)
        # Its own 120 s would hold this source's thread behind a daemon that hangs.
        item.timeout = READ_SECONDS
        return item

    def _register(self) -> None:
        trigger = self._item(self.source.keyword)
        if beat := self.source.heartbeat:
            self._item(beat.keyword).register(self.beat)
        trigger.register(self._on_trigger)

    def _fetch(self, keyword: str) -> str:
        return str(self._item(keyword).get(refresh=True, formatted=True))

    def _on_trigger(self, item: Any, value: Any, stamp: float) -> None:
        if value is not None:
            self.on_update(str(item.to_format(value)), stamp)
