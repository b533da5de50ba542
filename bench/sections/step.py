"""A decode step against its floor: the base's matrix products, and the adapters' bytes at the speed of memory."""

import statistics

from bench.context import Bench
from bench.measuring import Spread
from bench.remote import Remote
from bench.sections.section import Section
from bench.workloads import prompts


def run(bench: Bench) -> None:
    """Measure steps and floor in turns, in one process."""
    options = bench.options
    folders = bench.adapters(options.at_once)
    worker = Remote(
        "bench.systems.step_floor:StepAndFloor",
        threads=options.threads,
        base=str(bench.base.path),
        adapters=folders,
        rows=options.at_once,
        **bench.engine_config,
    )
    steps, linears, bandwidths = [], [], []
    vocabulary = bench.base.config().vocab_size
    with worker:
        sizes = worker.call("sizes")
        for number in range(-1, options.rounds):
            batch = prompts(options.at_once, options.prompt_tokens, vocabulary, seed=500 + number)
            taken = worker.call("decode_ms", batch, list(range(options.at_once)), options.new_tokens)
            ways, bandwidth = worker.call("linears_ms"), worker.call("bandwidth")
            if number < 0:
                continue
            steps.append(statistics.median(taken))
            linears.append(ways)
            bandwidths.append(bandwidth)
            bench.say(f"round {number + 1} of {options.rounds}: step {steps[-1]:.1f} ms, linears {_shown(ways)}")
    medians = {way: statistics.median(each[way] for each in linears) for way in linears[0]}
    fastest = min(medians, key=medians.__getitem__)
    speed = statistics.median(bandwidths)
    adapters_ms = sizes["adapters"] / speed * 1e3
    floor = medians[fastest] + adapters_ms
    step = Spread(tuple(steps), "ms")
    bench.report.figures(
        "step",
        {
            "step_ms": step.to_json(),
            "linears_ms": {way: round(value, 2) for way, value in medians.items()},
            "fastest_linears": fastest,
            "adapters_ms": round(adapters_ms, 2),
            "floor_ms": round(floor, 2),
            "bytes_only_ms": round((sizes["weights"] + sizes["adapters"]) / speed * 1e3, 2),
            "memory_gb_per_s": round(speed / 1e9, 1),
            "weight_mb": round(sizes["weights"] / 1e6, 1),
            "adapter_mb": round(sizes["adapters"] / 1e6, 1),
        },
    )
    bench.report.ratio("step_vs_floor", floor / step.median)


def _shown(ways: dict[str, float]) -> str:
    return ", ".join(f"{value:.1f} ms ({way})" for way, value in ways.items())


SECTION = Section("step", "a decode step of distinct adapters against its floor", run, ("step_vs_floor",), quick=True)
