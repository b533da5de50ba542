"""Which adapters there are and what their names mean, as rows of the database.

A version comes in two steps, so that a crash between them leaves a row that says what to remove: `announce` writes
its row as one to be purged, then its folder is put in place, then `publish` makes it live and moves the aliases. It
goes in two steps as well: `delete` takes it from everybody at once, and `purge` removes folder and row later.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, func, or_, select, update

from adapters.audit import record
from adapters.database.database import ADOPTING, Database, insert, insert_missing, lock_out, now
from adapters.database.schema import adapters, alias_history, aliases, checks, gates, grants, tenants, versions
from adapters.errors import AdapterExistsError, AdapterNotFoundError, named
from adapters.names import LATEST, AdapterName, AdapterRef
from adapters.pointers import Pointers, find_version
from adapters.splits import end_splits, holding


@dataclass(frozen=True, slots=True)
class Known:
    """One row of a version, live or not."""

    name: AdapterName
    digest: str


class Registry:
    """The rows of a store's adapters. Every change is one transaction, with its line in the audit log."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # Reading

    def pointers(self, name: AdapterName) -> Pointers | None:
        """What an adapter's names mean; None if there is no such adapter."""
        with self.database.reading() as connection:
            return _pointers(connection, name)

    def names(self, tenant: str | None = None) -> list[AdapterName]:
        """All adapters, or those of a tenant, sorted."""
        wanted = select(adapters.c.tenant, adapters.c.name).where(adapters.c.deleted_at.is_(None))
        if tenant is not None:
            wanted = wanted.where(adapters.c.tenant == tenant)
        with self.database.reading() as connection:
            return sorted(AdapterName(*row) for row in connection.execute(wanted))

    def served(self, tenant: str | None = None) -> list[tuple[AdapterName, str]]:
        """(adapter, digest of its `latest`) of all that requests may name, or those of a tenant; sorted.

        What was granted to a tenant is among its own.
        """
        latest = and_(*_same(aliases, adapters), aliases.c.alias == LATEST)
        wanted = select(adapters.c.tenant, adapters.c.name, aliases.c.digest).join(aliases, latest)
        wanted = wanted.where(adapters.c.deleted_at.is_(None), adapters.c.served)
        if tenant is not None:
            granted = select(grants.c.name).where(*_same(grants, adapters), grants.c.grantee == tenant)
            wanted = wanted.where(or_(adapters.c.tenant == tenant, granted.exists()))
        with self.database.reading() as connection:
            return sorted((AdapterName(*row[:2]), row[2]) for row in connection.execute(wanted))

    def is_granted(self, name: AdapterName, tenant: str) -> bool:
        """Whether a tenant may use another's adapter."""
        wanted = select(grants.c.name).where(*_of(grants, name), grants.c.grantee == tenant)
        with self.database.reading() as connection:
            return connection.execute(wanted).first() is not None

    def known(self, *, purge_before: datetime | None = None) -> list[Known]:
        """All versions, the deleted ones included, or those whose time to be purged has come."""
        wanted = select(versions.c.tenant, versions.c.name, versions.c.digest)
        if purge_before is not None:
            wanted = wanted.where(versions.c.purge_after <= purge_before)
        with self.database.reading() as connection:
            return [Known(AdapterName(*row[:2]), row[2]) for row in connection.execute(wanted)]

    # Publishing

    def announce(self, name: AdapterName, digest: str, by: str) -> None:
        """Say that a version's folder is about to be put in place. What is live already stays so."""
        with self.database.writing() as connection:
            _make_tenant(connection, name.tenant, by)
            insert_missing(
                connection,
                adapters,
                tenant=name.tenant,
                name=name.name,
                created_at=now(),
                served=True,
                deleted_at=now(),
            )
            _lock(connection, name)
            highest = select(func.coalesce(func.max(versions.c.number), 0)).where(*_of(versions, name))
            insert_missing(
                connection,
                versions,
                tenant=name.tenant,
                name=name.name,
                digest=digest,
                number=connection.execute(highest).scalar_one() + 1,
                published_at=now(),
                published_by=by,
                pinned=False,
                purge_after=now(),
            )

    def publish(self, name: AdapterName, digest: str, new_aliases: tuple[str, ...], by: str) -> None:
        """Make an announced version live, and point the aliases at it, but for those that have a gate."""
        with self.database.writing() as connection:
            _lock(connection, name)
            _revive(connection, name, digest, by)
            held = _gated(connection, name) & set(new_aliases)
            moved = [alias for alias in new_aliases if alias not in held]
            for alias in moved:
                _point(connection, name, alias, digest)
                end_splits(connection, name, by, "publish", alias)
            record(connection, "publish", by, adapter=name, digest=digest, aliases=moved, held_back=sorted(held))

    def adopt(self, found: Callable[[], Iterable[tuple[AdapterName, Pointers]]]) -> list[AdapterName]:
        """Take in adapters whose folders are there, if there are no rows of any; all of them, or none."""
        with self.database.writing() as connection:
            lock_out(connection, ADOPTING)
            if connection.execute(select(adapters.c.name).limit(1)).first() is not None:
                return []
            taken = list(found())
            for name, pointers in taken:
                _adopt(connection, name, pointers)
        return [name for name, _ in taken]

    # Changing

    def point(
        self,
        name: AdapterName,
        alias: str,
        version: str,
        by: str,
        *,
        admitted: bool = False,
        unless_moved_from: tuple[str | None] | None = None,
    ) -> str:
        """Point an alias at a version, given by a beginning of its digest; return the digest.

        Raises:
            AdapterExistsError: The alias has a gate, and the version was not ``admitted`` by who keeps it; or it does
                not point any more at what it is not to have moved from.
        """
        with self.changing(name) as (connection, pointers):
            digest = find_version(AdapterRef(name, version=version), pointers)
            if not admitted and alias in _gated(connection, name):
                message = f"{name}:{alias} has a gate: promote through the server, which runs its checks"
                raise AdapterExistsError(message, key="alias")
            if unless_moved_from is not None and pointers.aliases.get(alias) != unless_moved_from[0]:
                raise AdapterExistsError(f"{name}:{alias} was moved meanwhile, and stays there", key="alias")
            before = _point(connection, name, alias, digest)
            end_splits(connection, name, by, "promote", alias)
            record(connection, "promote", by, adapter=name, digest=digest, alias=alias, before=before)
        return digest

    def roll_back(self, name: AdapterName, alias: str, by: str) -> str:
        """Point an alias at what it pointed at before; return the digest. What was deleted since is passed over."""
        with self.changing(name) as (connection, pointers):
            before = find_version(AdapterRef(name, alias=alias), pointers)
            live = set(pointers.versions) - {before}
            digest = next((past for past in _popped(connection, name, alias) if past in live), None)
            if digest is None:
                raise AdapterNotFoundError(f"{name}:{alias} has pointed at nothing else that still exists", key="alias")
            _set(connection, name, alias, digest)
            end_splits(connection, name, by, "roll_back", alias)
            record(connection, "roll_back", by, adapter=name, digest=digest, alias=alias, before=before)
        return digest

    def remove_alias(self, name: AdapterName, alias: str, by: str) -> None:
        """Forget an alias and what it pointed at before."""
        with self.changing(name) as (connection, pointers):
            digest = find_version(AdapterRef(name, alias=alias), pointers)
            for table in (aliases, alias_history):
                connection.execute(table.delete().where(*_of(table, name), table.c.alias == alias))
            end_splits(connection, name, by, "remove_alias", alias)
            record(connection, "remove_alias", by, adapter=name, digest=digest, alias=alias)

    def set_served(self, name: AdapterName, *, served: bool, by: str) -> None:
        """Hide an adapter from requests, or show it again."""
        with self.changing(name) as (connection, _):
            connection.execute(update(adapters).where(*_of(adapters, name)).values(served=served))
            record(connection, "serve" if served else "hide", by, adapter=name)

    def set_pinned(self, name: AdapterName, version: str, *, pinned: bool, by: str) -> str:
        """Keep a version from being deleted and from leaving memory, or let it go again; return its digest."""
        with self.changing(name) as (connection, pointers):
            digest = find_version(AdapterRef(name, version=version), pointers)
            row = and_(*_of(versions, name), versions.c.digest == digest)
            connection.execute(update(versions).where(row).values(pinned=pinned))
            record(connection, "pin" if pinned else "unpin", by, adapter=name, digest=digest)
        return digest

    # Deleting

    def delete_version(self, name: AdapterName, version: str, purge_after: datetime, by: str) -> str:
        """Take a version that nothing holds from everybody; return its digest. `latest` falls back to the one before.

        Raises:
            AdapterExistsError: It is pinned, an alias other than `latest` points at it, or requests are split to it.
        """
        with self.changing(name) as (connection, pointers):
            digest = find_version(AdapterRef(name, version=version), pointers)
            _check_free(connection, name, digest, pointers)
            if pointers.aliases.get(LATEST) == digest:
                end_splits(connection, name, by, "delete_version", LATEST)
                rest = [other for other in pointers.versions if other != digest]
                if rest and LATEST in _gated(connection, name):
                    # What the gate held back must not slip in: only what was live before.
                    rest = list(islice((past for past in _popped(connection, name, LATEST) if past in rest), 1))
                    if not rest:
                        message = (
                            f"{LATEST} has a gate, and nothing it pointed at before is left: promote another first"
                        )
                        raise AdapterExistsError(message, key="version")
                connection.execute(aliases.delete().where(*_of(aliases, name), aliases.c.alias == LATEST))
                if rest:
                    _set(connection, name, LATEST, rest[-1])
            of_it = and_(*_of(alias_history, name), alias_history.c.digest == digest)
            connection.execute(alias_history.delete().where(of_it))
            row = and_(*_of(versions, name), versions.c.digest == digest)
            connection.execute(update(versions).where(row).values(purge_after=purge_after))
            record(connection, "delete_version", by, adapter=name, digest=digest)
        return digest

    def delete(self, name: AdapterName, purge_after: datetime, by: str) -> None:
        """Take an adapter with all its versions and aliases from everybody.

        Raises:
            AdapterExistsError: One of its versions is pinned, or an alias has a gate.
        """
        with self.changing(name) as (connection, pointers):
            if pointers.pinned:
                pinned = named([digest[:12] for digest in sorted(pointers.pinned)])
                raise AdapterExistsError(f"{name} has pinned versions ({pinned}): unpin them first", key="version")
            end_splits(connection, name, by, "delete")
            if gated := _gated(connection, name):
                message = f"{name} has a gate for {named(sorted(gated))}: lift it first"
                raise AdapterExistsError(message, key="alias")
            for table in (aliases, alias_history, grants, checks):
                connection.execute(table.delete().where(*_of(table, name)))
            connection.execute(
                update(versions)
                .where(*_of(versions, name), versions.c.purge_after.is_(None))
                .values(purge_after=purge_after)
            )
            connection.execute(update(adapters).where(*_of(adapters, name)).values(deleted_at=now()))
            record(connection, "delete", by, adapter=name)

    def purge(self, known: Known, take_away: Callable[[], None]) -> bool:
        """Take a deleted version's folder away, and remove its row; False if it is live again, or gone.

        The folder goes first: a crash leaves a row that still says that it is to be purged. Others wait meanwhile, so
        what takes long, as removing files does, is for later.
        """
        row = and_(*_of(versions, known.name), versions.c.digest == known.digest)
        with self.database.writing() as connection:
            _lock(connection, known.name)
            if connection.execute(select(versions.c.purge_after).where(row)).scalar() is None:
                return False
            take_away()
            connection.execute(versions.delete().where(row))
            left = select(func.count()).select_from(versions).where(*_of(versions, known.name))
            if not connection.execute(left).scalar_one():
                gone = and_(*_of(adapters, known.name), adapters.c.deleted_at.is_not(None))
                connection.execute(adapters.delete().where(gone))
        return True

    @contextmanager
    def changing(self, name: AdapterName) -> Iterator[tuple[Connection, Pointers]]:
        """A transaction that nobody else changes the adapter in, and what its names mean.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        with self.database.writing() as connection:
            _lock(connection, name)
            pointers = _pointers(connection, name)
            if pointers is None:
                raise AdapterNotFoundError(f"there is no adapter {name}", key="name")
            yield connection, pointers


def _pointers(connection: Connection, name: AdapterName) -> Pointers | None:
    rows = connection.execute(_POINTERS, {"tenant_": name.tenant, "name_": name.name}).all()
    if not rows:
        return None
    return Pointers(
        versions=tuple(dict.fromkeys(row.digest for row in rows if row.digest is not None)),
        aliases={row.alias: row.digest for row in rows if row.alias is not None},
        served=rows[0].served,
        pinned=frozenset(row.digest for row in rows if row.pinned),
    )


def _adopt(connection: Connection, name: AdapterName, pointers: Pointers) -> None:
    by, key = "adoption", {"tenant": name.tenant, "name": name.name}
    _make_tenant(connection, name.tenant, by)
    connection.execute(adapters.insert().values(**key, created_at=now(), served=pointers.served))
    for number, digest in enumerate(pointers.versions, 1):
        row = {"digest": digest, "number": number, "published_at": now(), "published_by": by, "pinned": False}
        connection.execute(versions.insert().values(**key, **row))
    for alias, digest in pointers.aliases.items():
        _set(connection, name, alias, digest)
    record(connection, "adopt", by, adapter=name, versions=list(pointers.versions), aliases=dict(pointers.aliases))


def _make_tenant(connection: Connection, name: str, by: str) -> None:
    """Make a tenant, if there is none of the name."""
    made = insert(connection, tenants).values(name=name, created_at=now()).on_conflict_do_nothing()
    if connection.execute(made.returning(tenants.c.name)).first() is not None:
        record(connection, "create_tenant", by, tenant=name)


def _gated(connection: Connection, name: AdapterName) -> set[str]:
    """The aliases that demand something of a version before it is theirs."""
    return set(connection.execute(select(gates.c.alias).where(*_of(gates, name))).scalars())


def _lock(connection: Connection, name: AdapterName) -> None:
    """Let no other change of this adapter happen before this transaction is over."""
    connection.execute(select(adapters.c.name).where(*_of(adapters, name)).with_for_update())


def _revive(connection: Connection, name: AdapterName, digest: str, by: str) -> None:
    """Make a version live, and its adapter, if they are not; what comes again is as new."""
    dead = and_(*_of(versions, name), versions.c.digest == digest, versions.c.purge_after.is_not(None))
    others = select(func.coalesce(func.max(versions.c.number), 0)).where(
        *_of(versions, name), versions.c.digest != digest
    )
    fresh = {"purge_after": None, "number": others.scalar_subquery() + 1, "published_by": by, "published_at": now()}
    connection.execute(update(versions).where(dead).values(fresh))
    gone = and_(*_of(adapters, name), adapters.c.deleted_at.is_not(None))
    connection.execute(update(adapters).where(gone).values(deleted_at=None, served=True))


def _point(connection: Connection, name: AdapterName, alias: str, digest: str) -> str | None:
    """Move an alias, and remember where it pointed; return that."""
    row = and_(*_of(aliases, name), aliases.c.alias == alias)
    before: str | None = connection.execute(select(aliases.c.digest).where(row)).scalar()
    if before is not None and before != digest:
        past = {"tenant": name.tenant, "name": name.name, "alias": alias, "digest": before}
        connection.execute(alias_history.insert().values(past))
    _set(connection, name, alias, digest)
    return before


def _set(connection: Connection, name: AdapterName, alias: str, digest: str) -> None:
    values = {"tenant": name.tenant, "name": name.name, "alias": alias, "digest": digest}
    statement = insert(connection, aliases).values(values)
    key = [column.name for column in aliases.primary_key]
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_={"digest": digest}))


def _popped(connection: Connection, name: AdapterName, alias: str) -> Iterator[str]:
    """What an alias pointed at, the last first; what is taken from here is forgotten."""
    of_it = and_(*_of(alias_history, name), alias_history.c.alias == alias)
    for row in connection.execute(select(alias_history).where(of_it).order_by(alias_history.c.id.desc())).all():
        connection.execute(alias_history.delete().where(alias_history.c.id == row.id))
        yield row.digest


def _check_free(connection: Connection, name: AdapterName, digest: str, pointers: Pointers) -> None:
    if digest in pointers.pinned:
        raise AdapterExistsError(f"{name}@{digest[:12]} is pinned: unpin it first", key="version")
    held = sorted(alias for alias, at in pointers.aliases.items() if at == digest and alias != LATEST)
    if held:
        message = f"{name}@{digest[:12]} is what {named(held)} points at: move or delete that alias first"
        raise AdapterExistsError(message, key="version")
    if split := holding(connection, name, digest):
        message = f"requests for {name}:{named(split)} are split to {digest[:12]} as well: end that split first"
        raise AdapterExistsError(message, key="version")


def _of(table: Table, name: AdapterName) -> tuple[ColumnElement[bool], ...]:
    return table.c.tenant == name.tenant, table.c.name == name.name


def _same(table: Table, other: Table) -> tuple[ColumnElement[bool], ...]:
    return table.c.tenant == other.c.tenant, table.c.name == other.c.name


# Everything in one query, put together once, as every request asks it.
_LIVE = and_(*_same(versions, adapters), versions.c.purge_after.is_(None))
_AT = and_(*_same(aliases, versions), aliases.c.digest == versions.c.digest)
_POINTERS = (
    select(adapters.c.served, versions.c.digest, versions.c.pinned, aliases.c.alias)
    .select_from(adapters.outerjoin(versions, _LIVE).outerjoin(aliases, _AT))
    .where(adapters.c.tenant == bindparam("tenant_"), adapters.c.name == bindparam("name_"))
    .where(adapters.c.deleted_at.is_(None))
    .order_by(versions.c.number)
)
