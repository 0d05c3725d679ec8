"""Databases: SQLite or PostgreSQL behind the same few calls.

A store's functions are plain functions of a session; `Database` runs them in threads,
in one transaction each.  On SQLite all writes go through one thread, in `BEGIN
IMMEDIATE` transactions that are on disk when they return (WAL, synchronous=FULL).
"""

import asyncio
import contextlib
import json
import math
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
import sqlalchemy as sa
from alembic import command, context
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import NullPool
from sqlmodel import Field, Session

from . import faults
from .errors import DependencyDown, Rejected

P = ParamSpec("P")
T = TypeVar("T")
PROCESS = uuid.uuid4().hex
# Of PostgreSQL: what a replica that vanished has locked is free again within a minute.
PATIENCE: dict[str, Any] = {
    "connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10,
    "keepalives_interval": 5, "keepalives_count": 3,
    "options": "-c lock_timeout=10s -c idle_in_transaction_session_timeout=30s",
}  # fmt: skip

JsonColumn = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An aware UTC time; SQLite would give it back without its zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Store UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        """Give the zone back."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


def time_field(**more: Any) -> Any:
    """Declare a column that holds an aware UTC time."""
    return Field(sa_type=UtcDateTime, **more)


def json_field() -> Any:
    """Declare a column that holds JSON."""
    return Field(default=None, sa_column=sa.Column(JsonColumn))


def insert_new(session: Session, model: Any, values: dict[str, Any], give: Any = None) -> Any:
    """Insert a row and return `give` of it; None, and nothing is changed, if its key is there."""
    insert = (postgresql if is_postgresql(session) else sqlite).insert
    new = insert(model).values(values).on_conflict_do_nothing()
    # A rowcount is not kept for every INSERT (-1 on PostgreSQL); a returned row is.
    return session.execute(new.returning(sa.literal(1) if give is None else give)).scalar()


def after_commit(session: Session, call: Callable[[], object]) -> None:
    """Have `call` run in the event loop once the transaction is durable, else never."""
    session.info.setdefault("after_commit", []).append(call)


def notify(session: Session, topic: str) -> None:
    """Have the other replicas hear a topic once the transaction is durable."""
    if is_postgresql(session):
        session.execute(sa.select(sa.func.pg_notify("koa", f"{PROCESS}:{topic}")))


def is_postgresql(session: Session) -> bool:
    """Tell which of the two it is."""
    return session.get_bind().dialect.name == "postgresql"


def ping(session: Session) -> None:
    """Touch the database."""
    session.execute(sa.text("SELECT 1"))


def safe_json(value: Any) -> Any:
    r"""Return `value` as both databases take it: no NUL, surrogate, NaN or Infinity.

    PostgreSQL refuses what SQLite takes; the escapes are visible (`\x00`, `NaN`).
    """
    match value:
        case str():
            clean = value.encode("utf-8", "backslashreplace").decode()
            return clean.replace("\x00", "\\x00")
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {safe_json(str(k)): safe_json(v) for k, v in value.items()}
        case list() | tuple():
            return [safe_json(item) for item in value]
        case _:
            return value


class SchemaTooOld(Exception):
    """The database's schema is not the one of this program."""


