"""The skeleton of a service's process: what `app` of each of them fills in."""

import asyncio
import ctypes
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI
from sqlalchemy import Table

from . import logs
from .client import open_http
from .config import ServiceConfig
from .db import Database, ping
from .jobs.queue import JobQueue
from .jobs.workshop import Workshop
from .metrics import Metrics
from .retry import Circuits
from .web import build_app

logger = structlog.get_logger("koa_shared")


class Service:
    """What lives as long as a service's process; tests open several in one."""

    name: ClassVar[str]
    migrations: ClassVar[Path]
    settings: ClassVar[type[ServiceConfig]]
    commands: ClassVar[dict[str, Callable[[Any], Coroutine[Any, Any, None]]]] = {}

    def __init__(self, config: Any, table: Table, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self.circuits = Circuits(metrics)
        self.db = Database(config.database(self.name), self.migrations)
        self.queue = JobQueue(table)
        self.workshop = Workshop(self.db, self.queue, self.circuits, metrics)
        self.http = open_http(config.token(), config.ca_file)

    def heard(self, topic: str) -> None:
        """Another replica has put a job into this queue."""
        self.workshop.wake(topic)

    async def start(self) -> None:
        """Do what must be done before the lanes open."""

    def tasks(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return the loops beside the lanes; one that fails is started again."""
        return []

    async def _insist(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                return await loop()
            except Exception:
                logger.exception("A loop failed")
                await asyncio.sleep(1)

    async def ready(self) -> None:
        """Raise unless the own database can be used."""
        await self.db.read(ping)

    async def details(self) -> dict[str, Any]:
        """Tell the state of peers, S3, sources and disks."""
        states = {name: circuit.reason or "closed" for name, circuit in self.circuits.items()}
        return {"circuits": states}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run until the block ends; raises SchemaTooOld before anything starts."""
        self.db.check_schema()
        async with AsyncExitStack() as stack:
            stack.callback(self.db.close)
            await stack.enter_async_context(self.http)
            await self.start()
            await stack.enter_async_context(self.workshop.open())
            listen = partial(self.db.listen, self.heard)
            running = [asyncio.create_task(self._insist(loop)) for loop in self.tasks()]
            running.append(asyncio.create_task(self._insist(listen)))
            yield
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def create(make: type[Service], router: APIRouter, config: ServiceConfig | None = None) -> FastAPI:
    """Return the application, with settings from the environment if none are given."""
    config = config or make.settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.context = make(config)  # type: ignore[call-arg]
        async with app.state.context.running():
            yield

    return build_app(make.name, config, lifespan, router)


def run(make: type[Service], router: APIRouter) -> None:
    """Serve, or do what is asked: `migrate` the database, or a command of the service."""
    config = make.settings()
    logs.configure_logging(make.name, config.log_format)
    match sys.argv[1:]:
        case []:
            serve(make, router, config)
        case ["migrate"]:
            Database(config.database(make.name), make.migrations).migrate()
        case [command] if command in make.commands:
            asyncio.run(make.commands[command](make(config)))  # type: ignore[call-arg]
        case _:
            sys.exit(f"usage: koa-{make.name} [{' | '.join(['migrate', *make.commands])}]")


def serve(make: type[Service], router: APIRouter, config: ServiceConfig) -> None:
    """Serve until SIGTERM."""
    with suppress(AttributeError, OSError):
        # glibc: a frame's buffers go back to the system when freed (M_MMAP_THRESHOLD), what
        # is computed of them in pieces does not (M_TRIM_THRESHOLD), as pages cost their
        # zeroing, and is kept for few threads (M_ARENA_MAX).
        for option, value in ((-3, 8 << 20), (-1, 16 << 20), (-8, 2)):
            ctypes.CDLL(None).mallopt(option, value)
    if config.dev:
        logger.warning("KOA_DEV=1: callers on this machine are operators and see all data")
    uvicorn.run(
        create(make, router, config), host=config.host, port=config.port, log_config=None,
        server_header=False, timeout_graceful_shutdown=2, timeout_keep_alive=75,
        ssl_certfile=config.tls_cert_file, ssl_keyfile=config.tls_key_file,
    )  # fmt: skip
