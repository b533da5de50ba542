"""What `/metrics` shows: counts of the HTTP process, and the engine process's own as of its last report."""

import time
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import chain
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.busiest import Busiest, families
from service.messages import WorkerStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Queue(Protocol):
    """What is asked of the engine client at a scrape."""

    @property
    def ready(self) -> bool:
        """Whether the engine answers."""

    @property
    def in_flight(self) -> int:
        """Sequences that are owed."""

    @property
    def buffered(self) -> int:
        """Entries of the response buffer."""


class Metrics:
    """All metrics of a server, in a registry of their own.

    Args:
        top_k: Pairs of tenant and adapter that have series of their own.
    """

    def __init__(self, top_k: int = 20) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a timestamp beside every counter doubles the page and tells nothing
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tenora_requests", "Requests by route and HTTP status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "tenora_request_seconds", "Time until the last byte, by route.", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.ttft = Histogram(
            "tenora_ttft_seconds", "Time to the first token.", buckets=_SECONDS, registry=self.registry
        )
        self.itl = Histogram(
            "tenora_itl_seconds", "Time between two tokens of a sequence.", buckets=_SECONDS, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "tenora_queue_seconds", "Time a sequence waited for its place in the batch.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.rejected = Counter("tenora_rejected", "Requests answered with 429.", registry=self.registry)
        self.cancelled = Counter(
            "tenora_cancelled", "Requests taken out of the engine before they were finished.", registry=self.registry
        )
        self.worker_restarts = Counter(
            "tenora_worker_restarts", "Engine processes that took over from a dead one.", registry=self.registry
        )
        self.busiest = Busiest(top_k)
        self._engine = EngineCollector()
        self.registry.register(self._engine)

    def observe_worker(self, stats: WorkerStats) -> None:
        """Keep the engine process's last report."""
        self._engine.stats = stats

    def follow(self, queue: Queue) -> None:
        """Show a client's queue from now on."""
        self._engine.queue = queue

    def render(self, tenant: str | None = None) -> bytes:
        """The text that Prometheus reads: everything, or what a tenant did; sums tell of others' doings too."""
        everybody = self.registry.collect() if tenant is None else ()
        return generate_latest(_View(chain(everybody, families([*self.busiest.counts(tenant)]))))


class _View(Collector):
    """Metrics for one scrape."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class EngineCollector(Collector):
    """Reads gauges and the engine's counts at the moment of a scrape."""

    def __init__(self) -> None:
        self.stats: WorkerStats | None = None
        self.queue: Queue | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first report, so nothing is promised."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric of the queue and of the engine."""
        if self.queue is not None:
            yield _gauge("ready", "1 if the engine answers.", int(self.queue.ready))
            yield _gauge("queue_length", "Sequences that were accepted and are not finished.", self.queue.in_flight)
            yield _gauge("response_buffer_entries", "Entries of the response buffer; 1.", self.queue.buffered)
        if self.stats is not None:
            yield from _engine_metrics(self.stats)


def _engine_metrics(stats: WorkerStats) -> Iterator[Metric]:
    engine = stats.engine
    yield _gauge("sequences_preparing", "Requests that are being prepared.", stats.preparing)
    yield _gauge("sequences_waiting", "Sequences that wait for the engine.", engine.waiting)
    yield _gauge("sequences_running", "Sequences that hold a place in the batch.", engine.running)
    yield _counter("steps", "Steps of the engine.", engine.steps)
    yield _counter("prompt_tokens", "Tokens of prompts and texts that were computed.", engine.prompt_tokens)
    yield _counter("cached_prompt_tokens", "Tokens of prompts that were in the KV cache.", engine.cached_tokens)
    yield _counter("generated_tokens", "Tokens that were generated.", engine.generated_tokens)
    yield _counter("classified_texts", "Texts that were classified or scored.", engine.classified_texts)
    yield _histogram("batch_size", "Sequences in a step.", engine.batch_sizes)
    yield _histogram("adapters_per_step", "Distinct adapters in a step.", engine.adapters_per_step)
    yield _gauge("max_adapters_in_step", "The most distinct adapters that shared a step.", engine.max_adapters_in_step)
    yield _gauge(
        "max_kinds_in_step", "The most kinds of work (generate, classify) that shared a step.", engine.max_kinds_in_step
    )
    yield _counter("adapter_swaps", "Adapters copied into a slot.", engine.adapter_loads)
    yield _counter("adapter_evictions", "Adapters that lost their slot.", engine.adapter_evictions)
    yield _gauge("adapters_resident", "Adapters in slots.", engine.adapters_resident)
    yield _gauge("adapter_pins", "Sequences that keep an adapter in its slot.", engine.pins)
    yield _lookups(stats)
    yield _counter("back_outs", "Versions that were taken out of the split of an adapter's requests.", stats.back_outs)
    yield _counter("shadows_dropped", "Shadows that were not run, as there was too much to do.", stats.shadows_dropped)
    yield _gauge("host_cache_bytes", "Size of the adapters kept in host memory.", stats.host_cache_bytes)
    yield _gauge("kv_blocks_total", "Blocks of the KV cache.", engine.kv_rows_total)
    yield _gauge("kv_blocks_free", "Free blocks of the KV cache.", engine.kv_rows_free)


def _lookups(stats: WorkerStats) -> Metric:
    family = CounterMetricFamily(
        "tenora_adapter_lookups",
        "Sequences by where their adapter was (device, host); reads of an adapter from the store.",
        labels=["tier"],
    )
    for tier in ("device", "host"):
        family.add_metric([tier], stats.engine.tiers.get(tier, 0))
    family.add_metric(["store"], stats.store_reads)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tenora_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tenora_{name}", text, value=value)


def _histogram(name: str, text: str, counts: Mapping[int, int]) -> Metric:
    buckets: list[tuple[str, float]] = [
        (str(float(size)), sum(count for value, count in counts.items() if value <= size)) for size in _SIZES
    ]
    total = sum(counts.values())
    weighted = sum(value * count for value, count in counts.items())
    return HistogramMetricFamily(f"tenora_{name}", text, buckets=[*buckets, ("+Inf", total)], sum_value=weighted)


class RequestMetrics:
    """ASGI middleware that counts every answer, also those that never reach a route.

    Args:
        app: What is counted.
        metrics: Where.
        paths: Paths of the routes; an answer that was given before routing is counted under its path, if it is here.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Set[str] = frozenset()) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch its status."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.monotonic()
        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = 500 if status == 499 else status  # answered further out, where no middleware sees it
            raise
        finally:
            route = route_of(scope, self._paths)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - began)


def route_of(scope: Scope, paths: Set[str]) -> str:
    """The route's pattern, never any path: a label must not take as many values as clients can think of."""
    unrouted = scope["path"] if scope["path"] in paths else "unmatched"
    return str(getattr(scope.get("route"), "path", unrouted))
