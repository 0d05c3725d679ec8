"""The skeleton of a service's process: what `app` of each of them fills in."""

import asyncio
import ctypes
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import h11
import structlog
import uvicorn
from fastapi import APIRouter, FastAPI
from sqlalchemy import Table
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import logs
from .client import open_http
from .config import ServiceConfig
from .db import Database, ping
from .errors import DependencyDown
from .jobs.queue import JobQueue
from .jobs.workshop import Workshop
from .metrics import Metrics
from .retry import Circuits
from .traces import Traces
from .web import build_app

logger = structlog.get_logger("koa_shared")
Loop = Callable[[], Coroutine[Any, Any, None]]

CONNECTIONS = 500  # at once; a process may have 1,024 files open, S3 and the database too
HEAD = 16 << 10  # bytes of a request's line and headers; what proxies let through
ARRIVAL = 30.0  # s until a request is here whole: 16 MB in that time are 4 Mbit/s


class _Door(H11Protocol):
    """HTTP/1.1 for callers who are not trusted: a request has a time to arrive in."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        waits = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if self._late and not waits:
            self._late.cancel()
            self._late = None
        elif waits and not self._late:
            self._late = self.loop.call_later(ARRIVAL, self.transport.abort)


DOOR: dict[str, Any] = {
    "http": _Door, "ws": "none", "h11_max_incomplete_event_size": HEAD,
    "limit_concurrency": CONNECTIONS, "log_config": None, "server_header": False,
    "timeout_graceful_shutdown": 2, "timeout_keep_alive": 75,
}  # fmt: skip


class Service:
    """What lives as long as a service's process; tests open several in one."""

    name: ClassVar[str]
    migrations: ClassVar[Path]
    settings: ClassVar[type[ServiceConfig]]
    commands: ClassVar[dict[str, Callable[[Any], Coroutine[Any, Any, None]]]] = {}

    def __init__(self, config: Any, table: Table, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self.circuits = Circuits(metrics)
        self.traces = Traces(self.name, config.otlp_endpoint, config.ca_file)
        timer = self.traces.timer("database", metrics.timer("database"))
        self.db = Database(config.database(self.name), self.migrations, timer)
        self.queue = JobQueue(table, config.lease_seconds)
        alike = config.park_alike
        self.workshop = Workshop(self.db, self.queue, self.circuits, metrics, alike)
        self.workshop.traces = self.traces
        self.http = open_http(config.token(), config.ca_file)

    def heard(self, topic: str) -> None:
        """Another replica has put a job into this queue."""
        self.workshop.wake(topic)

    async def start(self) -> None:
        """Do what must be done before the lanes open."""

    def tasks(self) -> list[Loop]:
        """Return the loops beside the lanes; one that fails is started again."""
        return []

    async def _insist(self, loop: Loop) -> None:
        while True:
            try:
                return await loop()
            except Exception:
                logger.exception("A loop failed")
                await asyncio.sleep(1)

    async def _watch_schema(self) -> None:
        """Notice when another program's `migrate` has changed the schema under this one."""
        while True:
            with suppress(DependencyDown):
                gap = await self.db.read(self.db.schema_gap)
                self.metrics.migration.labels(self.name).set(bool(gap))
            await asyncio.sleep(60)

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
            stack.callback(self.traces.close)
            await stack.enter_async_context(self.http)
            await self.start()
            await stack.enter_async_context(self.workshop.open())
            listen = partial(self.db.listen, self.heard)
            loops: list[Loop] = [*self.tasks(), self._watch_schema, listen]
            running = [asyncio.create_task(self._insist(loop)) for loop in loops]
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


@contextmanager
def _starting(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # of settings or tokens
        sys.exit(f"koa-{name} can't start: {error}")


def run(make: type[Service], router: APIRouter) -> None:
    """Serve, or do what is asked: `migrate` the database, or a command of the service."""
    with _starting(make.name):
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
        for option, value in ((-3, 4 << 20), (-1, 16 << 20), (-8, 2)):
            ctypes.CDLL(None).mallopt(option, value)
    if config.dev:
        logger.warning("KOA_DEV=1: callers on this machine are operators and see all data")
    with _starting(make.name):
        app = create(make, router, config)
    tls: dict[str, Any] = {"ssl_certfile": config.tls_cert_file, "ssl_keyfile": config.tls_key_file}
    uvicorn.run(app, host=config.host, port=config.port, **DOOR, **tls)
