"""What the first request of an adapter waits for that nobody has asked for yet."""

import os
import statistics
from pathlib import Path

from bench.context import Bench
from bench.http_load import Connection
from bench.measuring import percentile
from bench.sections.section import Section
from bench.systems.tenora_server import TENANT, publish
from bench.workloads import prompts

NEW_TOKENS = 2
FIRST = 100
"""Number of the first adapter that is only here."""


def run(bench: Bench) -> None:
    """First token of each adapter, cold and then twice warm, at a server that does nothing else.

    Half of the adapters are read from where the operating system keeps files that were just written, half from the
    disk itself.
    """
    count = 12 if bench.options.quick else 24
    server = bench.server
    folders = bench.adapters(2 * count, first=FIRST)
    # A store keeps what it has from a run before; this server has not touched it, so it is as cold.
    store, _ = bench.store([])
    names = publish(store, bench.base, folders)
    seed = iter(range(10_000, 20_000))
    vocabulary = bench.base.config().vocab_size

    def first_token(name: str) -> float:
        prompt = prompts(1, bench.options.prompt_tokens, vocabulary, next(seed))[0]
        with Connection(server.port) as connection:
            return connection.first_event_ms(server.request(prompt, name, NEW_TOKENS, stream=True))

    warmed = bench.adapters(1)[0].name
    for _ in range(5):
        first_token(warmed)
    found: dict[str, list[float]] = {"cold": [], "cold_from_disk": [], "warm": []}
    for number, name in enumerate(names):
        from_disk = number % 2 == 1
        if from_disk:
            _forget(store, name)
        found["cold_from_disk" if from_disk else "cold"].append(first_token(name))
        found["warm"] += [first_token(name), first_token(name)]
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    bench.say(", ".join(f"{kind} {value:.1f} ms" for kind, value in medians.items()))
    bench.report.figures(
        "cold",
        {
            "adapters": count,
            "first_token_ms": {
                kind: {
                    "median": round(medians[kind], 2),
                    "low": round(min(values), 2),
                    "high": round(max(values), 2),
                    "p90": round(percentile(values, 0.9), 2),
                }
                for kind, values in found.items()
            },
            "from_disk_minus_warm_ms": round(medians["cold_from_disk"] - medians["warm"], 2),
        },
    )
    bench.report.ratio("cold_minus_warm_ms", medians["cold"] - medians["warm"])


def _forget(store: Path, name: str) -> None:
    """Make the operating system read an adapter's files from the disk again."""
    for path in (path for path in (store / TENANT / name).rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


SECTION = Section(
    "cold", "first token of an adapter only on disk, against a warm one", run, ("cold_minus_warm_ms",), quick=True
)
