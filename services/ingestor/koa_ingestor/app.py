"""Wires the ingestor together and starts it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from koa_shared import logs
from koa_shared.db import Database
from koa_shared.jobs.queue import JobQueue
from koa_shared.jobs.workshop import Workshop
from koa_shared.objects import ObjectStore
from koa_shared.retry import Circuits
from koa_shared.web import build_app, serve

from .api import router
from .config import Config
from .metrics import IngestorMetrics
from .schema import jobs
from .store import Store
from .worker import Worker

__all__ = ["create_app", "main"]

MIGRATIONS = Path(__file__).parent / "migrations"


class Context:
    """What lives as long as the ingestor's process."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = IngestorMetrics()
        self.circuits = Circuits(self.metrics)
        self.db = Database(config.database("ingestor"), MIGRATIONS)
        self.store = Store(JobQueue(jobs, config.instance))
        ca_file = str(config.ca_file) if config.ca_file else None
        self.objects = ObjectStore(config, ca_file)
        self.worker = Worker(
            config, self.db, self.store, self.objects, self.metrics, self.published
        )
        self.workshop = Workshop(
            self.db, self.store.queue, self.circuits, self.metrics
        )
        self.worker.lanes(self.workshop)
        self._changed = asyncio.Event()

    def wake(self, *queues: str) -> None:
        """Jobs were put into these queues."""
        self.workshop.wake(*queues)

    def published(self) -> None:
        """The stream grew: wake everyone who reads it."""
        self._changed.set()
        self._changed = asyncio.Event()

    def change(self) -> asyncio.Event:
        """Return what is set when the stream grows."""
        return self._changed

    def idle(self, longest: float) -> float:
        """Return how long a stream may sleep; another replica may publish too."""
        return longest if self.db.is_sqlite else min(longest, 1.0)

    def alive(self) -> bool:
        """Tell whether the loops turn."""
        return self.workshop.is_alive()

    async def ready(self) -> None:
        """Raise unless the catalogue can be used."""
        await self.db.read(self.store.stream_end)

    async def details(self) -> dict[str, Any]:
        """Tell the state of the object store."""
        return {
            "circuits": {
                name: circuit.reason or "closed" for name, circuit in self.circuits.items()
            }
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loops until the service stops."""
        async with self.workshop:
            bucket = self.config.archive_bucket
            tasks = [
                asyncio.create_task(self.worker.trim()),
                asyncio.create_task(self.objects.insist_on(bucket)),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                self.published()


def create_app(config: Config | None = None) -> FastAPI:
    """Build the ingestor; tests pass a config, production reads the environment."""
    config = config or Config()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = app.state.context = Context(config)
        context.db.check_schema()
        async with context.running():
            yield
        context.objects.close()
        context.db.close()

    return build_app("ingestor", config, lifespan, router)


def main() -> None:
    """Run `koa-ingestor` (serve) or `koa-ingestor migrate`."""
    config = Config()
    logs.configure_logging("ingestor", config.log_format)
    if sys.argv[1:] == ["migrate"]:
        Database(config.database("ingestor"), MIGRATIONS).migrate()
        return
    serve(create_app(config), config)
