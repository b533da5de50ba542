"""Traces: a span per request with its phases inside, in the caller's trace."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from service.engine.events import ClassifiedEvent, FinishedEvent, TokenEvent
from service.messages import Prepared
from service.metrics import Metrics
from service.record import RequestRecord, record_of
from service.request_log import RequestLog
from service.traces import Traces

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    yield memory
    memory.shutdown()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = Traces()
    traces.use(provider)
    yield traces
    traces.stop()


def written() -> RequestRecord:
    now = time.monotonic()
    record = RequestRecord(began=now - 10, prepared=Prepared("r", "a/b@" + "0" * 64, cold=True, at=now - 9))
    record.take(TokenEvent("r", 0, "x", (1,), None, now - 6))
    record.take(TokenEvent("r", 0, "y", (2,), None, now - 2))
    record.take(FinishedEvent("r", 0, "stop", 5, 0, 2, 1.0, "host"))
    return record


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_request_and_its_phases(traces: Traces, exporter: InMemorySpanExporter) -> None:
    headers = [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]
    traces.tell(written(), {"type": "http", "method": "POST", "headers": headers}, "/v1/completions", 200, "a")
    found = spans(exporter)
    request = found["POST /v1/completions"]
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(request.attributes or {}).items() >= {
        "http.route": "/v1/completions", "http.response.status_code": 200, "tenora.tenant": "a",
        "tenora.adapter": "a/b@" + "0" * 64, "tenora.tier": "store", "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
    }.items()  # fmt: skip
    assert seconds(request) == pytest.approx(10, abs=0.5)
    for name, length in (("queue", 2), ("prefill", 2), ("decode", 4)):
        assert found[name].parent == request.context
        assert seconds(found[name]) == pytest.approx(length, abs=0.01)


def test_a_classification_has_no_decode(traces: Traces, exporter: InMemorySpanExporter) -> None:
    record = RequestRecord(prepared=Prepared("r", "a/b@" + "0" * 64, cold=False))
    record.take(ClassifiedEvent("r", 0, (1.0,), 3, 0.0, "device"))
    traces.tell(record, {"type": "http", "method": "POST", "headers": []}, "/v1/classify", 200, None)
    assert set(spans(exporter)) == {"POST /v1/classify", "queue", "prefill"}


def test_what_failed_before_it_was_computed_has_no_phases(traces: Traces, exporter: InMemorySpanExporter) -> None:
    traces.tell(RequestRecord(), {"type": "http", "method": "GET", "headers": []}, "unmatched", 503, None)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.parent is None


def test_through_the_middleware(traces: Traces, exporter: InMemorySpanExporter) -> None:
    async def answer(request: Request) -> Response:
        record_of(request.scope).prepared = Prepared("r", "base", cold=False)
        return PlainTextResponse("the-answer")

    app = Starlette(
        routes=[Route("/ask/{what}", answer)],
        middleware=[Middleware(RequestLog, metrics=Metrics(), traces=traces, paths=frozenset({"/ask"}))],
    )
    with TestClient(app) as client:
        reply = client.get("/ask/a-secret?q=a-secret", headers={"x-request-id": "mine"})
        assert reply.headers["x-request-id"] == "mine"
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None and span.attributes["tenora.request_id"] == "mine"
    assert "secret" not in span.to_json() and "the-answer" not in span.to_json()


def test_off_unless_the_environment_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    traces = Traces()
    traces.start()
    assert not traces.on
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    traces.start()
    assert traces.on
    traces.stop()
    assert not traces.on


def test_said_if_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import sys

    missing: Any = None
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", missing)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    traces = Traces()
    traces.start()
    assert not traces.on
    assert "tenora[otel]" in caplog.text
