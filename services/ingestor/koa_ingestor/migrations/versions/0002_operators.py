"""deeds and holds of operators, fingerprints of failures."""

import sqlalchemy as sa
from alembic import op

from koa_shared.db import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What is known of findings already, told in each engine's own words.
CODES = {
    "sqlite": "SELECT DISTINCT frame_id, generation, value ->> 'code', acquired"
    " FROM frame, json_each(findings)",
    "postgresql": "SELECT DISTINCT frame_id, generation, value ->> 'code', acquired"
    " FROM frame, jsonb_array_elements(findings)",
}


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "hold",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("fingerprint", sa.String(length=64), nullable=False, server_default="")
        )
        batch_op.create_index(batch_op.f("ix_job_fingerprint"), ["fingerprint"], unique=False)
    with op.batch_alter_table("frame", schema=None) as batch_op:
        batch_op.add_column(sa.Column("fingerprint", sa.String(), nullable=True))
        batch_op.create_index(batch_op.f("ix_frame_fingerprint"), ["fingerprint"], unique=False)
    op.create_table(
        "framecode",
        sa.Column("frame_id", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("acquired", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("frame_id", "generation", "code"),
    )
    known = CODES[op.get_bind().dialect.name]
    op.execute(f"INSERT INTO framecode (frame_id, generation, code, acquired) {known}")
    with op.batch_alter_table("framecode", schema=None) as batch_op:
        batch_op.create_index("framecode_newest", ["code", "acquired", "frame_id"], unique=False)


def downgrade() -> None:
    """Go back."""
    op.drop_table("framecode")
    with op.batch_alter_table("frame", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_frame_fingerprint"))
        batch_op.drop_column("fingerprint")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_fingerprint"))
        batch_op.drop_column("fingerprint")
    op.drop_table("hold")
