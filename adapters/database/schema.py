"""Every table of the one schema. Its history is in `migrations/`; a test compares the two.

tenants ─┬─< api_keys
         ├─< adapters ─┬─< versions      rows of a version's folder in the store
         │             ├─< aliases       what a name means now; alias_history: what it meant before
         │             └─< grants        to whom else it was opened
         ├─< events                      what was done, by whom (the audit log)
         └─< usage                       what was used, by day; usage_writers: what of it has been added
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

HEAD = "0005"
"""The newest migration; a database that is not there yet is brought to it when it is opened."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


class Instant(TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no zone, so it is taken off there and put back on."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _name(column: str, **options: Any) -> Column[str]:
    return Column(column, String(64), nullable=False, **options)


def _adapter(*, primary_key: bool = False) -> tuple[Any, ...]:
    """The two columns that name an adapter, and that it exists."""
    return (
        _name("tenant", primary_key=primary_key),
        _name("name", primary_key=primary_key),
        ForeignKeyConstraint(["tenant", "name"], ["adapters.tenant", "adapters.name"], ondelete="CASCADE"),
    )


tenants = Table(
    "tenants",
    metadata,
    _name("name", primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("disabled_at", Instant),
    # Limits: null is none. Of what is contended for, a tenant gets its share of the shares.
    Column("share", Float, nullable=False, default=1.0),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrent", Integer),
    Column("resident_bytes", BigInteger),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    # Null is every tenant: an operator's key.
    Column("tenant", String(64), ForeignKey("tenants.name", ondelete="CASCADE"), index=True),
    Column("label", String(128), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    # The id of the key that this one was rotated to; it may be gone, and outlives nothing by it.
    Column("successor", String(16)),
)

adapters = Table(
    "adapters",
    metadata,
    Column("tenant", String(64), ForeignKey("tenants.name"), primary_key=True),
    _name("name", primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("served", Boolean, nullable=False),
    # Deleted, and kept only until the last of its versions is purged.
    Column("deleted_at", Instant),
)

versions = Table(
    "versions",
    metadata,
    *_adapter(primary_key=True),
    Column("digest", String(64), primary_key=True),
    # The order of publishing.
    Column("number", Integer, nullable=False),
    Column("published_at", Instant, nullable=False),
    Column("published_by", String(128), nullable=False),
    Column("pinned", Boolean, nullable=False),
    # Null: live. Else it does not exist for anybody, and its folder goes once this moment has passed.
    Column("purge_after", Instant, index=True),
)

aliases = Table(
    "aliases",
    metadata,
    *_adapter(primary_key=True),
    _name("alias", primary_key=True),
    Column("digest", String(64), nullable=False),
    ForeignKeyConstraint(
        ["tenant", "name", "digest"],
        ["versions.tenant", "versions.name", "versions.digest"],
        name="fk_aliases_version",
        ondelete="CASCADE",
    ),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    *_adapter(),
    _name("alias"),
    Column("digest", String(64), nullable=False),
    Index("ix_alias_history_tenant", "tenant", "name", "alias"),
)

grants = Table(
    "grants",
    metadata,
    *_adapter(primary_key=True),
    # A name that nobody may have yet: whether there is such a tenant is none of the granting one's business.
    Column("grantee", String(64), primary_key=True, index=True),
    Column("granted_at", Instant, nullable=False),
)

gates = Table(
    "gates",
    metadata,
    *_adapter(primary_key=True),
    _name("alias", primary_key=True),
    Column("rules", JSON, nullable=False),
    Column("changed_at", Instant, nullable=False),
)

checks = Table(
    "checks",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    *_adapter(),
    _name("digest"),
    _name("alias"),
    Column("at", Instant, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("findings", JSON, nullable=False),
    Index("ix_checks_tenant", "tenant", "name", "digest"),
)

splits = Table(
    "splits",
    metadata,
    *_adapter(primary_key=True),
    _name("alias", primary_key=True),
    Column("rules", JSON, nullable=False),
    Column("changed_at", Instant, nullable=False),
)

# Neither events nor usage refer to what they speak of: both outlive it.
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("tenant", String(64), index=True),
    Column("name", String(64)),
    Column("digest", String(64)),
    Column("alias", String(64)),
    Column("detail", JSON, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("day", Date, primary_key=True),
    _name("tenant", primary_key=True),
    # `tenant/name`, or the base's id; the digest is empty for the base.
    Column("adapter", Text, primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("classifications", BigInteger, nullable=False),
    Column("cold_starts", BigInteger, nullable=False),
    Column("resident_byte_seconds", Float, nullable=False),
)

usage_writers = Table(
    "usage_writers",
    metadata,
    # One row for each process that ever added to `usage`.
    Column("id", String(32), primary_key=True),
    # How many of its sums are in `usage`: one that is sent again is known by its number.
    Column("written", BigInteger, nullable=False),
    Column("at", Instant, nullable=False),
)
