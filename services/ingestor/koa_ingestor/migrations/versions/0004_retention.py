"""What made a version, and when retention deleted it."""

import sqlalchemy as sa
from alembic import op

from koa_shared.db import JsonColumn, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.add_column("frame", sa.Column("recipe", JsonColumn, nullable=True))
    op.add_column("version", sa.Column("recipe", JsonColumn, nullable=True))
    op.add_column("version", sa.Column("deleted_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    """Go back."""
    op.drop_column("version", "deleted_at")
    op.drop_column("version", "recipe")
    op.drop_column("frame", "recipe")
