"""What the database of a store tells of its adapters, in one or two queries however many there are."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, select

from adapters.database.database import Database
from adapters.database.schema import adapters, aliases, versions
from adapters.names import AdapterName


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """An adapter: how many versions it has, what its aliases mean, whether requests may name it."""

    name: AdapterName
    versions: int
    aliases: Mapping[str, str]
    served: bool


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version: its place in the order of publishing, and who published it when."""

    digest: str
    number: int
    published_at: datetime
    published_by: str
    pinned: bool


def list_adapters(database: Database, tenant: str | None = None) -> list[AdapterRow]:
    """All adapters, or those of a tenant, by name; those not served included."""
    live = and_(
        versions.c.tenant == adapters.c.tenant, versions.c.name == adapters.c.name, versions.c.purge_after.is_(None)
    )
    wanted = (
        select(adapters.c.tenant, adapters.c.name, adapters.c.served, func.count(versions.c.digest).label("living"))
        .select_from(adapters.outerjoin(versions, live))
        .where(adapters.c.deleted_at.is_(None))
        .group_by(adapters.c.tenant, adapters.c.name, adapters.c.served)
    )
    pointing = select(aliases.c.tenant, aliases.c.name, aliases.c.alias, aliases.c.digest)
    if tenant is not None:
        wanted, pointing = wanted.where(adapters.c.tenant == tenant), pointing.where(aliases.c.tenant == tenant)
    found: dict[AdapterName, dict[str, str]] = defaultdict(dict)
    with database.reading() as connection:
        for row in connection.execute(pointing):
            found[AdapterName(row.tenant, row.name)][row.alias] = row.digest
        rows = [(AdapterName(*row[:2]), row.living, row.served) for row in connection.execute(wanted)]
    return [AdapterRow(name, living, found[name], served) for name, living, served in sorted(rows)]


def list_versions(database: Database, name: AdapterName) -> list[VersionRow]:
    """The versions of an adapter in the order of their publishing; none if there is no such adapter."""
    wanted = (
        select(
            versions.c.digest,
            versions.c.number,
            versions.c.published_at,
            versions.c.published_by,
            versions.c.pinned,
        )
        .where(versions.c.tenant == name.tenant, versions.c.name == name.name, versions.c.purge_after.is_(None))
        .order_by(versions.c.number)
    )
    with database.reading() as connection:
        return [VersionRow(**row) for row in connection.execute(wanted).mappings()]


def pinned_digests(database: Database) -> frozenset[str]:
    """Digests of every pinned version, whosever it is."""
    wanted = select(versions.c.digest).where(versions.c.pinned, versions.c.purge_after.is_(None)).distinct()
    with database.reading() as connection:
        return frozenset(connection.execute(wanted).scalars())
