"""Reduced frames: a version, and damage, is of a KOAID and a level."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
# As PostgreSQL names what has no name; SQLite must be told.
NAMES = {"uq": "%(table_name)s_%(column_0_N_name)s_key", "pk": "%(table_name)s_pkey"}


def level() -> sa.Column[int]:
    """Return the new column: until now all were raw frames."""
    return sa.Column("level", sa.Integer(), nullable=False, server_default="0")


def upgrade() -> None:
    """Go forward."""
    with op.batch_alter_table("version", naming_convention=NAMES) as batch:
        batch.add_column(level())
        batch.drop_constraint("version_koaid_version_key", type_="unique")
        batch.create_unique_constraint(
            "version_koaid_level_version_key", ["koaid", "level", "version"]
        )
    with op.batch_alter_table("damage", naming_convention=NAMES) as batch:
        batch.add_column(level())
        batch.drop_constraint("damage_pkey", type_="primary")
        batch.create_primary_key("damage_pkey", ["koaid", "level", "version", "product"])


def downgrade() -> None:
    """Go back; reduced frames' versions are forgotten here, their objects stay."""
    op.execute("DELETE FROM damage WHERE level > 0")
    op.execute("DELETE FROM version WHERE level > 0")
    with op.batch_alter_table("damage", naming_convention=NAMES) as batch:
        batch.drop_constraint("damage_pkey", type_="primary")
        batch.drop_column("level")
        batch.create_primary_key("damage_pkey", ["koaid", "version", "product"])
    with op.batch_alter_table("version", naming_convention=NAMES) as batch:
        batch.drop_constraint("version_koaid_level_version_key", type_="unique")
        batch.drop_column("level")
        batch.create_unique_constraint("version_koaid_version_key", ["koaid", "version"])
