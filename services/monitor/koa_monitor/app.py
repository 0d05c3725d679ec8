"""Wires the monitor together and starts it."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import structlog
from fastapi import FastAPI

from koa_shared import logs
from koa_shared.client import Ingestor, Preparer, open_http
from koa_shared.config import PathMap
from koa_shared.contracts import EventBatch, SourceState, utcnow
from koa_shared.db import Database
from koa_shared.disks import Disks
from koa_shared.errors import DependencyDown
from koa_shared.instruments import Instrument, Source, load_instruments
from koa_shared.jobs.outbox import EventSender
from koa_shared.jobs.queue import JobQueue
from koa_shared.jobs.workshop import Workshop
from koa_shared.retry import Circuits
from koa_shared.web import build_app, serve

from .api import router
from .config import Config
from .metrics import MonitorMetrics
from .sources import Broadcast as Heard
from .sources import KeywordSource, open_sources
from .store import Broadcast, Store, jobs, outbox
from .worker import Worker

__all__ = ["create_app", "main"]

logger = structlog.get_logger("koa_monitor")

MIGRATIONS = Path(__file__).parent / "migrations"
REPORT_SECONDS = 10.0  # how often the ingestor hears about the sources (design 4)


class Context:
    """What lives as long as the monitor's process."""

    def __init__(self, config: Config, http: httpx.AsyncClient) -> None:
        self.config = config
        self.metrics = MonitorMetrics()
        self.circuits = Circuits(self.metrics)
        self.db = Database(config.database("monitor"), MIGRATIONS)
        self.store = Store(JobQueue(jobs, config.instance))
        self.disks = Disks(self.circuits, PathMap(config.path_map))
        self.instruments = load_instruments(config.instruments_dir)
        self.sources = chosen(self.instruments, config.sources)
        self.names = sorted(self.sources)
        self.ingestor = Ingestor("ingestor", config.ingestor_url, http)
        self.worker = Worker(
            config, self.db, self.store, self.disks,
            Preparer("preparer", config.preparer_url, http),
            self.instruments, self.metrics,
        )  # fmt: skip
        self.workshop = Workshop(
            self.db, self.store.queue, self.circuits, self.metrics
        )
        self.worker.lanes(self.workshop)
        self.sender = EventSender(self.db, outbox, self._send, self.circuits)
        self.keywords: list[KeywordSource] = open_sources(
            config.control, [source for source, _ in self.sources.values()]
        )
        self._ledger_down = False

    def wake(self, *queues: str) -> None:
        """Jobs were put into these queues."""
        self.workshop.wake(*queues)
        self.sender.wake()

    def instrument_of_source(self, name: str) -> str:
        """Return the name of a source's instrument."""
        return self.sources[name][1].name

    async def hear(self, heard: Heard) -> None:
        """Write a broadcast down before anything else happens (design 5)."""
        source, _ = self.sources[heard.source]
        row = Broadcast(
            source=heard.source, service=source.service, keyword=heard.keyword,
            value=heard.value, time=heard.time, read=dict(heard.read),
            initial=heard.initial, heard=utcnow(),
        )  # fmt: skip
        try:
            await self.db.write(self.store.hear, row, logs.new_trace())
        except DependencyDown as error:
            self._ledger_down = True
            self.metrics.missed.labels(heard.source).inc()
            logger.error("Broadcast missed", source=heard.source, why=str(error))
            return
        if self._ledger_down:
            self._ledger_down = False
            await self.plan_rescans()
        self.wake("resolve", "announce")

    async def connected(self, name: str) -> None:
        """A source is (again) connected: what it said meanwhile is on its disk."""
        await self._plan(self.instrument_of_source(name))

    async def plan_rescans(self) -> None:
        """Compare all disks with the ledger."""
        for instrument in sorted({i.name for _, i in self.sources.values()}):
            await self._plan(instrument)

    async def _plan(self, instrument: str) -> None:
        with contextlib.suppress(DependencyDown):
            await self.db.write(self.store.plan_rescan, instrument, {}, 0.0)
            self.workshop.wake("rescan")

    async def refresh_paused(self) -> None:
        """Read again which sources are paused."""
        rows = await self.db.read(self.store.source_rows)
        self.worker.paused = {name for name, row in rows.items() if row.paused}
        self.workshop.wake("resolve")

    async def source_states(self) -> list[SourceState]:
        """Return the state of every source."""
        rows = await self.db.read(self.store.source_rows)
        states = []
        for keyword in self.keywords:
            health, row = keyword.health, rows.get(keyword.name)
            states.append(
                SourceState(
                    name=keyword.name, connected=health.connected,
                    instrument=self.instrument_of_source(keyword.name),
                    heartbeat_age=health.heartbeat_age,
                    last_value=row.last_value if row else None,
                    last_frame_at=row.last_frame_at if row else None,
                    paused=row.paused if row else False,
                )
            )  # fmt: skip
        return states

    async def _send(self, events: list[Any]) -> None:
        await self.ingestor.tell(EventBatch.model_validate({"events": events}))

    async def _report(self) -> None:
        """Tell the ingestor how the sources are, every 10 s."""
        while True:
            try:
                states = await self.source_states()
                for state in states:
                    self._gauge(state)
                inventories = self.worker.inventories
                for inventory in inventories or [None]:
                    await self.ingestor.tell(
                        EventBatch(sources=states, inventory=inventory)
                    )
                inventories.clear()
            except DependencyDown as error:
                logger.debug("Source report not sent", why=str(error))
            await asyncio.sleep(REPORT_SECONDS)

    def _gauge(self, state: SourceState) -> None:
        self.metrics.connected.labels(state.name).set(state.connected)
        if state.heartbeat_age is not None:
            self.metrics.heartbeat_age.labels(state.name).set(state.heartbeat_age)

    async def _rescans(self) -> None:
        while True:
            await self.plan_rescans()
            await asyncio.sleep(self.config.rescan_seconds)

    def alive(self) -> bool:
        """Tell whether the loops turn."""
        return self.workshop.is_alive()

    async def ready(self) -> None:
        """Raise unless the ledger can be used."""
        await self.db.read(self.store.source_rows)

    async def details(self) -> dict[str, Any]:
        """Tell the state of peers, sources and disks."""
        return {
            "circuits": {
                name: circuit.reason or "closed" for name, circuit in self.circuits.items()
            },
            "sources": [s.model_dump(mode="json") for s in await self.source_states()],
            "disks_paused": sorted(self.disks.paused()),
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loops until the service stops."""
        await self.db.write(self.store.start_sources, self.names)
        await self.refresh_paused()
        async with self.workshop:
            tasks = [
                asyncio.create_task(work)
                for work in (
                    self.sender.run(), self._report(), self._rescans(),
                    *(k.run(self.hear, self.connected) for k in self.keywords),
                )
            ]  # fmt: skip
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def chosen(
    instruments: dict[str, Instrument], names: str
) -> dict[str, tuple[Source, Instrument]]:
    """Return the sources to hear; raises ValueError for a name nobody has."""
    everything = {s.name: (s, i) for i in instruments.values() for s in i.sources}
    if not names.strip():
        return {n: (s, i) for n, (s, i) in everything.items() if not s.test}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in everything]:
        raise ValueError(f"KOA_SOURCES names no source: {', '.join(unknown)}")
    return {name: everything[name] for name in wanted}


def create_app(config: Config | None = None) -> FastAPI:
    """Build the monitor; tests pass a config, production reads the environment."""
    config = config or Config()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_http(config.token(), config.ca_file) as http:
            context = app.state.context = Context(config, http)
            context.db.check_schema()
            async with context.running():
                yield
            context.db.close()

    return build_app("monitor", config, lifespan, router)


def main() -> None:
    """Run `koa-monitor` (serve) or `koa-monitor migrate`."""
    config = Config()
    logs.configure_logging("monitor", config.log_format)
    if sys.argv[1:] == ["migrate"]:
        Database(config.database("monitor"), MIGRATIONS).migrate()
        return
    serve(create_app(config), config)
