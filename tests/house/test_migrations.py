"""Models and migrations of each service agree."""

import importlib
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

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
