"""Both databases take the same values and behave the same (design 7, 8)."""

import asyncio
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, select, text
from sqlmodel import Session

from koa_shared.db import (
    Database,
    JsonColumn,
    SchemaTooOld,
    UtcDateTime,
    insert_new,
    notify,
    ping,
    safe_json,
)
from koa_shared.errors import DependencyDown
from koa_shared.metrics import Metrics

OpenDatabase = Callable[..., Database]
metadata = MetaData()
things = Table(
    "thing", metadata,
    Column("id", Integer, primary_key=True), Column("body", JsonColumn),
    Column("at", UtcDateTime), Column("name", Text),
)  # fmt: skip
NASTY = {
    "nul": "a\x00b", "surrogate": "x\udcffy", "nan": float("nan"), "inf": float("inf"),
    "-inf": float("-inf"), "k\x00\ud800": [1, ("\x00", None, True)], "plain": "µ \U0001f52d \\x00",
}  # fmt: skip


@pytest.fixture
def db(database: OpenDatabase) -> Database:
    db = database()
    metadata.create_all(db.engine)
    return db


def put(session: Session, /, **values: Any) -> None:
    session.execute(insert(things).values(values))


def get(session: Session, name: str) -> Any:
    return session.scalar(select(things.c[name]))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=20,
)


@given(anything)
def test_safe_json_is_strict_json_without_nul(value: Any) -> None:
    safe = safe_json(value)
    wire = json.dumps(safe, allow_nan=False, ensure_ascii=False).encode("utf-8")
    assert b"\\u0000" not in wire
    assert b"\x00" not in wire
    assert safe_json(safe) == safe


@given(st.recursive(st.none() | st.integers() | st.text(st.characters(codec="utf-8",
       exclude_characters="\x00")), st.lists))  # fmt: skip
def test_safe_json_leaves_good_values_alone(value: Any) -> None:
    assert safe_json(value) == value


async def test_both_engines_take_and_keep_nasty_json(db: Database) -> None:
    await db.write(put, body=NASTY)
    assert await db.read(get, "body") == {
        "nul": "a\\x00b", "surrogate": "x\\udcffy", "nan": "nan", "inf": "inf", "-inf": "-inf",
        "k\\x00\\ud800": [1, ["\\x00", None, True]], "plain": "µ \U0001f52d \\x00",
    }  # fmt: skip


async def test_json_keeps_order_and_repeats_of_a_header(db: Database) -> None:
    header = [["SIMPLE", True, ""], ["HISTORY", "b", ""], ["HISTORY", "a", ""], ["X", 1.5, "c"]]
    await db.write(put, body=header)
    assert await db.read(get, "body") == header


async def test_times_come_back_as_aware_utc(db: Database) -> None:
    hawaii = datetime(2025, 12, 8, 2, 0, 0, 123456, timezone(timedelta(hours=-10)))
    await db.write(put, at=hawaii)
    found = await db.read(get, "at")
    assert found == hawaii
    assert found.utcoffset() == timedelta(0)
    later = select(things.c.id).where(things.c.at > datetime(2025, 12, 8, 11, tzinfo=UTC))
    assert await db.read(lambda s: len(s.execute(later).all())) == 1


async def test_none_is_no_time(db: Database) -> None:
    await db.write(put, at=None)
    assert await db.read(get, "at") is None


async def test_insert_new_changes_nothing_that_is_there(db: Database) -> None:
    assert await db.write(insert_new, things, {"id": 1, "name": "first"})
    assert not await db.write(insert_new, things, {"id": 1, "name": "second"})
    assert await db.read(get, "name") == "first"


