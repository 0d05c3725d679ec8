"""Wires the preparer together and starts it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from koa_shared import logs
from koa_shared.client import Ingestor, open_http
from koa_shared.config import PathMap
from koa_shared.contracts import EventBatch
from koa_shared.db import Database
from koa_shared.disks import Disks
from koa_shared.instruments import load_instruments
from koa_shared.jobs.outbox import EventSender
from koa_shared.jobs.queue import JobQueue
from koa_shared.jobs.workshop import Workshop
from koa_shared.objects import ObjectStore
from koa_shared.retry import Circuits
from koa_shared.web import build_app, serve

from . import preview
from .api import router
from .config import Config
from .metrics import PreparerMetrics
from .pipeline import tables
from .pipeline.metadata import columns_of
from .providers.gather import open_provider
from .rules import check_rules
from .store import Store, jobs, outbox
from .worker import Worker

__all__ = ["create_app", "main"]

MIGRATIONS = Path(__file__).parent / "migrations"


class Context:
    """What lives as long as the preparer's process."""

    def __init__(self, config: Config, http: httpx.AsyncClient) -> None:
        self.config = config
        self.metrics = PreparerMetrics()
        self.circuits = Circuits(self.metrics)
        self.db = Database(config.database("preparer"), MIGRATIONS)
        self.store = Store(JobQueue(jobs, config.instance))
        self.instruments = load_instruments(config.instruments_dir)
        check_rules(self.instruments)
        ca_file = str(config.ca_file) if config.ca_file else None
        self.objects = ObjectStore(config, ca_file)
        self.ingestor = Ingestor("ingestor", config.ingestor_url, http)
        self.provider = open_provider(
            config.schedule, ca_file=config.ca_file,
            **({"archiver": config.archiver} if config.archiver else {}),
        )  # fmt: skip
        columns = {
            name: columns_of(name, config.keyword_tables_dir, instrument.columns)
            for name, instrument in self.instruments.items()
        }
        self.worker = Worker(
            config, self.db, self.store,
            Disks(self.circuits, PathMap(config.path_map)),
            self.objects, self.ingestor, self.provider, self.instruments, columns,
            self.metrics,
        )  # fmt: skip
        self.workshop = Workshop(
            self.db, self.store.queue, self.circuits, self.metrics
        )
        self.worker.lanes(self.workshop)
        self.sender = EventSender(self.db, outbox, self._send, self.circuits)
        self.worker.told = self.sender.wake

    def wake(self, *queues: str) -> None:
        """Jobs were put into these queues."""
        self.workshop.wake(*queues)
        self.sender.wake()

    async def refresh_paused(self) -> None:
        """Read again which instruments are held back."""
        self.worker.held = await self.db.read(self.store.paused)
        self.workshop.wake("prepare")

    async def _send(self, events: list[Any]) -> None:
        await self.ingestor.tell(EventBatch.model_validate({"events": events}))

    def alive(self) -> bool:
        """Tell whether the loops turn."""
        return self.workshop.is_alive()

    async def ready(self) -> None:
        """Raise unless the ledger can be used."""
        await self.db.read(self.store.paused)

    async def details(self) -> dict[str, Any]:
        """Tell the state of peers, the object store, disks and providers."""
        return {
            "circuits": {
                name: circuit.reason or "closed" for name, circuit in self.circuits.items()
            },
            "held": sorted(self.worker.held),
            "providers_down": list(self.provider.down),
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loops until the service stops."""
        # What is slow to import must not cost the first frame its time.
        await asyncio.gather(
            asyncio.to_thread(tables.warm), asyncio.to_thread(preview.warm)
        )
        await self.refresh_paused()
        async with self.workshop:
            tasks = [
                asyncio.create_task(self.sender.run()),
                asyncio.create_task(self.objects.insist_on(self.config.staging_bucket)),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def create_app(config: Config | None = None) -> FastAPI:
    """Build the preparer; tests pass a config, production reads the environment."""
    config = config or Config()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_http(config.token(), config.ca_file) as http:
            context = app.state.context = Context(config, http)
            context.db.check_schema()
            async with context.running():
                yield
            context.objects.close()
            context.db.close()

    return build_app("preparer", config, lifespan, router)


def main() -> None:
    """Run `koa-preparer` (serve) or `koa-preparer migrate`."""
    config = Config()
    logs.configure_logging("preparer", config.log_format)
    if sys.argv[1:] == ["migrate"]:
        Database(config.database("preparer"), MIGRATIONS).migrate()
        return
    serve(create_app(config), config)
