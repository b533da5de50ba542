"""The outermost middleware: every request gets its record and its id, and at its end a line in the log and a trace."""

import logging
from collections.abc import Set

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth import tenant_of
from service.busiest import Outcome
from service.metrics import Metrics, route_of
from service.record import REQUEST_ID, RequestRecord, record_of, request_id_from
from service.traces import Traces

UNRESOLVED = "none"
"""The adapter of a request that failed before it was known which one it meant."""

logger = logging.getLogger("service.requests")


class RequestLog:
    """ASGI middleware around all others.

    Args:
        app: What is inside.
        metrics: Counts each request for its tenant and adapter.
        traces: Tells each request as spans.
        paths: Paths of the routes, as :class:`RequestMetrics` wants them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces, paths: Set[str] = frozenset()) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tell what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        record.request_id = request_id_from(Headers(scope=scope).get(REQUEST_ID))
        status = 499

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = 500 if status == 499 else status
            raise
        finally:
            self._tell(scope, record, status)

    def _tell(self, scope: Scope, record: RequestRecord, status: int) -> None:
        tenant, route = tenant_of(Request(scope)), route_of(scope, self._paths)
        self._count(record, tenant, status)
        self._traces.tell(record, scope, route, status, tenant)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s %s %d", scope["method"], route, status, extra=_fields(record, route, status, tenant))

    def _count(self, record: RequestRecord, tenant: str | None, status: int) -> None:
        """Count for the key's tenant; a key that sees every tenant counts for the adapter's own."""
        adapter = record.adapter or (record.prepared.served if record.prepared is not None else None)
        owner = tenant or (record.adapter.partition("/")[0] if record.adapter is not None else None)
        if adapter is None and owner is None:
            return  # nobody's: the counts by route have it
        cold = record.prepared is not None and record.prepared.cold
        outcome = Outcome(status, record.prompt_tokens, record.generated_tokens, record.ttft_s, cold)
        self._metrics.busiest.add((owner or "*", adapter or UNRESOLVED), outcome)


def _fields(record: RequestRecord, route: str, status: int, tenant: str | None) -> dict[str, object]:
    return {
        "request_id": record.request_id,
        "tenant": tenant,
        "adapter": record.prepared.served if record.prepared is not None else None,
        "route": route,
        "status": status,
        "queue_ms": _ms(record.queue_s),
        "compute_ms": _ms(record.compute_s),
        "tokens": record.prompt_tokens + record.generated_tokens if record.prepared is not None else None,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
