"""/v1/adapters: which versions there are, where aliases point, what is pinned, what goes. /v1/events: the audit log.

A key that is for inference or for publishing may read, as far as its tenant's own adapters go. What else a route asks
of a key stands in the table of routes. Another tenant's adapter is answered as one that does not exist.
"""

from typing import Annotated, Any

from fastapi import Query, Request
from starlette.responses import JSONResponse, Response

from adapters.audit import AuditEvent
from adapters.names import AdapterName, check_part
from service.errors import AdapterUnknownError, PermissionDeniedError
from service.lifecycle_messages import (
    AdapterInfo,
    Delete,
    LifecycleQuestion,
    ListAdapters,
    Moved,
    Pin,
    Promote,
    ReadEvents,
    RollBack,
    ShowAdapter,
    VersionInfo,
)
from service.lifecycle_schemas import PinRequest, PromoteRequest, RollBackRequest
from service.state import state_of
from service.tenants.caller import Caller, caller_of, owned

MAX_EVENTS = 500
CHECKS_TIMEOUT_S = 3700.0
"""A little longer than the checks of a gate may take."""


async def list_adapters(request: Request) -> Response:
    """The caller's own adapters, those that are not being served included."""
    found: list[AdapterInfo] = await _ask(request, ListAdapters(_reader(request).tenant))
    return JSONResponse({"object": "list", "data": [_adapter(one) for one in found]})


async def show_adapter(request: Request, tenant: str, name: str) -> Response:
    """An adapter with all its versions, in the order of their publishing."""
    _reader(request)
    info, versions = await _ask(request, ShowAdapter(owned(request, tenant, name)))
    return JSONResponse(_adapter(info) | {"data": [version_entry(version) for version in versions]})


async def promote(request: Request, tenant: str, name: str, body: PromoteRequest) -> Response:
    """Point an alias at a version that shows what the alias demands; requests in flight finish on theirs."""
    adapter, caller = owned(request, tenant, name), caller_of(request)
    if body.force:
        caller.check("admin")
    question = Promote(adapter, caller.key_id, body.alias, body.version, body.force)
    return _moved(adapter, await state_of(request).client.ask(question, CHECKS_TIMEOUT_S))


async def roll_back(request: Request, tenant: str, name: str, body: RollBackRequest) -> Response:
    """Point an alias at what it pointed at before."""
    adapter, by = owned(request, tenant, name), caller_of(request).key_id
    return _moved(adapter, await _ask(request, RollBack(adapter, by, body.alias)))


async def pin(request: Request, tenant: str, name: str, body: PinRequest) -> Response:
    """Keep a version from being deleted, and in memory once it was read."""
    question = Pin(owned(request, tenant, name), caller_of(request).key_id, body.version, True)
    return JSONResponse(version_entry(await _ask(request, question)))


async def unpin(request: Request, tenant: str, name: str, body: PinRequest) -> Response:
    """Let a pinned version go."""
    question = Pin(owned(request, tenant, name), caller_of(request).key_id, body.version, False)
    return JSONResponse(version_entry(await _ask(request, question)))


async def delete_adapter(request: Request, tenant: str, name: str) -> Response:
    """Delete an adapter with all its versions and aliases; its files stay for a while, for what is in flight."""
    adapter = owned(request, tenant, name)
    grace: float = await _ask(request, Delete(adapter, caller_of(request).key_id))
    return JSONResponse({"id": str(adapter), "object": "adapter.deleted", "deleted": True, "grace_seconds": grace})


async def delete_version(request: Request, tenant: str, name: str, digest: str) -> Response:
    """Delete a version that is not pinned and that no alias but `latest` points at; its files stay for a while."""
    adapter = owned(request, tenant, name)
    grace: float = await _ask(request, Delete(adapter, caller_of(request).key_id, version=digest))
    shown = f"{adapter}@{digest}"
    return JSONResponse({"id": shown, "object": "adapter.version.deleted", "deleted": True, "grace_seconds": grace})


