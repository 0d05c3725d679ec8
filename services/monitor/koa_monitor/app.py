"""Wires the monitor together and starts it."""

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from koa_shared import logs, service
from koa_shared.client import Client, Ingestor
from koa_shared.config import PathMap
from koa_shared.contracts import EventBatch, SourceState, utcnow
from koa_shared.disks import Disks
from koa_shared.errors import DependencyDown
from koa_shared.instruments import Instrument, Source, load_instruments
from koa_shared.jobs.outbox import Outbox

from . import sources
from .api import router
from .config import Config
from .metrics import MonitorMetrics
from .store import Broadcast, Store, jobs, outbox
from .worker import Worker

logger = structlog.get_logger("koa_monitor")
REPORT_SECONDS = 10.0  # how often the ingestor hears about the sources (design 4)


class Monitor(service.Service):
    """What lives as long as the monitor's process."""

    name, migrations = "monitor", Path(__file__).parent / "migrations"
    settings = Config
    config: Config
    metrics: MonitorMetrics

    def __init__(self, config: Config) -> None:
        super().__init__(config, jobs, MonitorMetrics())
        self.events = Outbox(outbox)
        self.store = Store(self.queue, self.events)
        self.disks = Disks(self.circuits, PathMap(config.path_map))
        self.instruments = load_instruments(config.instruments_dir)
        self.ingestor = Ingestor("ingestor", config.ingestor_url, self.http)
        self.worker = Worker(
            config, self.store, self.disks, Client("preparer", config.preparer_url, self.http),
            self.metrics, self.workshop, self.instruments,
        )  # fmt: skip
        heard = chosen(self.instruments, config.sources)
        self.sources = {source.name: instrument for source, instrument in heard}
        self.keywords = sources.open_sources(config.control, [source for source, _ in heard])
        self._ledger_down = False

    async def hear(self, heard: sources.Broadcast) -> None:
        """Write a broadcast down before anything else; look for what may have been missed."""
        row = Broadcast(**heard._asdict(), heard=utcnow())
        if self._ledger_down:  # first, as it looks back from the newest frame it knows
            self._ledger_down = not await self._rescan(*self.sources.values())
        try:
            await self.db.write(self.store.hear, row, logs.new_trace())
        except DependencyDown as error:
            self._ledger_down = True
            self.metrics.missed.labels(heard.source).inc()
            logger.error("Broadcast missed", source=heard.source, why=str(error))
            return
        if heard.initial:
            await self._rescan(self.sources[heard.source])

    async def _rescan(self, *instruments: Instrument) -> bool:
        """Have these instruments' disks compared with the ledger; False if it is away."""
        with contextlib.suppress(DependencyDown):
            for name in sorted({instrument.name for instrument in instruments}):
                await self.db.write(self.store.plan_rescan, name, {})
            return True
        return False

    async def source_states(self) -> list[SourceState]:
        """Return the state of every source."""
        rows = await self.db.read(self.store.source_rows)
        held = await self.db.read(self.store.audit.held)
        return [
            SourceState(
                **rows[keyword.name].model_dump(exclude={"first_start"}),
                paused=keyword.name in held, paused_why=held.get(keyword.name),
                instrument=self.sources[keyword.name].name,
                connected=keyword.connected, heartbeat_age=keyword.heartbeat_age,
            )
            for keyword in self.keywords
        ]  # fmt: skip

    async def _report(self) -> None:
        """Tell the ingestor how the sources are, and what the rescans saw."""
        while True:
            try:
                states = await self.source_states()
                for state in states:
                    self.metrics.connected.labels(state.name).set(state.connected)
                    self.metrics.heartbeat_age.labels(state.name).set(state.heartbeat_age or 0)
                    last = state.last_frame_at.timestamp() if state.last_frame_at else 0
                    self.metrics.last_frame.labels(state.name, state.instrument).set(last)
                await self.ingestor.tell(EventBatch(sources=states))
                for name, found in list(self.worker.inventories.items()):
                    await self.ingestor.tell(EventBatch(inventory=found))
                    if self.worker.inventories[name] is found:
                        del self.worker.inventories[name]
            except DependencyDown as error:
                logger.debug("Source report not sent", why=str(error))
            await asyncio.sleep(REPORT_SECONDS)

    async def _rescans(self) -> None:
        while True:
            await asyncio.sleep(self.config.rescan_seconds)
            await self._rescan(*self.sources.values())

    async def _canaries(self) -> None:
        while self.config.canary_seconds:
            try:
                await self.worker.canary()
            except (DependencyDown, OSError) as error:  # the next one tells whether it is over
                logger.error("No canary was sent", why=str(error))
            await asyncio.sleep(self.config.canary_seconds)

    async def start(self) -> None:
        """Note the sources before they speak."""
        await self.db.write(self.store.start_sources, list(self.sources))
        await self._rescan(*self.sources.values())

    def tasks(self) -> list[service.Loop]:
        """Return the loops beside the lanes: one for each source, and four more."""
        listen = [partial(keyword.run, self.hear) for keyword in self.keywords]
        circuit = self.circuits["ingestor"]
        send = partial(self.events.run, self.db, self.ingestor.tell, circuit)
        return [send, self._report, self._rescans, self._canaries, *listen]

    async def details(self) -> dict[str, Any]:
        """Tell the state of peers, sources and disks."""
        states = [state.model_dump(mode="json") for state in await self.source_states()]
        paused = sorted(self.disks.paused())
        return await super().details() | {"sources": states, "disks_paused": paused}


def chosen(instruments: Mapping[str, Instrument], names: str) -> list[tuple[Source, Instrument]]:
    """Return the sources to hear; raises ValueError for a name nobody has."""
    known = {s.name: (s, i) for i in instruments.values() for s in i.sources}
    default = [name for name, (source, _) in known.items() if not source.test]
    wanted = names.replace(",", " ").split() or default
    if unknown := set(wanted) - set(known):
        raise ValueError(f"KOA_SOURCES names no source: {', '.join(sorted(unknown))}")
    return [known[name] for name in wanted]


create_app = partial(service.create, Monitor, router)
main = partial(service.run, Monitor, router)
