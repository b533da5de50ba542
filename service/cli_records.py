"""`tenora usage` and `tenora events`: what the database says was used and done, with or without a server."""

import json
import re
import sys
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli_store import (
    SHOWN_DIGITS,
    DatabaseOption,
    StoreOption,
    fail,
    opened_database,
    table,
)

if TYPE_CHECKING:
    from adapters.audit import AuditEvent

TenantOption = Annotated[str | None, typer.Option(help="Only this tenant's.")]
MOST_EVENTS = 500
_DIGEST = re.compile(rf"\b([0-9a-f]{{{SHOWN_DIGITS}}})[0-9a-f]{{{64 - SHOWN_DIGITS}}}\b")


def usage(
    *,
    tenant: TenantOption = None,
    adapter: Annotated[str | None, typer.Option(help="Only this adapter: tenant/name, or the base's id.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="YYYY-MM-DD", help="First day, in UTC.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="YYYY-MM-DD", help="Last day, included.")] = None,
    by: Annotated[
        str, typer.Option(help="Groups: day, tenant, adapter, digest; with commas between.")
    ] = "day,tenant,adapter,digest",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show what was used: tokens, texts, cold starts, memory."""
    from service.usage import Query, columns, csv_of, read_usage

    groups = tuple(part.strip() for part in by.split(",") if part.strip())
    query = Query(tenant, adapter, _day(first, "--from"), _day(last, "--to"), groups)
    with opened_database(store, database, must_exist=True) as opened:
        rows = read_usage(opened, query)
    if as_csv:
        sys.stdout.write(csv_of(rows, groups))
        return
    names = columns(groups)
    shown = [[_cell(name, row.as_dict()[name]) for name in names] for row in rows]
    table(tuple(names), [tuple(cells) for cells in shown])


def events(
    *,
    tenant: TenantOption = None,
    adapter: Annotated[str | None, typer.Option(help="Only this adapter's: tenant/name.")] = None,
    before: Annotated[int | None, typer.Option(min=1, help="Only events older than the one with this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_EVENTS, help="How many at most.")] = 50,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show what was done to adapters, tenants and keys, when and by whom; the newest first."""
    from adapters.audit import read_events
    from adapters.names import AdapterName

    with opened_database(store, database, must_exist=True) as opened:
        name = AdapterName.parse(adapter) if adapter is not None else None
        if name is not None and tenant not in (None, name.tenant):
            raise fail(f"{name} is not {tenant}'s: leave --tenant out")
        found = read_events(
            opened,
            tenant=tenant if name is None else name.tenant,
            name=None if name is None else name.name,
            before=before,
            most=limit,
        )
    table(("id", "at", "actor", "action", "what", "detail"), [_event(event) for event in found])


def _day(text: str | None, option: str) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise fail(f"{option} {text} is no day: write 2030-01-31") from None


def _cell(name: str, value: object) -> str:
    if name == "digest":
        return str(value)[:SHOWN_DIGITS] or "-"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _event(event: "AuditEvent") -> tuple[str, ...]:
    what = event.tenant or "-"
    if event.name is not None:
        what += f"/{event.name}"
    if event.alias is not None:
        what += f":{event.alias}"
    if event.digest is not None:
        what += f"@{event.digest[:SHOWN_DIGITS]}"
    detail = _DIGEST.sub(r"\1", json.dumps(event.detail, sort_keys=True)) if event.detail else ""
    return str(event.id), f"{event.at:%Y-%m-%d %H:%M:%S}", event.actor, event.action, what, detail
