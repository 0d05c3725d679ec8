"""deeds and holds of operators, fingerprints of failures."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from koa_shared.db import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_target"), ["target"], unique=False)
    op.create_table(
        "hold",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.get_bind().execute(
        sa.text(
            "INSERT INTO hold (name, at, who, why) SELECT instrument, :at, '', '' FROM paused"
        ).bindparams(sa.bindparam("at", datetime.now(UTC), UtcDateTime()))
    )
    op.drop_table("paused")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("fingerprint", sa.String(length=64), nullable=False, server_default="")
        )
        batch_op.create_index(batch_op.f("ix_job_fingerprint"), ["fingerprint"], unique=False)
    with op.batch_alter_table("file", schema=None) as batch_op:
        batch_op.add_column(sa.Column("fingerprint", sa.String(), nullable=True))
        batch_op.create_index(batch_op.f("ix_file_fingerprint"), ["fingerprint"], unique=False)


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("file", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_file_fingerprint"))
        batch_op.drop_column("fingerprint")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_fingerprint"))
        batch_op.drop_column("fingerprint")
    op.create_table(
        "paused",
        sa.Column("instrument", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("instrument"),
    )
    op.drop_table("hold")
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_target"))
