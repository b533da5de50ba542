"""What an alias demands of a version, what was found, and how requests are split between versions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ADAPTER = ("adapters.tenant", "adapters.name")


def _columns(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(64), nullable=False) for name in names]


def _of_adapter(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant", "name"], ADAPTER, f"fk_{table}_tenant", ondelete="CASCADE")


def upgrade() -> None:
    """Make the three tables."""
    for table in ("gates", "splits"):
        op.create_table(
            table,
            *_columns("tenant", "name", "alias"),
            sa.Column("rules", sa.JSON, nullable=False),
            sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
            sa.PrimaryKeyConstraint("tenant", "name", "alias", name=f"pk_{table}"),
            _of_adapter(table),
        )
    op.create_table(
        "checks",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=True),
        *_columns("tenant", "name", "digest", "alias"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("findings", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_checks"),
        _of_adapter("checks"),
    )
    op.create_index("ix_checks_tenant", "checks", ["tenant", "name", "digest"])
