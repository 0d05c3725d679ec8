"""mKTL: Keck's successor of KTL, through its Python package `mktl`.

mKTL tells nothing of connections; a heartbeat keyword stands in, as with KTL.  It
holds callbacks by weak reference: bound methods of a running source live long enough.
"""

from types import ModuleType
from typing import Any

from koa_shared.instruments import Source

from .base import READ_SECONDS, ThreadedSource, from_epoch, load_module


class MktlSource(ThreadedSource):
    """One mKTL item."""

    def __init__(self, source: Source, module: ModuleType | Any = None) -> None:
        super().__init__(source)
        self._mktl: Any = module or load_module(
            "mktl", "install Keck's mKTL package from its repository"
        )
        self._subscribed = False

    def _item(self, keyword: str) -> Any:
        item = self._mktl.get(self.source.service, keyword)
        # Its own 120 s would hold this source's thread behind a daemon that hangs.
        item.timeout = READ_SECONDS
        return item

    def subscribe(self) -> None:
        """Register the callbacks, once, and fetch the trigger."""
        trigger, beat = self._item(self.source.keyword), self.source.heartbeat
        if not self._subscribed:
            if beat:
                self._item(beat.keyword).register(self._on_heartbeat)
            trigger.register(self._on_trigger)
            self._subscribed = True
        trigger.get(refresh=True)  # raises TimeoutError; the value calls back

    def fetch(self, keyword: str) -> str:
        """Read one item in its formatted form."""
        return str(self._item(keyword).get(refresh=True, formatted=True))

    def _on_trigger(self, item: Any, value: Any, stamp: float) -> None:
        if value is not None:
            text = str(item.to_format(value))
            self.hand_over(self.heard, text, from_epoch(stamp))

    def _on_heartbeat(self, *_: Any) -> None:
        self.hand_over(self.beat)
