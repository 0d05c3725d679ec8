"""EPICS Channel Access: PVs `koa:{service}:{KEYWORD}`, heard through aioca (design 8).

Texts are char arrays or long strings, up to 256 bytes; a plain DBR_STRING would cut a
path at 39 characters.  Connection is Channel Access's own state.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import aioca

from .base import QueuedSource, from_epoch

PREFIX = "koa"
# How soon a subscription that aioca has given up is noticed.
CHECK_SECONDS = 5.0


def pv_name(service: str, keyword: str) -> str:
    """Return the PV of a keyword."""
    return f"{PREFIX}:{service}:{keyword}"


def _text(value: Any) -> str:
    # Bytes, since aioca ends a subscription over one that is not UTF-8.
    return bytes(value).split(b"\0", 1)[0].decode(errors="replace")


def _time(value: Any) -> datetime:
    seconds, nanoseconds = value.raw_stamp
    return from_epoch(seconds) + timedelta(microseconds=nanoseconds // 1000)


class EpicsSource(QueuedSource):
    """One keyword as a PV."""

    async def listen(self) -> None:
        """Subscribe; libca itself reconnects."""
        subscriptions = [
            aioca.camonitor(
                pv_name(self.source.service, self.source.keyword),
                self._on_trigger,
                datatype=aioca.DBR_CHAR_BYTES,
                format=aioca.FORMAT_TIME,
                all_updates=True,
                notify_disconnect=True,
                connect_timeout=CHECK_SECONDS,
            )
        ]
        if self.source.heartbeat:
            heartbeat = pv_name(self.source.service, self.source.heartbeat.keyword)
            subscriptions.append(aioca.camonitor(heartbeat, self._on_heartbeat))
        try:
            # aioca tells nobody when it closes one.
            while all(s.state != s.CLOSED for s in subscriptions):  # noqa: ASYNC110
                await asyncio.sleep(CHECK_SECONDS)
        finally:
            for subscription in subscriptions:
                subscription.close()

    def _on_trigger(self, value: Any) -> None:
        if value.ok:
            self.heard(_text(value), _time(value))
        else:
            self.disconnect(str(value))

    def _on_heartbeat(self, _: Any) -> None:
        self.beat()

    async def read(self, keywords: tuple[str, ...]) -> dict[str, str]:
        """Read keywords of the same service at once; no end without a server."""
        values = await aioca.caget(
            [pv_name(self.source.service, keyword) for keyword in keywords],
            datatype=aioca.DBR_CHAR_BYTES,
            timeout=None,  # our caller's
        )
        return dict(zip(keywords, map(_text, values), strict=True))
