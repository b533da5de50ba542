"""Tenants: who there is, what each may use at most, and to whom their adapters are open."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from adapters.audit import record
from adapters.database.database import Database, insert, insert_missing, now
from adapters.database.schema import adapters, grants, tenants
from adapters.errors import AdapterNotFoundError
from adapters.names import AdapterName, check_part
from adapters.registry import Registry
from service.errors import AdapterUnknownError, InvalidRequestError, TenantExistsError, TenantNotFoundError
from service.limits import TenantLimits

LIMITS = ("share", "requests_per_minute", "tokens_per_minute", "concurrent", "resident_bytes")
LEAST_SHARE, MOST_SHARE = 1e-3, 1e3
"""Counters of service are divided by shares: far apart ones would swallow each other."""
MOST_GRANTEES = 1000
"""Tenants that one adapter may be open to; names are taken whether there is such a tenant or not."""
LIMIT_COLUMNS = tuple(tenants.c[name] for name in LIMITS)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant; a limit that is None is none."""

    name: str
    created_at: datetime
    disabled_at: datetime | None
    share: float
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None
    resident_bytes: int | None


class Directory:
    """The tenants in a database; every change is one transaction, with its line in the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Tenants

    def create(self, name: str, limits: Mapping[str, Any], *, by: str) -> Tenant:
        """Make a tenant.

        Raises:
            AdapterNameError: It is no name for a tenant.
            TenantExistsError: There is one of that name.
        """
        check_part(name, "tenant")
        with self._database.writing() as connection:
            row = {"name": name, "created_at": now(), **_checked(limits)}
            inserted = insert(connection, tenants).values(row).on_conflict_do_nothing().returning(tenants.c.name)
            if connection.execute(inserted).first() is None:
                raise TenantExistsError(name)
            record(connection, "create_tenant", by, tenant=name, **limits)
            return _get(connection, name)

    def change(self, name: str, limits: Mapping[str, Any], *, by: str) -> Tenant:
        """Set some of a tenant's limits; None takes one away."""
        with self._database.writing() as connection:
            _get(connection, name)
            if limits:
                connection.execute(update(tenants).where(tenants.c.name == name).values(**_checked(limits)))
                record(connection, "change_tenant", by, tenant=name, **limits)
            return _get(connection, name)

    def set_disabled(self, name: str, disabled: bool, *, by: str) -> Tenant:
        """Stop all of a tenant's keys from working, or let them work again; nothing is deleted."""
        with self._database.writing() as connection:
            before = _get(connection, name)
            if (before.disabled_at is not None) != disabled:
                moment = now() if disabled else None
                connection.execute(update(tenants).where(tenants.c.name == name).values(disabled_at=moment))
                record(connection, "disable_tenant" if disabled else "enable_tenant", by, tenant=name)
            return _get(connection, name)

    def get(self, name: str) -> Tenant:
        """One tenant, or TenantNotFoundError."""
        with self._database.reading() as connection:
            return _get(connection, name)

    def limits(self, name: str) -> TenantLimits | None:
        """What a tenant may use; None if it is disabled. One that is not known has no limits."""
        wanted = select(tenants.c.disabled_at, *LIMIT_COLUMNS).where(tenants.c.name == name)
        with self._database.reading() as connection:
            row = connection.execute(wanted).mappings().first()
        if row is None:
            return TenantLimits()
        return limits_in(row) if row["disabled_at"] is None else None

    def all(self) -> list[Tenant]:
        """All tenants by name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(tenants).order_by(tenants.c.name)).mappings()
            return [Tenant(**row) for row in rows]

    # Grants

    def grant(self, adapter: AdapterName, grantee: str, *, by: str, must_exist: bool = True) -> None:
        """Let another tenant use an adapter; granting twice changes nothing.

        Without ``must_exist`` the name is taken as it is, so that who grants does not learn whether there is such a
        tenant; the grant holds as soon as there is one.

        Raises:
            AdapterNameError: It is no name for a tenant.
            AdapterUnknownError: There is no such adapter.
            InvalidRequestError: It is the adapter's own tenant, or the adapter is open to too many.
            TenantNotFoundError: There is no such tenant.
        """
        check_part(grantee, "tenant")
        if grantee == adapter.tenant:
            raise InvalidRequestError(f"{adapter} belongs to '{grantee}' itself.", param="grantee")
        with _changing(self._database, adapter) as connection:
            if must_exist:
                _get(connection, grantee)
            there = _grantees(connection, adapter)
            if grantee not in there:
                if len(there) >= MOST_GRANTEES:
                    message = f"{adapter} is open to {MOST_GRANTEES} tenants already: withdraw a grant first."
                    raise InvalidRequestError(message, param="grantee")
                row = {"tenant": adapter.tenant, "name": adapter.name, "grantee": grantee, "granted_at": now()}
                insert_missing(connection, grants, **row)
                record(connection, "grant", by, adapter=adapter, grantee=grantee)

    def withdraw(self, adapter: AdapterName, grantee: str, *, by: str) -> None:
        """Take a grant back; what is not granted stays so."""
        with _changing(self._database, adapter) as connection:
            if grantee in _grantees(connection, adapter):
                connection.execute(grants.delete().where(*_of(adapter), grants.c.grantee == grantee))
                record(connection, "withdraw", by, adapter=adapter, grantee=grantee)

    def grantees(self, adapter: AdapterName) -> list[str]:
        """The names of the tenants that may use an adapter beside its own, there or not."""
        with self._database.reading() as connection:
            _check_adapter(connection, adapter)
            return _grantees(connection, adapter)


def limits_in(row: Mapping[Any, Any]) -> TenantLimits:
    """A tenant's limits in a row that has its columns."""
    return TenantLimits(**{name: row[name] for name in LIMITS})