async def delete_alias(request: Request, tenant: str, name: str, alias: str) -> Response:
    """Remove an alias; `latest` cannot be removed."""
    adapter = owned(request, tenant, name)
    await _ask(request, Delete(adapter, caller_of(request).key_id, alias=alias))
    return JSONResponse({"id": f"{adapter}:{alias}", "object": "adapter.alias.deleted", "deleted": True})


async def list_events(
    request: Request,
    tenant: Annotated[str | None, Query(description="Only this tenant's; operators only.")] = None,
    adapter: Annotated[str | None, Query(description="Only this adapter's: tenant/name, or a name.")] = None,
    before: Annotated[
        int | None, Query(ge=1, lt=2**63, description="Only events older than the one with this id.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="How many at most.")] = 100,
) -> Response:
    """What was done to adapters, tenants and keys, when and by which key; the newest first."""
    caller = _reader(request)
    whose, name = _narrowed(caller, tenant, adapter)
    # One more than is shown tells whether there are more.
    found: list[AuditEvent] = await _ask(request, ReadEvents(whose, name, before, limit + 1))
    shown = found[:limit]
    return JSONResponse({"object": "list", "data": [_event(one) for one in shown], "has_more": len(found) > limit})


def version_entry(version: VersionInfo) -> dict[str, Any]:
    """A version as replies show it."""
    files = version.files
    return {
        "id": f"{version.name}@{version.digest}",
        "object": "adapter.version",
        "adapter": str(version.name),
        "digest": version.digest,
        "number": version.number,
        "published_at": version.published_at.isoformat() if version.published_at else None,
        "published_by": version.published_by,
        "task": files.task if files else None,
        "rank": files.rank if files else None,
        "labels": list(files.labels) if files and files.labels is not None else None,
        "base": files.base if files else None,
        "size": files.size if files else None,
        "pinned": version.pinned,
        "aliases": list(version.aliases),
    }


async def _ask(request: Request, question: LifecycleQuestion) -> Any:
    return await state_of(request).client.ask(question)


def _reader(request: Request) -> Caller:
    caller = caller_of(request)
    if "publish" not in caller.scopes:
        caller.check("infer")
    return caller


def _narrowed(caller: Caller, tenant: str | None, adapter: str | None) -> tuple[str | None, str | None]:
    """The tenant and the name whose events are meant, as far as the caller may see them."""
    if tenant is not None and caller.tenant not in (None, tenant):
        raise PermissionDeniedError("Other tenants' events are for operators: leave 'tenant' out.", param="tenant")
    whose = caller.tenant if tenant is None else tenant
    if adapter is None:
        return whose, None
    owner, slash, name = adapter.rpartition("/")
    check_part(name, "adapter")
    if slash and whose not in (None, owner):
        raise AdapterUnknownError(adapter)
    return owner if slash else whose, name


def _adapter(info: AdapterInfo) -> dict[str, Any]:
    return {
        "id": str(info.name),
        "object": "adapter",
        "versions": info.versions,
        "aliases": dict(sorted(info.aliases.items())),
        "served": info.served,
    }


def _moved(adapter: AdapterName, moved: Moved) -> Response:
    return JSONResponse(
        {
            "id": f"{adapter}:{moved.alias}",
            "object": "adapter.alias",
            "alias": moved.alias,
            "digest": moved.digest,
            "before": moved.before,
            "verdict": moved.verdict.as_dict() if moved.verdict is not None else None,
        }
    )


def _event(event: AuditEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "event",
        "at": event.at.isoformat(),
        "actor": event.actor,
        "action": event.action,
        "tenant": event.tenant,
        "adapter": f"{event.tenant}/{event.name}" if event.name is not None else None,
        "digest": event.digest,
        "alias": event.alias,
        "detail": event.detail,
    }
