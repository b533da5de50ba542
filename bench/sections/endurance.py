"""What a server holds after an hour's requests: its memory has to stand still once it is warm."""

import statistics
import time
from collections.abc import Iterator, Sequence

from adapters.base import resolve_base
from bench.context import Bench
from bench.http_load import Connection, Request, send_all
from bench.sections.bystander import Others
from bench.sections.section import Section
from bench.systems.tenora_server import TENANT, TenoraServer, publish
from bench.workloads import lengths, prompts

REQUESTS, PARTS = 7200, 10
"""Two a second for an hour, sent as fast as they are answered, and how often it is told how far they are."""
ADAPTERS, HELD, SLOTS, AT_ONCE = 64, 16, 8, 8
PROMPT, ANSWER = (8, 64), (1, 32)
SAMPLE_S, PUBLISH_S = 2.0, 1.0
WARM = 0.2
"""Share of the samples in which caches and allocators are still filling."""


def run(bench: Bench) -> None:
    """Ask for adapters in turn, so that each is read again, while another is published and unloaded."""
    base = resolve_base("embedded")
    folders = bench.adapters(ADAPTERS, base=base, kind="long")
    store = bench.options.cache / "stores" / base.fingerprint[:12] / "endurance"
    names = publish(store, base, folders)
    samples: list[tuple[float, int]] = []
    with TenoraServer(
        base="embedded",
        base_id=base.id,
        store=store,
        threads=bench.options.threads,
        adapter_slots=SLOTS,
        max_running=AT_ONCE,
        host_cache_bytes=HELD * sum(path.stat().st_size for path in folders[0].iterdir()),
        adapter_folders=[str(bench.options.cache / "adapters")],
    ) as server:

        def watch() -> None:
            time.sleep(SAMPLE_S)
            samples.append((time.perf_counter(), server.memory()))

        body = {"lora_name": f"{TENANT}/comes-and-goes", "load_inplace": True}

        def come_and_go() -> None:
            time.sleep(PUBLISH_S)
            with Connection(server.port) as connection:
                connection.post(Request("/v1/load_lora_adapter", {**body, "lora_path": str(folders[0])}))
                connection.post(Request("/v1/unload_lora_adapter", {"lora_name": body["lora_name"]}))

        requests = list(_requests(server, names, base.config().vocab_size))
        start = time.perf_counter()
        with Others(watch), Others(come_and_go) as publishing:
            for part in range(PARTS):
                send_all(server.port, requests[part::PARTS], AT_ONCE)
                bench.say(f"{(part + 1) * REQUESTS // PARTS} of {REQUESTS} requests: {samples[-1][1] / 1e6:.0f} MB")
        seconds = time.perf_counter() - start
    told = {"seconds": round(seconds), "requests": REQUESTS, "adapters": ADAPTERS, "published": publishing.cycles}
    bench.report.figures("endurance", {**told, **growth(samples[int(WARM * len(samples)) :])})


def growth(samples: Sequence[tuple[float, int]]) -> dict[str, float]:
    """How memory goes on: means of the first and the last fifth and the largest, in MB, and the slope.

    Args:
        samples: Seconds and bytes, two at least.
    """
    times, sizes = zip(*samples, strict=True)
    fifth = max(1, len(samples) // 5)
    return {
        "warm_mb": round(statistics.mean(sizes[:fifth]) / 1e6, 1),
        "end_mb": round(statistics.mean(sizes[-fifth:]) / 1e6, 1),
        "largest_mb": round(max(sizes) / 1e6, 1),
        "mb_per_minute": round(statistics.linear_regression(times, sizes).slope * 60 / 1e6, 2),
    }


def _requests(server: TenoraServer, names: Sequence[str], vocabulary: int) -> Iterator[Request]:
    """Adapters in turn, in an order that a cache of the least recently used cannot serve."""
    sizes, answers = lengths(REQUESTS, *PROMPT, seed=11), lengths(REQUESTS, *ANSWER, seed=12)
    for k, (size, count) in enumerate(zip(sizes, answers, strict=True)):
        yield server.request(prompts(1, size, vocabulary, 90_000 + k)[0], names[k // PARTS % len(names)], count)


SECTION = Section("endurance", "memory of a server over an hour's requests for adapters that come and go", run)
