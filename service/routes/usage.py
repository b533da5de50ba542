"""GET /v1/usage: what was used, as JSON or CSV."""

from datetime import date
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import Query as Parameter
from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.errors import TenantNotFoundError
from service.state import state_of
from service.tenants.caller import caller_of
from service.usage import GROUPS, Query, csv_of, read_usage


async def show_usage(  # noqa: PLR0917 (FastAPI passes them by name)
    request: Request,
    tenant: Annotated[str | None, Parameter(description="Only this tenant; a tenant's key sees its own alone.")] = None,
    adapter: Annotated[str | None, Parameter(description="Only this adapter: tenant/name, or the base's id.")] = None,
    first: Annotated[date | None, Parameter(alias="from", description="First day, in UTC.")] = None,
    last: Annotated[date | None, Parameter(alias="to", description="Last day, included.")] = None,
    by: Annotated[str, Parameter(description="Groups: day, tenant, adapter, digest; with commas between.")] = ",".join(
        GROUPS
    ),
    format: Annotated[Literal["json", "csv"], Parameter(description="json or csv.")] = "json",  # noqa: A002
) -> Response:
    """Tokens, classifications, cold starts and memory, by tenant, adapter, version and day."""
    own = caller_of(request).tenant
    if own is not None and tenant not in (None, own):
        raise TenantNotFoundError(tenant or "")
    groups = tuple(part.strip() for part in by.split(",") if part.strip())
    query = Query(own or tenant, adapter, first, last, groups)
    database = state_of(request).database
    rows = await to_thread.run_sync(lambda: read_usage(database, query))
    if format == "csv":
        return Response(csv_of(rows, groups), media_type="text/csv")
    return JSONResponse({"object": "list", "data": [row.as_dict() for row in rows]})
