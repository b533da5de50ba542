"""One request from submission to its last event: its deadline, its client's disconnect, its timings."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.engine.events import TokenEvent
from service.engine_client import EngineClient, Output, Pending, watch_disconnect
from service.estimate import estimated_tokens
from service.limits import Permit
from service.messages import Generate, Work
from service.metrics import Metrics
from service.record import RequestRecord, record_of
from service.settings import Settings
from service.state import state_of
from service.tenants.caller import caller_of


def deadline_of(settings: Settings, timeout: float | None) -> float:
    """When to give a request up, on the monotonic clock; no request outlasts the server's own limit."""
    return time.monotonic() + min(timeout or settings.request_timeout, settings.request_timeout)


class Exchange:
    """A submitted request. Close it, whatever happens; what is unfinished then is taken out of the engine."""

    def __init__(self, request: Request, work: Work) -> None:
        state = state_of(request)
        self._client: EngineClient = state.client
        self._metrics: Metrics = state.metrics
        self._record: RequestRecord = record_of(request.scope)
        self._answers_per_prompt = work.n if isinstance(work, Generate) else 1
        caller = caller_of(request)
        self._permit: Permit | None = None
        if caller.tenant is not None:
            self._permit = state.limiter.admit(caller.tenant, caller.limits, estimated_tokens(work))
        try:
            self.pending: Pending = state.client.submit(replace(work, share=caller.limits.share))
        except BaseException:
            self._end_permit(0)
            raise
        self._watcher = asyncio.create_task(watch_disconnect(request.receive, self.pending))

    async def outputs(self) -> AsyncGenerator[Output]:
        """The engine's outputs, timed."""
        last: dict[int, float] = {}
        async for event in self.pending.outputs():
            self._record.prepared = self.pending.prepared
            self._record.take(event, counts_prompt=event.index % self._answers_per_prompt == 0)
            if isinstance(event, TokenEvent):
                self._time(event, last)
            else:
                self._metrics.queue_seconds.observe(event.queue_s)
            yield event

    @property
    def more(self) -> bool:
        """Whether the next output is here already, as the end of an answer is with its last token."""
        return not self.pending.queue.empty()

    def headers(self, *, whole: bool = True) -> dict[str, str]:
        """Reply headers that say what answered, and what the tenant has left; of a whole answer also what it took."""
        limits = self._permit.headers if self._permit is not None else {}
        return self._record.headers(whole=whole) | limits

    def close(self) -> None:
        """Forget the request."""
        self._record.prepared = self.pending.prepared
        self._watcher.cancel()
        self._client.close(self.pending)
        self._end_permit(self._used())

    def _used(self) -> int | None:
        """The tokens that it took; None if it was given up in the midst of it, and nobody knows."""
        if self._record.prepared is None:
            return 0
        return self._record.prompt_tokens + self._record.generated_tokens if self.pending.settled else None

    def _end_permit(self, tokens: int | None) -> None:
        if self._permit is not None:
            if tokens is not None:
                self._permit.settle(tokens)
            self._permit.close()

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
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **exchange.headers(whole=False)}
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