def _find(connection: Connection, name: str) -> Tenant | None:
    row = connection.execute(select(tenants).where(tenants.c.name == name)).mappings().first()
    return Tenant(**row) if row is not None else None


def _get(connection: Connection, name: str) -> Tenant:
    found = _find(connection, name)
    if found is None:
        raise TenantNotFoundError(name)
    return found


def _checked(limits: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in limits.items():
        if name not in LIMITS:
            raise InvalidRequestError(f"'{name}' is no limit: choose from {', '.join(LIMITS)}.", param=name)
        if value is None:
            if name == "share":
                raise InvalidRequestError("share cannot be taken away: 1 is everybody's.", param=name)
        elif name == "share" and not LEAST_SHARE <= value <= MOST_SHARE:
            raise InvalidRequestError(f"share is between {LEAST_SHARE:g} and {MOST_SHARE:g}.", param=name)
        elif value <= 0:
            raise InvalidRequestError(f"{name} has to be more than 0.", param=name)
    return limits


@contextmanager
def _changing(database: Database, adapter: AdapterName) -> Iterator[Connection]:
    """A transaction in which nobody else changes an adapter, which is there."""
    try:
        with Registry(database).changing(adapter) as (connection, _):
            yield connection
    except AdapterNotFoundError as error:
        raise AdapterUnknownError(str(adapter)) from error


def _check_adapter(connection: Connection, adapter: AdapterName) -> None:
    wanted = select(adapters.c.name).where(
        adapters.c.tenant == adapter.tenant, adapters.c.name == adapter.name, adapters.c.deleted_at.is_(None)
    )
    if connection.execute(wanted).first() is None:
        raise AdapterUnknownError(str(adapter))


def _grantees(connection: Connection, adapter: AdapterName) -> list[str]:
    wanted = select(grants.c.grantee).where(*_of(adapter)).order_by(grants.c.grantee)
    return list(connection.execute(wanted).scalars())


def _of(adapter: AdapterName) -> tuple[Any, ...]:
    return grants.c.tenant == adapter.tenant, grants.c.name == adapter.name