async def test_a_write_is_whole_or_not_at_all(db: Database) -> None:
    def half(session: Session) -> None:
        put(session, name="half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await db.write(half)
    assert await db.read(get, "name") is None


async def test_a_read_does_not_wait_for_a_writer(db: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        put(session, name="slow")
        begun.set()
        go_on.wait(10)

    writing = asyncio.create_task(db.write(slow))
    try:
        await asyncio.to_thread(begun.wait, 10)
        async with asyncio.timeout(5):
            assert await db.read(get, "name") is None
    finally:
        go_on.set()
        await writing
    assert await db.read(get, "name") == "slow"


async def test_writers_at_once_lose_nothing(db: Database, database: OpenDatabase) -> None:
    """Two processes' worth of writers; SQLite's second one waits for its lock."""
    other = database()

    def add(session: Session) -> None:
        count = session.execute(select(things.c.id)).all()
        put(session, name=str(len(count)))

    await asyncio.gather(*(one.write(add) for one in (db, other) for _ in range(10)))
    assert await db.read(lambda s: len(s.execute(select(things.c.id)).all())) == 20


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_sqlite_is_on_disk_when_a_write_returns(db: Database) -> None:

    async def pragma(name: str) -> Any:
        return await db.read(lambda s: s.scalar(text(f"PRAGMA {name}")))

    assert await pragma("journal_mode") == "wal"
    assert await pragma("synchronous") == 2  # FULL
    assert await pragma("foreign_keys") == 1


async def test_a_mistake_of_ours_is_no_fault_of_the_database(db: Database) -> None:
    await db.write(insert_new, things, {"id": 1})
    with pytest.raises(Exception, match=r"UNIQUE|unique") as caught:
        await db.write(put, id=1)
    assert not isinstance(caught.value, DependencyDown)
    await db.read(ping)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://koa@127.0.0.1:1/koa", "sqlite:////proc/nowhere.db"]
)
async def test_a_database_that_is_away_is_a_dependency_that_is_down(url: str) -> None:
    db = Database(url, Path())
    with pytest.raises(DependencyDown, match=r"^database: ") as caught:
        await db.read(ping)
    assert caught.value.dependency == "database"
    db.close()


SERVICES = ["monitor", "preparer", "ingestor"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_schema_that_is_not_ours_is_refused(database: OpenDatabase, service: str) -> None:
    db = database(service, schema=False)
    with pytest.raises(SchemaTooOld, match=r"none.*migrate"):
        db.check_schema()
    db.migrate()
    db.check_schema()
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooOld, match="9999"):
        db.check_schema()


async def test_a_service_that_runs_tells_of_another_schema(database: OpenDatabase) -> None:
    db = database("monitor")
    assert await db.read(db.schema_gap) == ""
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert "9999" in await db.read(db.schema_gap)


async def test_each_call_is_timed_by_its_function(database: OpenDatabase) -> None:
    metrics = Metrics("monitor")
    db = Database(database("monitor").url, Path(), metrics.timer("database"))
    await db.read(ping)
    labels = {"service": "monitor", "kind": "database", "operation": "ping"}
    assert metrics.registry.get_sample_value("koa_operation_seconds_count", labels) == 1
    db.close()


def test_migrate_twice_keeps_what_is_there(database: OpenDatabase) -> None:
    db = database("preparer", schema=False)
    db.migrate()
    with db.engine.begin() as connection:
        connection.execute(text("INSERT INTO outbox (id) VALUES (7)"))
    db.migrate()
    db.check_schema()
    with db.engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM outbox")).scalar() == 7


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_two_migrate_at_once(
    database: OpenDatabase, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two pods' init containers: processes, as Alembic's context is one per process."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    db = database("monitor", schema=False)
    code = (
        "import sys; from pathlib import Path; from koa_shared.db import Database; "
        "db = Database(sys.argv[1], Path(sys.argv[2])); db.migrate(); db.check_schema()"
    )
    command = [sys.executable, "-c", code, db.url, str(db._migrations)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0], capfd.readouterr().err
    db.check_schema()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_another_replica_hears_a_topic_once_it_is_durable(
    database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, heard = database(), list[str]()
    monkeypatch.setattr("koa_shared.db.PROCESS", "me")

    def say(session: Session, sender: str, topic: str) -> None:
        """Notify as this process does, or as another would."""
        if sender == "me":
            notify(session, topic)
        else:
            session.execute(text("SELECT pg_notify('koa', :note)"), {"note": f"{sender}:{topic}"})

    def say_and_fail(session: Session) -> None:
        say(session, "another", "never")
        raise ZeroDivisionError

    listening = asyncio.create_task(db.listen(heard.append))
    async with asyncio.timeout(10):
        while not heard:  # until it listens
            await db.write(say, "another", "prepare")
            await asyncio.sleep(0.05)
    with pytest.raises(ZeroDivisionError):
        await db.write(say_and_fail)
    await db.write(say, "me", "mine")
    await db.write(say, "another", "last")
    async with asyncio.timeout(2):
        while heard[-1] != "last":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert set(heard) == {"prepare", "last"}
    listening.cancel()
