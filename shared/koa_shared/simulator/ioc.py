"""The keywords as a real EPICS server: PVs `koa:{service}:{KEYWORD}` (design 8).

Texts are long strings of 256 bytes, since a plain EPICS string ends at 39 characters.
There is one per process, and it lasts as long: EPICS base allows no more.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..instruments import Source

__all__ = ["LOOPBACK", "Keywords"]

LENGTH = 256

# Servers and clients of this machine only; EPICS base reads it at its first use.
LOOPBACK: Mapping[str, str] = {
    "EPICS_CA_ADDR_LIST": "127.0.0.1",
    "EPICS_CA_AUTO_ADDR_LIST": "NO",
    "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
    "EPICS_CAS_BEACON_ADDR_LIST": "127.0.0.1",
    "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
    "EPICS_PVA_ADDR_LIST": "127.0.0.1",
    "EPICS_PVA_AUTO_ADDR_LIST": "NO",
    "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
}


class Keywords:
    """The PVs of all sources; several sources may share a service."""

    def __init__(self, sources: Iterable[Source]) -> None:
        for name, value in LOOPBACK.items():
            os.environ.setdefault(name, value)
        texts: set[tuple[str, str]] = set()
        beats: dict[tuple[str, str], float] = {}
        for source in sources:
            names = (source.keyword, *source.path_keywords)
            texts |= {(source.service, name) for name in names}
            if beat := source.heartbeat:
                key = source.service, beat.keyword
                beats[key] = min(beat.seconds, beats.get(key, beat.seconds))
        self._beats = beats
        self._texts = texts
        self._records: dict[tuple[str, str], Any] = {}

    def serve(self, initial: Mapping[tuple[str, str], str]) -> None:
        """Start the server; keywords keep the `initial` values of an earlier life."""
        # Loading EPICS base takes the environment for ever.
        from softioc import asyncio_dispatcher, builder, softioc  # noqa: PLC0415

        builder.SetDeviceName("koa")
        for key in sorted(self._texts):
            self._records[key] = builder.longStringOut(
                ":".join(key), length=LENGTH, initial_value=initial.get(key, "")
            )
        for key in sorted(self._beats):
            self._records[key] = builder.longOut(":".join(key), initial_value=0)
        builder.LoadDatabase()
        loop = asyncio.get_running_loop()
        softioc.iocInit(asyncio_dispatcher.AsyncioDispatcher(loop), enable_pva=False)

    def put(self, service: str, keyword: str, value: str) -> None:
        """Set a keyword and broadcast it, also when it is the value it had."""
        self._records[service, keyword].set(value)

    async def beat(self) -> None:
        """Tick all heartbeats until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for key, seconds in self._beats.items():
                tasks.create_task(self._tick(self._records[key], seconds))

    async def _tick(self, record: Any, seconds: float) -> None:
        count = 0
        while True:
            count += 1
            record.set(count)
            await asyncio.sleep(seconds)
