"""Wires the preparer together and starts it."""

import asyncio
import sys
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from koa_shared import service
from koa_shared.client import Ingestor
from koa_shared.config import PathMap
from koa_shared.contracts import utcnow
from koa_shared.disks import Disks
from koa_shared.errors import DependencyDown
from koa_shared.jobs.outbox import Outbox
from koa_shared.objects import ObjectStore

from . import cli
from .api import router
from .config import Config
from .metrics import PreparerMetrics
from .pipeline.instruments import open_instruments
from .providers.gather import open_provider
from .store import Store, jobs, outbox
from .worker import Worker
from .worker.campaigns import count_campaigns
from .worker.reading import Reader


class Preparer(service.Service):
    """What lives as long as the preparer's process."""

    name, migrations = "preparer", Path(__file__).parent / "migrations"
    settings = Config
    config: Config
    metrics: PreparerMetrics

    def __init__(self, config: Config) -> None:
        super().__init__(config, jobs, PreparerMetrics())
        self.events = Outbox(outbox)
        self.store = Store(self.queue, self.events)
        tables = config.keyword_tables_dir
        self.instruments, columns = open_instruments(config.instruments_dir, tables)
        timer = self.traces.timer("s3", self.metrics.timer("s3"))
        self.objects = ObjectStore(config, config.ca_file, timer)
        self.ingestor = Ingestor("ingestor", config.ingestor_url, self.http)
        self.provider = open_provider(config, self.circuits)
        disks = Disks(self.circuits, PathMap(config.path_map))
        reader = Reader(config, self.db, self.store, disks, self.objects, self.instruments)
        self.worker = Worker(
            config, self.store, reader, self.ingestor, self.provider, self.metrics,
            self.workshop, columns,
        )  # fmt: skip

    async def start(self) -> None:
        """Tell how the campaigns stand."""
        await count_campaigns(self.worker)

    async def _look_ahead(self) -> None:
        """Ask who observes tonight before the night's first frame does, and tell who may now."""
        while True:
            now, anyone = utcnow(), False
            hst_date = now.date() - timedelta(days=1)
            # Guiders, which have no telescope of their own, come last: they serve anyone.
            for instrument in sorted(self.instruments.values(), key=lambda i: not i.telescope):
                with suppress(DependencyDown):
                    telescope = instrument.telescope or 1
                    night = await self.provider.night(hst_date, telescope, instrument.name)
                    is_on = night.is_on(now.time()) or (anyone and not instrument.telescope)
                    self.metrics.scheduled.labels(instrument.name).set(is_on)
                    anyone |= is_on
            await asyncio.sleep(300)

    def tasks(self) -> list[service.Loop]:
        """Return the loops beside the lanes."""
        circuit = self.circuits["ingestor"]
        send = partial(self.events.run, self.db, self.ingestor.tell, circuit)
        bucket = partial(self.objects.insist_on, self.config.staging_bucket)
        return [send, self._look_ahead, bucket]

    async def details(self) -> dict[str, Any]:
        """Tell the state of dependencies, and which instruments are held back."""
        return await super().details() | {"held": await self.db.read(self.store.audit.held)}


create_app = partial(service.create, Preparer, router)


def main() -> None:
    """Serve, `migrate` the database, or do what `koa instruments` is asked."""
    if sys.argv[1:2] == ["instruments"]:
        cli.main(sys.argv[2:], prog_name="koa instruments")
    service.run(Preparer, router)
