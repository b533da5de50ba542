"""`tenora tenants` and `tenora keys`: who may use a server, on its database, without the server."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli_store import DatabaseOption, StoreOption, opened_database, table

tenants = typer.Typer(
    help="Make tenants, limit them, open adapters to them.", no_args_is_help=True, rich_markup_mode=None
)
keys = typer.Typer(help="Make, rotate and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)

BY = "operator"
"""As `adapters.audit.OPERATOR`, whose imports would slow --help down."""

TenantArgument = Annotated[str, typer.Argument(help="The tenant.")]
AdapterArgument = Annotated[str, typer.Argument(help="tenant/name")]
KeyArgument = Annotated[str, typer.Argument(help="The key's id, as `tenora keys list` shows it.")]
Share = Annotated[float | None, typer.Option(min=1e-3, max=1e3, help="Its share of what is contended for. [1]")]
Requests = Annotated[int | None, typer.Option("--requests-per-minute", min=0, help="0 takes the limit away.")]
Tokens = Annotated[int | None, typer.Option("--tokens-per-minute", min=0, help="0 takes the limit away.")]
Concurrent = Annotated[int | None, typer.Option(min=0, help="Requests in flight at once; 0 takes the limit away.")]
Resident = Annotated[int | None, typer.Option("--resident-bytes", min=0, help="Of adapters in memory; 0: no limit.")]


@tenants.command("create")
def create_tenant(
    name: TenantArgument,
    *,
    share: Share = None,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    resident: Resident = None,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """Make a tenant."""
    from service.tenants.directory import Directory

    limits = {key: value for key, value in _limits(share, requests, tokens, concurrent, resident).items() if value}
    with opened_database(store, database) as opened:
        Directory(opened).create(name, limits, by=BY)
    typer.echo(f"tenant {name} made; give it a key: tenora keys create --tenant {name}")


@tenants.command("limit")
def limit_tenant(
    name: TenantArgument,
    *,
    share: Share = None,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    resident: Resident = None,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """Set or take away a tenant's limits; what is not named stays."""
    from service.tenants.directory import Directory

    limits = _limits(share, requests, tokens, concurrent, resident)
    with opened_database(store, database) as opened:
        Directory(opened).change(name, limits, by=BY)
    typer.echo(f"limits of {name} changed; a running server follows within a second")


@tenants.command("list")
def list_tenants(store: StoreOption = None, database: DatabaseOption = None) -> None:
    """List the tenants with their limits."""
    from service.tenants.directory import LIMITS, Directory

    with opened_database(store, database) as opened:
        found = Directory(opened).all()
    rows = [
        (
            tenant.name,
            "disabled" if tenant.disabled_at else "yes",
            *(_shown(getattr(tenant, name)) for name in LIMITS),
            _day(tenant.created_at),
        )
        for tenant in found
    ]
    table(("tenant", "enabled", *LIMITS, "made"), rows)


@tenants.command("disable")
def disable_tenant(name: TenantArgument, store: StoreOption = None, database: DatabaseOption = None) -> None:
    """Stop all keys of a tenant from working; nothing is deleted."""
    _set_disabled(name, True, store, database)


@tenants.command("enable")
def enable_tenant(name: TenantArgument, store: StoreOption = None, database: DatabaseOption = None) -> None:
    """Let the keys of a disabled tenant work again."""
    _set_disabled(name, False, store, database)


@tenants.command("grant")
def grant_adapter(
    adapter: AdapterArgument,
    tenant: TenantArgument,
    *,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take the grant back instead.")] = False,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """Open an adapter to another tenant."""
    from adapters.names import AdapterName
    from service.tenants.directory import Directory

    with opened_database(store, database) as opened:
        directory, name = Directory(opened), AdapterName.parse(adapter)
        if withdraw:
            directory.withdraw(name, tenant, by=BY)
        else:
            directory.grant(name, tenant, by=BY)
        grantees = directory.grantees(name)
    typer.echo(f"{adapter} is open to: {', '.join(grantees) or 'its own tenant alone'}")


@keys.command("create")
def create_key(
    *,
    tenant: Annotated[str | None, typer.Option(help="Whose key; without, an operator's, for every tenant.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, publish, train or admin; repeat for more. [infer; operators: admin]"),
    ] = None,
    label: Annotated[str, typer.Option(help="What people call it.")] = "",
    days: Annotated[float | None, typer.Option(min=0, max=36500, help="Days until it ends. [never]")] = None,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    from service.tenants.keys import Keys

    ends = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    scopes = scope or (["infer"] if tenant is not None else ["admin"])
    with opened_database(store, database) as opened:
        made = Keys(opened).create(tenant, scopes, by=BY, label=label, expires_at=ends)
    _show_key(made.secret, made.key.id)


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the keys; what they are cannot be seen any more."""
    from service.tenants.keys import Keys

    with opened_database(store, database) as opened:
        found = Keys(opened).all(tenant)
    rows = [
        (
            key.id,
            key.tenant or "(operator)",
            ", ".join(key.scopes),
            key.label or "-",
            _day(key.created_at),
            "revoked" if key.revoked_at else _day(key.expires_at) if key.expires_at else "never",
        )
        for key in found
    ]
    table(("id", "tenant", "scopes", "label", "made", "ends"), rows)


@keys.command("rotate")
def rotate_key(
    key: KeyArgument,
    *,
    overlap: Annotated[float, typer.Option(min=0, max=2592000, help="Seconds that the old key goes on working.")] = 0.0,
    store: StoreOption = None,
    database: DatabaseOption = None,
) -> None:
    """Make a key like an old one, which ends."""
    from service.tenants.keys import Keys

    with opened_database(store, database) as opened:
        made = Keys(opened).rotate(key, by=BY, overlap=overlap)
    _show_key(made.secret, made.key.id)


@keys.command("revoke")
def revoke_key(key: KeyArgument, store: StoreOption = None, database: DatabaseOption = None) -> None:
    """End a key; running servers follow within a second."""
    from service.tenants.keys import Keys

    with opened_database(store, database) as opened:
        Keys(opened).revoke(key, by=BY)
    typer.echo(f"key {key} revoked")


def _limits(
    share: float | None, requests: int | None, tokens: int | None, concurrent: int | None, resident: int | None
) -> dict[str, Any]:
    counts = {
        "requests_per_minute": requests,
        "tokens_per_minute": tokens,
        "concurrent": concurrent,
        "resident_bytes": resident,
    }
    given: dict[str, Any] = {name: value or None for name, value in counts.items() if value is not None}
    return given if share is None else {"share": share, **given}


def _set_disabled(name: str, disabled: bool, store: Path | None, database: str | None) -> None:
    from service.tenants.directory import Directory

    with opened_database(store, database) as opened:
        Directory(opened).set_disabled(name, disabled, by=BY)
    typer.echo(f"tenant {name} {'disabled' if disabled else 'enabled'}")


def _show_key(secret: str, key_id: str) -> None:
    typer.echo(secret)
    # On stderr, so that the key alone can be piped on.
    sys.stderr.write(f"this is key {key_id}; keep it: it cannot be shown again\n")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