def _engine(url: str) -> sa.Engine:
    def dumps(value: Any) -> str:
        return json.dumps(safe_json(value))

    # An error shows no values: they are targets and people.
    more: dict[str, Any] = {"json_serializer": dumps, "hide_parameters": True}
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_size=8, pool_pre_ping=True, connect_args=PATIENCE, **more)
    Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 10}, **more)

    @sa.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        writes = connection.get_execution_options().get("koa_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


class Database:
    """One service's own database; its calls raise DependencyDown when it is away."""

    def __init__(
        self, url: str, migrations: Path, timed: Callable[[str], Any] = contextlib.nullcontext
    ) -> None:
        self.url, self._migrations, self._timed = url, migrations, timed
        self.is_sqlite = url.startswith("sqlite")
        self.engine = _engine(url)
        # One writer thread on SQLite: a second one would only wait for its lock.
        self._writes = ThreadPoolExecutor(1 if self.is_sqlite else 6, "db-write")
        self._reads = ThreadPoolExecutor(4, "db-read")

    async def write(
        self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function(session, ...)` in a transaction; it is durable on return."""
        writer = self.engine.execution_options(koa_writes=True)
        return await self._run(self._writes, writer, function, *args, **kwargs)

    async def read(
        self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function(session, ...)`, which only reads."""
        return await self._run(self._reads, self.engine, function, *args, **kwargs)

    async def _run(
        self, pool: ThreadPoolExecutor, engine: sa.Engine, function: Callable[..., T], /,
        *args: Any, **kwargs: Any,
    ) -> T:  # fmt: skip
        loop = asyncio.get_running_loop()

        def transaction() -> T:
            with Session(engine, expire_on_commit=False) as session:
                result = function(session, *args, **kwargs)
                with faults.around("commit", function):
                    session.commit()
                # From here, as whoever waits for the result may be cancelled.
                for told in session.info.get("after_commit", ()):
                    with contextlib.suppress(RuntimeError):  # the process is ending
                        loop.call_soon_threadsafe(told)
                return result

        try:
            with self._timed(function.__name__):
                return await loop.run_in_executor(pool, transaction)
        except exc.DataError as error:
            raise Rejected(str(error.orig), code="bad_value") from error
        except exc.DBAPIError as error:
            # InternalError: a database that became read-only is as good as away.
            away = isinstance(error, exc.OperationalError | exc.InterfaceError | exc.InternalError)
            if away or error.connection_invalidated:
                raise DependencyDown("database", str(error.orig)) from error
            raise

    async def listen(self, heard: Callable[[str], object]) -> None:
        """Tell the topics that other replicas notify, until cancelled; SQLite has none."""
        url = self.url.replace("+psycopg", "")
        while not self.is_sqlite:
            with contextlib.suppress(psycopg.Error):  # what is missed is found by a look
                async with await psycopg.AsyncConnection.connect(
                    url, autocommit=True, **PATIENCE
                ) as link:
                    await link.execute("LISTEN koa")
                    async for note in link.notifies():
                        sender, _, topic = note.payload.partition(":")
                        if sender != PROCESS:
                            heard(topic)
            await asyncio.sleep(1)

    def _alembic(self) -> AlembicConfig:
        config = AlembicConfig()
        config.set_main_option("script_location", str(self._migrations))
        config.set_main_option("sqlalchemy.url", self.url.replace("%", "%%"))
        return config

    def migrate(self) -> None:
        """Bring the schema up to date; safe to run twice and by two at once."""
        if self.is_sqlite:
            command.upgrade(self._alembic(), "head")
            return
        with sa.create_engine(self.url, poolclass=NullPool).connect() as lock:
            lock.execute(sa.text("SELECT pg_advisory_lock(5263)"))
            command.upgrade(self._alembic(), "head")

    @cached_property
    def _head(self) -> str | None:
        return ScriptDirectory.from_config(self._alembic()).get_current_head()

    def schema_gap(self, session: Session) -> str:
        """Tell how the schema differs from this program's, "" if it does not."""
        now = MigrationContext.configure(session.connection()).get_current_revision()
        needs = f"this program needs {self._head}: run the service's `migrate` command"
        return "" if now == self._head else f"the database is at revision {now or 'none'}, {needs}"

    def check_schema(self) -> None:
        """Raise SchemaTooOld unless the schema is this program's."""
        with Session(self.engine) as session:
            if gap := self.schema_gap(session):
                raise SchemaTooOld(gap)

    def close(self) -> None:
        """Give back threads and connections."""
        self._writes.shutdown()
        self._reads.shutdown()
        self.engine.dispose()


def run_migrations(metadata: Any) -> None:
    """What every service's `migrations/env.py` does."""
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    with sa.create_engine(url, poolclass=NullPool).connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
        with context.begin_transaction():
            context.run_migrations()
