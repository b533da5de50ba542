"""Reads the usage ledger."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any

from sqlalchemy import Select, func, select

from adapters.database.database import Database
from adapters.database.schema import usage
from service.counts import Counts
from service.errors import InvalidRequestError

GROUPS = ("day", "tenant", "adapter", "digest")
_COUNTS = tuple(field.name for field in fields(Counts))
MOST_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Query:
    """What of the ledger is asked for."""

    tenant: str | None = None
    """None is every tenant."""
    adapter: str | None = None
    first: date | None = None
    last: date | None = None
    """Included."""
    by: tuple[str, ...] = GROUPS
    """What the sums are grouped by."""


@dataclass(frozen=True, slots=True)
class Used:
    """One row: what it is about, and the counts."""

    about: dict[str, Any]
    counts: Counts

    def as_dict(self) -> dict[str, Any]:
        """All of it, a day as text."""
        about = {name: value.isoformat() if isinstance(value, date) else value for name, value in self.about.items()}
        return {**about, **asdict(self.counts)}


def columns(by: Sequence[str]) -> list[str]:
    """The names of a row's fields, in their order."""
    return [*by, *_COUNTS]


def read_usage(database: Database, query: Query) -> list[Used]:
    """The rows that a query asks for, sorted.

    Raises:
        InvalidRequestError: An unknown grouping, or more rows than can be told at once.
    """
    with database.reading() as connection:
        rows = connection.execute(_statement(query).limit(MOST_ROWS + 1)).all()
    if len(rows) > MOST_ROWS:
        raise InvalidRequestError(f"These are more than {MOST_ROWS} rows: ask for fewer days or groups.", param="by")
    count = len(query.by)
    return [Used(dict(zip(query.by, row[:count], strict=True)), Counts(*_plain(row[count:]))) for row in rows]


def csv_of(rows: Sequence[Used], by: Sequence[str]) -> str:
    """Rows that were grouped by these, with a line of names."""
    text = io.StringIO()
    writer: csv.DictWriter[Any] = csv.DictWriter(text, columns(by), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.as_dict() for row in rows)
    return text.getvalue()


def _plain(values: Sequence[Any]) -> Iterator[Any]:
    """Sums as Python's own numbers: PostgreSQL adds integers up to decimals."""
    for name, value in zip(_COUNTS, values, strict=True):
        yield float(value) if name == "resident_byte_seconds" else int(value)


def _statement(query: Query) -> Select[Any]:
    if unknown := [name for name in query.by if name not in GROUPS]:
        raise InvalidRequestError(
            f"'{unknown[0]}' is nothing to group by: choose from {', '.join(GROUPS)}.", param="by"
        )
    if len(set(query.by)) < len(query.by):
        raise InvalidRequestError("by names a group twice.", param="by")
    groups = [usage.c[name] for name in query.by]
    wanted = select(*groups, *(func.coalesce(func.sum(usage.c[name]), 0) for name in _COUNTS))
    for column, value in ((usage.c.tenant, query.tenant), (usage.c.adapter, query.adapter)):
        if value is not None:
            wanted = wanted.where(column == value)
    if query.first is not None:
        wanted = wanted.where(usage.c.day >= query.first)
    if query.last is not None:
        wanted = wanted.where(usage.c.day <= query.last)
    return wanted.group_by(*groups).order_by(*groups) if groups else wanted
