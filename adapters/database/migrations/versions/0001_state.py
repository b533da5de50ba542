"""Tenants, keys, adapters with their versions, aliases and grants, events, usage."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
ADAPTER = ("adapters.tenant", "adapters.name")


def _name(column: str) -> sa.Column[str]:
    return sa.Column(column, sa.String(64), nullable=False)


def _of_adapter(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant", "name"], ADAPTER, f"fk_{table}_tenant", ondelete="CASCADE")


def upgrade() -> None:
    """Make every table."""
    _tenants()
    _adapters()
    _records()


def _tenants() -> None:
    op.create_table(
        "tenants",
        _name("name"),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("disabled_at", MOMENT),
        sa.Column("share", sa.Float, nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("concurrent", sa.Integer),
        sa.Column("resident_bytes", sa.BigInteger),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("tenant", sa.String(64)),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], "fk_api_keys_tenant", ondelete="CASCADE"),
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"])


def _adapters() -> None:
    op.create_table(
        "adapters",
        _name("tenant"),
        _name("name"),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("served", sa.Boolean, nullable=False),
        sa.Column("deleted_at", MOMENT),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_adapters"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], "fk_adapters_tenant"),
    )
    op.create_table(
        "versions",
        _name("tenant"),
        _name("name"),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("published_at", MOMENT, nullable=False),
        sa.Column("published_by", sa.String(128), nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("purge_after", MOMENT),
        sa.PrimaryKeyConstraint("tenant", "name", "digest", name="pk_versions"),
        _of_adapter("versions"),
    )
    op.create_index("ix_versions_purge_after", "versions", ["purge_after"])
    op.create_table(
        "aliases",
        _name("tenant"),
        _name("name"),
        _name("alias"),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "alias", name="pk_aliases"),
        _of_adapter("aliases"),
        sa.ForeignKeyConstraint(
            ["tenant", "name", "digest"],
            ["versions.tenant", "versions.name", "versions.digest"],
            "fk_aliases_version",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "alias_history",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=True),
        _name("tenant"),
        _name("name"),
        _name("alias"),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alias_history"),
        _of_adapter("alias_history"),
    )
    op.create_index("ix_alias_history_tenant", "alias_history", ["tenant", "name", "alias"])
    op.create_table(
        "grants",
        _name("tenant"),
        _name("name"),
        _name("grantee"),
        sa.Column("granted_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "grantee", name="pk_grants"),
        _of_adapter("grants"),
        sa.ForeignKeyConstraint(["grantee"], ["tenants.name"], "fk_grants_grantee", ondelete="CASCADE"),
    )
    op.create_index("ix_grants_grantee", "grants", ["grantee"])


def _records() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64)),
        sa.Column("name", sa.String(64)),
        sa.Column("digest", sa.String(64)),
        sa.Column("alias", sa.String(64)),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_tenant", "events", ["tenant"])
    counts = ("requests", "prompt_tokens", "generated_tokens", "classifications", "cold_starts")
    op.create_table(
        "usage",
        sa.Column("day", sa.Date, nullable=False),
        _name("tenant"),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts),
        sa.Column("resident_byte_seconds", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("day", "tenant", "adapter", "digest", name="pk_usage"),
    )
