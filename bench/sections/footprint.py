"""What the service costs before anybody asks it anything."""

import statistics
from pathlib import Path

import httpx

from adapters.base import BaseSource, resolve_base
from bench.context import Bench
from bench.processes import idle_share
from bench.sections.section import Section
from bench.systems.tenora_server import TenoraServer, publish

STARTS, IDLE_S, REGISTERED = 3, 10.0, 2000


def run(bench: Bench) -> None:
    """Start to ready, CPU while idle, and memory of adapters that nobody asks for; on the embedded base."""
    base = resolve_base("embedded")
    stores = bench.options.cache / "stores" / base.fingerprint[:12]
    none, many = stores / "none", stores / "registered"
    starts, idle = [], []
    for _ in range(STARTS):
        with _start(bench, base, none) as server:
            starts.append(server.start_seconds)
            idle.append(idle_share(server, IDLE_S / STARTS))
        bench.say(f"ready after {starts[-1]:.1f} s, idle at {idle[-1]:.2%} of a core")
    folders = bench.adapters(REGISTERED, base=base, kind="small", rank=1, targets=["q_proj"])
    bench.say(f"publishing {REGISTERED} small adapters")
    publish(many, base, folders)
    memory: dict[Path, list[tuple[int, int]]] = {none: [], many: []}
    for _ in range(STARTS):
        for store, found in memory.items():
            with _start(bench, base, store) as server:
                fresh = server.memory()
                httpx.get(f"{server.url}/v1/models", timeout=60).raise_for_status()
                found.append((fresh, server.memory()))
    without, registered = ([statistics.median(each) for each in zip(*found, strict=True)] for found in memory.values())
    per_adapter = [(after - before) / REGISTERED for before, after in zip(without, registered, strict=True)]
    bench.say(f"{per_adapter[0]:,.0f} bytes for each registered adapter, {per_adapter[1]:,.0f} once all were listed")
    bench.report.figures(
        "footprint",
        {
            "start_to_ready_s": round(statistics.median(starts), 2),
            "share_of_a_core_while_idle": round(statistics.median(idle), 4),
            "registered": REGISTERED,
            "bytes_per_registered_adapter": round(per_adapter[0]),
            "bytes_per_registered_adapter_once_listed": round(per_adapter[1]),
            "memory_without_adapters_mb": round(without[0] / 1e6),
        },
    )


def _start(bench: Bench, base: BaseSource, store: Path) -> TenoraServer:
    store.mkdir(parents=True, exist_ok=True)
    return TenoraServer(base="embedded", base_id=base.id, store=store, threads=bench.options.threads)


SECTION = Section("footprint", "start to ready, idle CPU, memory of 2,000 registered adapters; embedded base", run)
