"""Wires the preparer together and starts it."""

from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from koa_shared import service
from koa_shared.client import Ingestor
from koa_shared.config import PathMap
from koa_shared.disks import Disks
from koa_shared.instruments import load_instruments
from koa_shared.jobs.outbox import EventSender
from koa_shared.objects import ObjectStore

from .api import router
from .config import Config
from .metrics import PreparerMetrics
from .pipeline.metadata import columns_of
from .providers.gather import open_provider
from .rules import check_rules
from .store import Store, jobs, outbox
from .worker import Worker
from .worker.reading import Reader


class Preparer(service.Service):
    """What lives as long as the preparer's process."""

    name, migrations = "preparer", Path(__file__).parent / "migrations"
    config: Config
    metrics: PreparerMetrics

    def __init__(self, config: Config) -> None:
        super().__init__(config, jobs, PreparerMetrics())
        self.store = Store(self.queue)
        self.instruments = load_instruments(config.instruments_dir)
        check_rules(self.instruments)
        self.objects = ObjectStore(config, config.ca_file)
        schedule, archiver = config.schedule, config.archiver
        self.provider = open_provider(schedule, archiver, config.ca_file, self.circuits)
        ingestor = Ingestor("ingestor", config.ingestor_url, self.http)
        circuit = self.circuits["ingestor"]
        self.sender = EventSender(self.db, outbox, ingestor.tell, circuit)
        columns = {
            name: columns_of(name, config.keyword_tables_dir, instrument.columns)
            for name, instrument in self.instruments.items()
        }
        disks = Disks(self.circuits, PathMap(config.path_map))
        self.worker = Worker(
            config, self.store,
            Reader(config, self.db, self.store, disks, self.objects, self.instruments),
            ingestor, self.provider, self.metrics, self.workshop, columns, self.sender.wake,
        )  # fmt: skip

    async def hold(self, name: str, deed: tuple[str, str], *, paused: bool) -> dict[str, Any]:
        """Hold an instrument's frames back, or let them go on; `deed` is (who, why)."""
        await self.db.write(self.store.pause, name, deed, paused=paused)
        self.worker.held = await self.db.read(self.store.paused)
        self.wake("prepare")
        return {"instrument": name, "paused": paused}

    async def start(self) -> None:
        """Learn what is held back before the lanes open."""
        self.worker.held = await self.db.read(self.store.paused)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Return the loops beside the lanes."""
        telescopes = {i.name: i.telescope for i in self.instruments.values()}
        keep_ready = self.provider.keep_ready(telescopes)
        return [self.sender.run(), keep_ready, self.objects.insist_on(self.config.staging_bucket)]

    async def details(self) -> dict[str, Any]:
        """Tell the state of peers, the object store, disks and providers."""
        more = {"held": sorted(self.worker.held), "providers_down": list(self.provider.down)}
        return await super().details() | more


def create_app(config: Config | None = None) -> FastAPI:
    """Build the preparer; tests pass a config, production reads the environment."""
    return service.create(config or Config(), Preparer, router)


main = partial(service.run, Preparer, Config, create_app)
