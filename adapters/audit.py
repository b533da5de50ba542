"""The audit log: what was done to adapters, tenants and keys, when, and by whom. Rows are written and never changed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from adapters.database.database import Database, now
from adapters.database.schema import events
from adapters.names import AdapterName

OPERATOR = "operator"
"""Who works on the store itself, without a key."""
MOST = 1000


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that was done; ``id`` orders them."""

    id: int
    at: datetime
    actor: str
    action: str
    tenant: str | None
    name: str | None
    digest: str | None
    alias: str | None
    detail: dict[str, Any]


def record(
    connection: Connection,
    action: str,
    by: str,
    *,
    adapter: AdapterName | None = None,
    tenant: str | None = None,
    digest: str | None = None,
    alias: str | None = None,
    **detail: Any,
) -> None:
    """Write an event in the transaction of what it tells of: both happen, or neither."""
    connection.execute(
        events.insert().values(
            at=now(),
            actor=by,
            action=action,
            tenant=adapter.tenant if adapter is not None else tenant,
            name=adapter.name if adapter is not None else None,
            digest=digest,
            alias=alias,
            detail=detail,
        )
    )


def read_events(
    database: Database,
    *,
    tenant: str | None = None,
    name: str | None = None,
    before: int | None = None,
    most: int = 100,
) -> list[AuditEvent]:
    """The newest events first, at most ``most`` of them; ``before`` an id, to page on.

    Args:
        database: Where they are.
        tenant: Only what concerns this tenant; None is everybody.
        name: Only what concerns the tenant's adapter of this name.
        before: Only events that are older than the one with this id.
        most: How many at most.
    """
    wanted = select(events).order_by(events.c.id.desc()).limit(min(most, MOST))
    for column, value in ((events.c.tenant, tenant), (events.c.name, name)):
        if value is not None:
            wanted = wanted.where(column == value)
    if before is not None:
        wanted = wanted.where(events.c.id < before)
    with database.reading() as connection:
        return [AuditEvent(**row) for row in connection.execute(wanted).mappings()]
