"""Wires the ingestor together and starts it."""

from functools import partial
from pathlib import Path
from typing import ClassVar

from fastapi import APIRouter

from koa_shared import service
from koa_shared.objects import ObjectStore

from . import api, web
from .config import Config
from .feed import Feed
from .metrics import IngestorMetrics
from .store import Store
from .store.reads import Reads
from .store.schema import jobs
from .worker import Worker

router = APIRouter()
router.include_router(api.router)
router.include_router(web.router)


class Ingestor(service.Service):
    """What lives as long as the ingestor's process."""

    name, migrations = "ingestor", Path(__file__).parent / "migrations"
    settings = Config
    commands: ClassVar = {"rebuild": lambda ingestor: ingestor.worker.rebuild()}
    config: Config
    metrics: IngestorMetrics

    def __init__(self, config: Config) -> None:
        super().__init__(config, jobs, IngestorMetrics())
        self.feed = Feed(self.db, Reads())
        self.store = Store(self.queue, self.feed.published)
        timer = self.traces.timer("s3", self.metrics.timer("s3"))
        self.objects = ObjectStore(config, config.ca_file, timer)
        self.worker = Worker(config, self.store, self.objects, self.metrics, self.workshop)

    async def start(self) -> None:
        """See that the archive is read again for ever."""
        await self.db.write(self.store.keep_scrubbing)

    def heard(self, topic: str) -> None:
        """Another replica has put a job, or published."""
        self.feed.published() if topic == "stream" else super().heard(topic)

    def tasks(self) -> list[service.Loop]:
        """Return the loops beside the lanes."""
        bucket = partial(self.objects.insist_on, self.config.archive_bucket)
        return [self.worker.trim, self.worker.retain, self.worker.measure, bucket]


create_app = partial(service.create, Ingestor, router)
main = partial(service.run, Ingestor, router)
