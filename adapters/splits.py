"""How requests for an alias are split between versions, as rows of the database.

Functions that take a connection are for a transaction that holds the adapter (`Registry.changing`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, select, update

from adapters.audit import record
from adapters.database.database import Database, insert, now
from adapters.database.schema import aliases, splits
from adapters.names import AdapterName

WATCH = "back-out"
"""Who takes versions out, for the audit log."""


@dataclass(frozen=True, slots=True)
class BackOut:
    """When a version gets no more requests; a measure that is None is not looked at."""

    error_rate: float | None = None
    """Failed requests among all, above which it is taken out."""
    p95_ratio: float | None = None
    """Its time to the first token (95th percentile) by that of the alias's own version, above which it is."""
    min_requests: int = 30
    """How many requests have to be known of each version that is judged or compared with."""
    window_s: float = 300.0
    """Seconds that are looked back."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Who gets which version. ``weights`` are by digest."""

    weights: Mapping[str, float]
    sticky: str | None = None
    """The request's field whose value decides; None draws anew for every request."""
    shadow: str | None = None
    """The version that runs every request once more, for nobody to see."""
    back_out: BackOut | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """The rules for one alias of an adapter, as they stand."""

    name: AdapterName
    alias: str
    own: str
    """The digest that the alias points at."""
    rules: Rules
    set_at: datetime
    """When the rules were set. Taking a version out does not change it."""
    backed_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """{digest: figures} of the versions that were taken out since."""

    @property
    def digests(self) -> frozenset[str]:
        """The versions that the rules speak of."""
        shadow = () if self.rules.shadow is None else (self.rules.shadow,)
        return frozenset((*self.rules.weights, *shadow))

    @property
    def candidates(self) -> tuple[str, ...]:
        """The versions that get requests beside the one that the alias points at."""
        return tuple(digest for digest, weight in self.rules.weights.items() if weight > 0 and digest != self.own)

    @property
    def shown(self) -> str:
        """``tenant/name:alias``."""
        return f"{self.name}:{self.alias}"


def read_split(database: Database, name: AdapterName, alias: str) -> Split | None:
    """The split of an alias, if there is one."""
    with database.reading() as connection:
        return find_split(connection, name, alias)


def find_split(connection: Connection, name: AdapterName, alias: str) -> Split | None:
    """The same, as a transaction sees it."""
    row = connection.execute(_wanted().where(*_of(name), splits.c.alias == alias)).first()
    return None if row is None else _split(row)


def read_splits(database: Database) -> list[Split]:
    """All splits there are."""
    with database.reading() as connection:
        return [_split(row) for row in connection.execute(_wanted()).all()]


def put_split(connection: Connection, name: AdapterName, alias: str, rules: Rules, by: str) -> None:
    """Set the rules for an alias; what was there before is forgotten, what was taken out too."""
    values = {"rules": _as_json(rules, {}), "changed_at": now()}
    statement = insert(connection, splits).values(tenant=name.tenant, name=name.name, alias=alias, **values)
    key = [column.name for column in splits.primary_key]
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=values))
    record(connection, "split", by, adapter=name, alias=alias, rules=_as_json(rules, {}))


def end_splits(connection: Connection, name: AdapterName, by: str, why: str, alias: str | None = None) -> int:
    """End the split of an alias, or of all; return how many there were."""
    row = and_(*_of(name)) if alias is None else and_(*_of(name), splits.c.alias == alias)
    ended = list(connection.execute(select(splits.c.alias).where(row)).scalars())
    if ended:
        connection.execute(splits.delete().where(row))
    for one in ended:
        record(connection, "end_split", by, adapter=name, alias=one, why=why)
    return len(ended)


def take_out(connection: Connection, split: Split, digest: str, figures: Mapping[str, Any]) -> bool:
    """Give a version of a split no more requests; False if the rules are others by now, or it gets none anyway."""
    found = find_split(connection, split.name, split.alias)
    if found is None or found.set_at != split.set_at or not found.rules.weights.get(digest):
        return False
    rules = replace(found.rules, weights={**found.rules.weights, digest: 0.0})
    backed_out = {**found.backed_out, digest: {"at": now().isoformat(), **figures}}
    at = and_(*_of(split.name), splits.c.alias == split.alias)
    connection.execute(update(splits).where(at).values(rules=_as_json(rules, backed_out)))
    record(connection, "back_out", WATCH, adapter=split.name, digest=digest, alias=split.alias, **figures)
    return True


def holding(connection: Connection, name: AdapterName, digest: str) -> list[str]:
    """The aliases whose splits speak of a version, sorted."""
    rows = connection.execute(_wanted().where(*_of(name))).all()
    return sorted(split.alias for split in map(_split, rows) if digest in split.digests)


def _wanted() -> Select[Any]:
    pointing = and_(
        aliases.c.tenant == splits.c.tenant, aliases.c.name == splits.c.name, aliases.c.alias == splits.c.alias
    )
    return select(splits, aliases.c.digest).join(aliases, pointing)


def _of(name: AdapterName) -> tuple[Any, ...]:
    return splits.c.tenant == name.tenant, splits.c.name == name.name


def _split(row: Any) -> Split:
    stored = dict(row.rules)
    backed_out = stored.pop("backed_out")
    back_out = stored.pop("back_out")
    rules = Rules(**stored, back_out=None if back_out is None else BackOut(**back_out))
    return Split(AdapterName(row.tenant, row.name), row.alias, row.digest, rules, row.changed_at, backed_out)


def _as_json(rules: Rules, backed_out: Mapping[str, Any]) -> dict[str, Any]:
    return {**asdict(rules), "weights": dict(rules.weights), "backed_out": dict(backed_out)}
