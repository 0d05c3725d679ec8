"""EPICS Channel Access: PVs `koa:{service}:{KEYWORD}`, heard through aioca (design 8).

Texts are char arrays or long strings, up to 256 bytes; a plain DBR_STRING would cut a
path at 39 characters.  Connection is Channel Access's own state.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import aioca

from .base import CHECK_SECONDS, KeywordSource

CONNECT_SECONDS = 5.0  # how soon it is told that nobody serves a PV


def _text(value: Any) -> str:
    # Bytes, since aioca ends a subscription over one that is not UTF-8.
    return bytes(value).split(b"\0", 1)[0].decode(errors="replace")


class EpicsSource(KeywordSource):
    """One keyword as a PV."""

    def _pv(self, keyword: str) -> str:
        return f"koa:{self.source.service}:{keyword}"

    async def _listen(self) -> None:
        trigger = aioca.camonitor(
            self._pv(self.source.keyword), self._on_trigger, datatype=aioca.DBR_CHAR_BYTES,
            format=aioca.FORMAT_TIME, all_updates=True, notify_disconnect=True,
            connect_timeout=CONNECT_SECONDS,
        )  # fmt: skip
        subscriptions = [trigger]
        if beat := self.source.heartbeat:
            subscriptions.append(aioca.camonitor(self._pv(beat.keyword), self.beat))
        try:
            # aioca tells nobody when it closes one.
            while all(s.state != s.CLOSED for s in subscriptions):  # noqa: ASYNC110
                await asyncio.sleep(CHECK_SECONDS)
        finally:
            for subscription in subscriptions:
                subscription.close()

    def _on_trigger(self, value: Any) -> None:
        if value.ok:
            self.heard(_text(value), datetime.fromtimestamp(value.timestamp, UTC))
        else:
            self.disconnect(str(value))

    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords of the same service at once; no end without a server."""
        pvs = [self._pv(keyword) for keyword in keywords]
        values = await aioca.caget(pvs, datatype=aioca.DBR_CHAR_BYTES, timeout=None)
        return dict(zip(keywords, map(_text, values), strict=True))
