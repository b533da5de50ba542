"""/admin/v1: tenants, keys and grants.

An operator's key may do all of it. A tenant's key with the scope `admin` may make, rotate and revoke that tenant's
keys and open its adapters to others; to it, nothing else exists. That a key has the scope is checked before.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request
from starlette.responses import JSONResponse, Response

from adapters.names import AdapterName
from service.admin_schemas import Limits, NewKeyRequest, NewTenant, Rotation
from service.errors import PermissionDeniedError, TenantNotFoundError
from service.state import state_of
from service.tenants.caller import Caller, caller_of, owned
from service.tenants.directory import Tenant
from service.tenants.keys import Key, NewKey

T = TypeVar("T")


async def create_tenant(request: Request, body: NewTenant) -> Response:
    """Make a tenant."""
    caller, directory = _operator(request), state_of(request).directory
    limits = body.model_dump(exclude_unset=True, exclude={"name", "disabled"})

    def create() -> Tenant:
        made = directory.create(body.name, limits, by=caller.key_id)
        return directory.set_disabled(body.name, True, by=caller.key_id) if body.disabled else made

    return JSONResponse(_tenant(await _change(request, create)), 201)


async def list_tenants(request: Request) -> Response:
    """All tenants; to a tenant's own key, that tenant alone."""
    caller, directory = caller_of(request), state_of(request).directory
    tenant = caller.tenant
    found = await _ask(lambda: directory.all() if tenant is None else [directory.get(tenant)])
    return JSONResponse({"object": "list", "data": [_tenant(one) for one in found]})


async def show_tenant(request: Request, tenant: str) -> Response:
    """One tenant with its limits."""
    _check_tenant(caller_of(request), tenant)
    return JSONResponse(_tenant(await _ask(lambda: state_of(request).directory.get(tenant))))


async def change_tenant(request: Request, tenant: str, body: Limits) -> Response:
    """Set or take away some of a tenant's limits, or disable it."""
    caller, directory = _operator(request), state_of(request).directory
    limits = body.model_dump(exclude_unset=True, exclude={"disabled"})

    def change() -> Tenant:
        changed = directory.change(tenant, limits, by=caller.key_id)
        return changed if body.disabled is None else directory.set_disabled(tenant, body.disabled, by=caller.key_id)

    return JSONResponse(_tenant(await _change(request, change)))


async def create_key(request: Request, body: NewKeyRequest) -> Response:
    """Make a key. This reply is the only one that will ever show it."""
    caller, keys = caller_of(request), state_of(request).keys
    tenant = body.tenant if body.tenant is not None else caller.tenant
    _check_tenant(caller, tenant)
    made = await _change(
        request,
        lambda: keys.create(tenant, body.scopes, by=caller.key_id, label=body.label, expires_at=body.expires_at),
    )
    return JSONResponse(_new_key(made), 201, {"cache-control": "no-store"})


async def list_keys(request: Request) -> Response:
    """All keys that the caller may see, without their secrets."""
    caller, keys = caller_of(request), state_of(request).keys
    found = await _ask(lambda: keys.all(caller.tenant))
    return JSONResponse({"object": "list", "data": [_key(key) for key in found]})


async def rotate_key(request: Request, key_id: str, body: Rotation) -> Response:
    """Make a key like this one, which ends after the overlap."""
    caller, keys = caller_of(request), state_of(request).keys
    made = await _change(
        request, lambda: keys.rotate(key_id, by=caller.key_id, overlap=body.overlap, tenant=caller.tenant)
    )
    return JSONResponse(_new_key(made), 201, {"cache-control": "no-store"})


async def revoke_key(request: Request, key_id: str) -> Response:
    """End a key at once."""
    caller, keys = caller_of(request), state_of(request).keys
    return JSONResponse(
        _key(await _change(request, lambda: keys.revoke(key_id, by=caller.key_id, tenant=caller.tenant)))
    )


async def list_grants(request: Request, tenant: str, name: str) -> Response:
    """To whom an adapter is open."""
    adapter = owned(request, tenant, name)
    return await _grants(request, adapter, lambda: None)


async def grant(request: Request, tenant: str, name: str, grantee: str) -> Response:
    """Open an adapter to another tenant; a tenant's own key is not told whether there is such a tenant."""
    caller, adapter = caller_of(request), owned(request, tenant, name)
    directory, must_exist = state_of(request).directory, caller.is_operator
    return await _grants(
        request, adapter, lambda: directory.grant(adapter, grantee, by=caller.key_id, must_exist=must_exist)
    )


async def withdraw(request: Request, tenant: str, name: str, grantee: str) -> Response:
    """Close an adapter to another tenant again; what runs is finished."""
    caller, adapter = caller_of(request), owned(request, tenant, name)
    directory = state_of(request).directory
    return await _grants(request, adapter, lambda: directory.withdraw(adapter, grantee, by=caller.key_id))


ADMIN: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("POST", "/admin/v1/tenants", create_tenant),
    ("GET", "/admin/v1/tenants", list_tenants),
    ("GET", "/admin/v1/tenants/{tenant}", show_tenant),
    ("PATCH", "/admin/v1/tenants/{tenant}", change_tenant),
    ("POST", "/admin/v1/keys", create_key),
    ("GET", "/admin/v1/keys", list_keys),
    ("POST", "/admin/v1/keys/{key_id}/rotate", rotate_key),
    ("DELETE", "/admin/v1/keys/{key_id}", revoke_key),
    ("GET", "/admin/v1/adapters/{tenant}/{name}/grants", list_grants),
    ("PUT", "/admin/v1/adapters/{tenant}/{name}/grants/{grantee}", grant),
    ("DELETE", "/admin/v1/adapters/{tenant}/{name}/grants/{grantee}", withdraw),
)


async def _ask(question: Callable[[], T]) -> T:
    """Ask the database, off the event loop."""
    return await to_thread.run_sync(question)


async def _change(request: Request, change: Callable[[], T]) -> T:
    """Change the database; what this process believed of keys is forgotten."""
    try:
        return await to_thread.run_sync(change)
    finally:
        state_of(request).access.forget()


def _operator(request: Request) -> Caller:
    caller = caller_of(request)
    if not caller.is_operator:
        raise PermissionDeniedError("Tenants are made and changed with an operator's key; this is a tenant's.")
    return caller


def _check_tenant(caller: Caller, tenant: str | None) -> None:
    if caller.tenant is not None and tenant != caller.tenant:
        raise TenantNotFoundError(tenant or "")


async def _grants(request: Request, adapter: AdapterName, change: Callable[[], None]) -> Response:
    def run() -> list[str]:
        change()
        return state_of(request).directory.grantees(adapter)

    return JSONResponse({"adapter": str(adapter), "grantees": await _change(request, run)})


def _tenant(tenant: Tenant) -> dict[str, Any]:
    facts = asdict(tenant)
    return {
        "object": "tenant",
        **facts,
        "created_at": tenant.created_at.isoformat(),
        "disabled_at": tenant.disabled_at.isoformat() if tenant.disabled_at else None,
    }


def _key(key: Key) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at")}
    return {
        "object": "api_key",
        **asdict(key),
        **{name: moment.isoformat() if moment else None for name, moment in times.items()},
    }


def _new_key(made: NewKey) -> dict[str, Any]:
    return {**_key(made.key), "key": made.secret}
