"""Alembic runs this to bring the preparer's database up to date."""

from koa_preparer.store import metadata
from koa_shared.db import run_migrations

run_migrations(metadata)
