"""One request from submission to its last event: its deadline, its client's disconnect, its timings."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.engine.events import TokenEvent
from service.engine_client import EngineClient, Output, Pending, watch_disconnect
from service.messages import Work
from service.metrics import Metrics
from service.settings import Settings
from service.state import state_of


def deadline_of(settings: Settings, timeout: float | None) -> float:
    """When to give a request up, on the monotonic clock; no request outlasts the server's own limit."""
    return time.monotonic() + min(timeout or settings.request_timeout, settings.request_timeout)


class Exchange:
    """A submitted request. Close it, whatever happens; what is unfinished then is taken out of the engine."""

    def __init__(self, request: Request, work: Work) -> None:
        state = state_of(request)
        self._client: EngineClient = state.client
        self._metrics: Metrics = state.metrics
        self.pending: Pending = state.client.submit(work)
        self._watcher = asyncio.create_task(watch_disconnect(request.receive, self.pending))

    async def outputs(self) -> AsyncGenerator[Output]:
        """The engine's outputs, timed."""
        last: dict[int, float] = {}
        async for event in self.pending.outputs():
            if isinstance(event, TokenEvent):
                self._time(event, last)
            else:
                self._metrics.queue_seconds.observe(event.queue_s)
            yield event

    def headers(self, tier: str | None = None) -> dict[str, str]:
        """Reply headers that say what answered; the tier is known once a sequence has finished."""
        prepared = self.pending.prepared
        if prepared is None:
            return {}
        headers = {"x-tenora-adapter": quote(prepared.served, safe="/@:+")}
        if tier is not None:
            headers["x-tenora-tier"] = "store" if prepared.cold else tier
        return headers

    def close(self) -> None:
        """Forget the request."""
        self._watcher.cancel()
        self._client.close(self.pending)

    def _time(self, event: TokenEvent, last: dict[int, float]) -> None:
        """Note when a token was chosen; it may have come here later, with others."""
        if not last:
            self._metrics.ttft.observe(event.at - self.pending.created)
        if event.index in last:
            self._metrics.itl.observe(event.at - last[event.index])
        last[event.index] = event.at


class EventStream(Response):
    """Server-sent events that close their exchange at the end, also when the body was never begun."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], exchange: Exchange) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **exchange.headers()}
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._chunks = chunks
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the chunks as they come."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._exchange.close()
