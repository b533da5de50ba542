"""GET /healthz, /readyz and /metrics."""

from fastapi import Request
from starlette.responses import JSONResponse, Response

from service.auth import tenant_of
from service.metrics import CONTENT_TYPE
from service.state import state_of


async def healthz() -> Response:
    """The HTTP process is alive."""
    return JSONResponse({"ok": True})


async def readyz(request: Request) -> Response:
    """The engine is loaded and answers; 503 while it is not."""
    ready = state_of(request).client.ready
    return JSONResponse({"ready": ready}, 200 if ready else 503)


async def metrics(request: Request) -> Response:
    """Prometheus metrics; of those that name tenants a key sees its own tenant's."""
    return Response(state_of(request).metrics.render(tenant_of(request)), headers={"content-type": CONTENT_TYPE})
