"""Alembic runs this to bring the monitor's database up to date."""

from koa_monitor.store import metadata
from koa_shared.db import run_migrations

run_migrations(metadata)
