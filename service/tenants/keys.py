"""API keys: made at random, shown once, kept as a digest, found by the id that is a part of them.

A key is `tnr_<id>_<secret>`. Its secret has 256 random bits, so a plain SHA-256 is as good as any slow hash.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update

from adapters.audit import record
from adapters.database.database import Database, now
from adapters.database.schema import api_keys, tenants
from service.errors import InvalidRequestError, KeyNotFoundError, KeyRotatedError, TenantNotFoundError
from service.tenants.caller import SCOPES, UNLIMITED, Caller
from service.tenants.directory import LIMIT_COLUMNS, limits_in

_KEY = re.compile(r"tnr_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_COLUMNS = [column for column in api_keys.c if column.name != "digest"]
LONGEST_LABEL = 128
_EARLIEST, _LATEST = 1970, 9998


@dataclass(frozen=True, slots=True)
class Key:
    """What may be told of a key."""

    id: str
    tenant: str | None
    """None: an operator's key, for every tenant."""
    label: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    successor: str | None = None
    """The id of the key that it was rotated to."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key, with the only sight of its secret that there will ever be."""

    key: Key
    secret: str


class Keys:
    """The keys in a database; every change is one transaction, with its line in the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        tenant: str | None,
        scopes: Iterable[str],
        *,
        by: str,
        label: str = "",
        expires_at: datetime | None = None,
    ) -> NewKey:
        """Make a key of a tenant, or an operator's.

        Raises:
            TenantNotFoundError: There is no such tenant.
            InvalidRequestError: An unknown scope, none at all, a label that is too long, an end in the past.
        """
        chosen = _checked_scopes(scopes)
        _check_times(expires_at)
        if len(label) > LONGEST_LABEL:
            raise InvalidRequestError(f"label has at most {LONGEST_LABEL} characters.", param="label")
        with self._database.writing() as connection:
            if tenant is not None:
                _check_tenant(connection, tenant)
            made = _insert(connection, tenant, chosen, label, expires_at)
            record(connection, "create_key", by, tenant=tenant, key=made.key.id, scopes=list(chosen))
        return made

    def rotate(self, key_id: str, *, by: str, overlap: float = 0.0, tenant: str | None = None) -> NewKey:
        """Make another key like this one, which ends after ``overlap`` seconds.

        Raises:
            KeyRotatedError: It has a successor already.
            InvalidRequestError: It has ended.
        """
        with self._database.writing() as connection:
            old = _living(connection, key_id, tenant)
            if old.successor is not None:
                raise KeyRotatedError(key_id, old.successor)
            made = _insert(connection, old.tenant, old.scopes, old.label, old.expires_at)
            ends = now() + timedelta(seconds=overlap)
            if old.expires_at is not None:
                ends = min(ends, old.expires_at)
            changed = {"expires_at": ends, "successor": made.key.id}
            connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(changed))
            record(connection, "rotate_key", by, tenant=old.tenant, key=key_id, successor=made.key.id, overlap=overlap)
        return made

    def revoke(self, key_id: str, *, by: str, tenant: str | None = None) -> Key:
        """End a key at once."""
        with self._database.writing() as connection:
            old = _living(connection, key_id, tenant)
            connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=now()))
            record(connection, "revoke_key", by, tenant=old.tenant, key=key_id)
            return _row(connection, key_id, tenant)

    def all(self, tenant: str | None = None) -> list[Key]:
        """All keys, or those of a tenant, oldest first; the ended ones included."""
        wanted = select(*_COLUMNS).order_by(api_keys.c.created_at, api_keys.c.id)
        if tenant is not None:
            wanted = wanted.where(api_keys.c.tenant == tenant)
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(wanted).mappings()]

    def any(self) -> bool:
        """Whether there is a key, or ever was one."""
        with self._database.reading() as connection:
            return connection.execute(select(api_keys.c.id).limit(1)).first() is not None

    def find(self, shown: str) -> tuple[Caller, datetime | None] | None:
        """Whose key this is, and when it ends; None if it is none, has ended, or its tenant is disabled."""
        match = _KEY.fullmatch(shown)
        if match is None:
            return None
        wanted = (
            select(api_keys, tenants.c.disabled_at, *LIMIT_COLUMNS)
            .select_from(api_keys.outerjoin(tenants, tenants.c.name == api_keys.c.tenant))
            .where(api_keys.c.id == match[1])
        )
        with self._database.reading() as connection:
            row = connection.execute(wanted).mappings().first()
        if row is None or not hmac.compare_digest(row["digest"], _digest(shown)):
            return None
        if row["revoked_at"] is not None or row["disabled_at"] is not None or _is_over(row["expires_at"]):
            return None
        limits = limits_in(row) if row["tenant"] is not None else UNLIMITED
        return Caller(row["tenant"], frozenset(row["scopes"].split()), row["id"], limits), row["expires_at"]


def _insert(
    connection: Connection, tenant: str | None, scopes: tuple[str, ...], label: str, expires_at: datetime | None
) -> NewKey:
    key_id = secrets.token_hex(6)
    secret = f"tnr_{key_id}_{secrets.token_urlsafe(32)}"
    key = Key(key_id, tenant, label, scopes, now(), expires_at, None)
    connection.execute(
        api_keys.insert().values(
            id=key_id,
            tenant=tenant,
            label=label,
            digest=_digest(secret),
            scopes=" ".join(scopes),
            created_at=key.created_at,
            expires_at=expires_at,
        )
    )
    return NewKey(key, secret)


def _row(connection: Connection, key_id: str, tenant: str | None) -> Key:
    wanted = select(*_COLUMNS).where(api_keys.c.id == key_id).with_for_update()  # nobody else ends it meanwhile
    row = connection.execute(wanted).mappings().first()
    if row is None or (tenant is not None and row["tenant"] != tenant):
        raise KeyNotFoundError(key_id)
    return _key(row)


def _living(connection: Connection, key_id: str, tenant: str | None) -> Key:
    key = _row(connection, key_id, tenant)
    if key.revoked_at is not None or _is_over(key.expires_at):
        raise InvalidRequestError(f"The key {key_id} has ended already.", param="id")
    return key


def _key(row: Any) -> Key:
    return Key(**{**row, "scopes": tuple(row["scopes"].split())})


def _checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    given = set(scopes)
    unknown = sorted(given - set(SCOPES))
    if unknown or not given:
        what = f"'{unknown[0]}' is no scope" if unknown else "a key needs a scope"
        raise InvalidRequestError(f"{what}: choose from {', '.join(SCOPES)}.", param="scopes")
    return tuple(scope for scope in SCOPES if scope in given)


def _check_times(expires_at: datetime | None) -> None:
    if expires_at is None:
        return
    if expires_at.tzinfo is None:
        raise InvalidRequestError("expires_at needs a time zone: write 2030-01-31T12:00:00Z.", param="expires_at")
    if not _EARLIEST <= expires_at.year <= _LATEST:  # in UTC the year may be the one beside it
        raise InvalidRequestError(f"expires_at is between {_EARLIEST} and {_LATEST}.", param="expires_at")
    if _is_over(expires_at):
        raise InvalidRequestError("expires_at has passed already.", param="expires_at")


def _check_tenant(connection: Connection, tenant: str) -> None:
    if connection.execute(select(tenants.c.name).where(tenants.c.name == tenant)).first() is None:
        raise TenantNotFoundError(tenant)


def _is_over(moment: datetime | None) -> bool:
    return moment is not None and moment <= now()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
