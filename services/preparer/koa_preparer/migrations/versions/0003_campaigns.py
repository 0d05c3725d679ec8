"""Campaigns, and by which rules a frame's products were made."""

import sqlalchemy as sa
from alembic import op

from koa_shared.db import JsonColumn, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.add_column("file", sa.Column("rules", sa.String(), nullable=True))
    op.create_table(
        "campaign",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("wanted", JsonColumn, nullable=True),
        sa.Column("options", JsonColumn, nullable=True),
        sa.Column("per_minute", sa.Float(), nullable=False),
        sa.Column("cursor", sa.String(), nullable=True),
        sa.Column("is_selected", sa.Boolean(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "campaignframe",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign", sa.Integer(), nullable=False),
        sa.Column("frame_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("was", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("fault", sa.String(), nullable=True),
        sa.Column("changes", JsonColumn, nullable=True),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("campaign", "frame_id"),
    )
    op.create_index("ix_campaignframe_campaign", "campaignframe", ["campaign"])


def downgrade() -> None:
    """Go back."""
    op.drop_table("campaignframe")
    op.drop_table("campaign")
    op.drop_column("file", "rules")
