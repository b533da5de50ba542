"""Traces by OpenTelemetry: a span per request, with its wait, its prompt and its answer as spans inside.

On where the extra `otel` is installed and OTEL_EXPORTER_OTLP_ENDPOINT is set. All variables of that name are
OpenTelemetry's own and read by its SDK: they are no settings of this service. The spans are made when a request is
over, from the times of its record, so that a request in flight pays nothing for them.
"""

import logging
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Scope

from service.record import RequestRecord
from service.settings import traces_wanted

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

logger = logging.getLogger(__name__)


class Traces:
    """Tells requests as spans, once it is started; until then it does nothing."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    @property
    def on(self) -> bool:
        """Whether requests are told."""
        return self._tracer is not None

    def start(self) -> None:
        """Export from this process on, if the environment asks for it."""
        name = traces_wanted()
        if name is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            logger.warning("an endpoint for traces is set, but there are none: pip install 'tenora[otel]'")
            return
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.use(provider)

    def use(self, provider: "TracerProvider") -> None:
        """Tell what follows to this provider."""
        self._provider = provider
        self._tracer = provider.get_tracer("tenora")

    def stop(self) -> None:
        """Send what has gathered."""
        if self._provider is not None:
            self._provider.shutdown()
        self._provider = self._tracer = None

    def tell(self, record: RequestRecord, scope: Scope, route: str, status: int, tenant: str | None) -> None:
        """Make the spans of a request that is over."""
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        offset = time.time() - time.monotonic()
        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        span = self._tracer.start_span(
            f"{scope['method']} {route}", parent, SpanKind.SERVER, start_time=_ns(record.began + offset)
        )
        span.set_attributes(_attributes(record, scope, route, status, tenant))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        self._phases(span, record, offset)
        span.end(_ns(time.time()))

    def _phases(self, span: "Span", record: RequestRecord, offset: float) -> None:
        """Queue, prefill and decode, as far as they are known and took place."""
        from opentelemetry.trace import set_span_in_context

        assert self._tracer is not None
        first = record.first_token if record.first_token is not None else record.last_output
        marks = (
            ("queue", record.began, record.admitted),
            ("prefill", record.admitted, first),
            ("decode", first, record.last_output if record.first_token is not None else None),
        )
        context = set_span_in_context(span)
        for name, begin, end in marks:
            if begin is not None and end is not None:
                phase = self._tracer.start_span(name, context, start_time=_ns(begin + offset))
                phase.end(_ns(max(begin, end) + offset))


def _attributes(
    record: RequestRecord, scope: Scope, route: str, status: int, tenant: str | None
) -> dict[str, str | int]:
    known = {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": status,
        "tenora.request_id": record.request_id,
        "tenora.tenant": tenant,
        "tenora.adapter": record.prepared.served if record.prepared is not None else None,
        "tenora.tier": record.tier,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.generated_tokens,
    }
    return {name: value for name, value in known.items() if value is not None}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
