"""Alembic runs this to bring the ingestor's database up to date."""

from koa_ingestor.store.schema import metadata
from koa_shared.db import run_migrations

run_migrations(metadata)
