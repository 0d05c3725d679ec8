"""Deliveries of reduced products."""

import sqlalchemy as sa
from alembic import op

from koa_shared.db import JsonColumn, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.add_column("file", sa.Column("delivery", sa.String(), nullable=True))
    op.create_index("ix_file_delivery", "file", ["delivery"])
    op.create_table(
        "delivery",
        sa.Column("delivery", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("order", JsonColumn, nullable=True),
        sa.PrimaryKeyConstraint("delivery"),
    )


def downgrade() -> None:
    """Go back; sets go with their deliveries, what is archived of them stays."""
    op.execute("DELETE FROM file WHERE delivery IS NOT NULL")
    op.drop_table("delivery")
    op.drop_index("ix_file_delivery", "file")
    op.drop_column("file", "delivery")
