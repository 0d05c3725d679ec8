"""Fixity: when a version was read, what is damaged.  Lists: an index for each filter."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from koa_shared.db import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def where(is_what: str) -> dict[str, Any]:
    """Return the condition of an index, for both engines."""
    condition = sa.text(f"released_at IS {is_what}")
    return {"sqlite_where": condition, "postgresql_where": condition}


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "damage",
        sa.Column("koaid", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("product", sa.String(), nullable=False),
        sa.Column("instrument", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("found", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("koaid", "version", "product"),
    )
    op.add_column("version", sa.Column("scrubbed_at", UtcDateTime(), nullable=True))
    op.execute("UPDATE version SET scrubbed_at = committed_at")
    op.create_index("ix_version_scrubbed_at", "version", ["scrubbed_at"])
    op.add_column("frame", sa.Column("released_at", UtcDateTime(), nullable=True))
    for column in ("koaid", "name", "path", "updated"):
        op.drop_index(f"ix_frame_{column}", "frame")
    for column in ("koaid", "name", "path", "level", "origin"):
        op.create_index(f"frame_{column}", "frame", [column, "acquired", "frame_id"])
    for column in ("semid", "koaimtyp", "origin"):
        columns = [column, "acquired", "frame_id"]
        op.create_index(f"frame_open_{column}", "frame", columns, **where("NOT NULL"))
    op.create_index("frame_closed", "frame", ["release_date"], **where("NULL"))


def downgrade() -> None:
    """Go back."""
    op.drop_index("frame_closed", "frame")
    for column in ("semid", "koaimtyp", "origin"):
        op.drop_index(f"frame_open_{column}", "frame")
    for column in ("koaid", "name", "path", "level", "origin"):
        op.drop_index(f"frame_{column}", "frame")
    for column in ("koaid", "name", "path", "updated"):
        op.create_index(f"ix_frame_{column}", "frame", [column])
    op.drop_column("frame", "released_at")
    op.drop_index("ix_version_scrubbed_at", "version")
    op.drop_column("version", "scrubbed_at")
    op.drop_table("damage")
