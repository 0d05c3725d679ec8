"""Models and migrations of each service agree."""

import importlib
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from koa_shared.db import Database, SchemaTooOld

ROOT = Path(__file__).parents[2]


ROOMS = [("monitor", ""), ("preparer", ""), ("ingestor", ".schema")]


@pytest.mark.parametrize(("service", "room"), ROOMS)
def test_upgrade_gives_the_models(service: str, room: str, tmp_path: Path) -> None:
    metadata = importlib.import_module(f"koa_{service}.store{room}").metadata
    migrations = ROOT / "services" / service / f"koa_{service}" / "migrations"
    db = Database(f"sqlite:///{tmp_path}/x.db", migrations)
    with pytest.raises(SchemaTooOld):
        db.check_schema()
    db.migrate()
    db.migrate()
    db.check_schema()
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert metadata.tables
        assert compare_metadata(context, metadata) == []
    db.close()


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_what_was_known_before_is_kept(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Pauses and findings of the first schema are there in the next, and the way back works."""

    def upgraded(service: str, fill: str, ask: str) -> list[tuple[object, ...]]:
        url = f"sqlite:///{tmp_path}/{service}.db"
        if engine == "postgresql":
            url = request.getfixturevalue("postgresql")()
        migrations = ROOT / "services" / service / f"koa_{service}" / "migrations"
        db, found = Database(url, migrations), list[tuple[object, ...]]()
        for _ in range(2):
            command.upgrade(db._alembic(), "0001")
            with db.engine.begin() as connection:
                connection.execute(text(fill))
            command.upgrade(db._alembic(), "head")
            with db.engine.connect() as connection:
                found = [tuple(row) for row in connection.execute(text(ask))]
            command.downgrade(db._alembic(), "0001")
            with db.engine.begin() as connection:
                connection.execute(text(f"DELETE FROM {fill.split()[2]}"))
        db.close()
        return found

    at = "'2026-11-23 00\\:00\\:00'"
    sources = f"INSERT INTO sourcerow (name, paused, first_start) VALUES ('esi', true, {at})"
    sources += f", ('x', false, {at})"
    held = "SELECT name, who, why FROM hold"
    assert upgraded("monitor", sources, held) == [("esi", "", "")]
    paused = "INSERT INTO paused (instrument) VALUES ('KCWI')"
    assert upgraded("preparer", paused, held) == [("KCWI", "", "")]
    findings = r'[{"code"\: "A"}, {"code"\: "B"}, {"code"\: "A"}]'
    frames = (
        "INSERT INTO frame (frame_id, instrument, level, generation, status, step, origin, source,"
        " path, name, acquired, updated, accepted, attempt, findings) VALUES"
        f" ('f', 'KCWI', 0, 2, 'ERROR', 'x', 'live', 's', '/p', 'p', {at}, {at}, false, 0,"
        f" '{findings}')"
    )
    ask = "SELECT frame_id, generation, code FROM framecode ORDER BY code"
    assert upgraded("ingestor", frames, ask) == [("f", 2, "A"), ("f", 2, "B")]
