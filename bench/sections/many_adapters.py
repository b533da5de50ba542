"""S-LoRA's open loop: throughput as the number of registered adapters grows far beyond what the slots hold."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.context import Bench
from bench.measuring import Spread, percentile
from bench.remote import Remote
from bench.sections.section import Section
from bench.workloads import Arrival, open_loop

RANK = 8
"""S-LoRA's."""
PROMPT, ANSWER = (8, 128), (8, 128)
"""Bounds of the uniform lengths: a quarter of S-LoRA's, so that adapters change four times as often."""
FEW, MANY = 5, 1000
SWEEP_COUNTS = (1, 5, 20, 100, 500, 1000)
OVERLOAD, FIXED, MODERATE = 2.0, 0.8, 0.7
"""Requests that arrive, as a share of what the engine can do with a few adapters."""
SETTLE_S, SETTLE_FIXED_S = 0.7, 2.0
"""Seconds that are not counted: until all rows are taken, and until as many requests leave as come."""


class Loop:
    """An engine with so many adapters in its host cache, and the load to put on it."""

    def __init__(self, bench: Bench, adapters: int) -> None:
        self._bench = bench
        self._engine = Remote(
            "bench.systems.open_loop:OpenLoop",
            threads=bench.options.threads,
            base=str(bench.base.path),
            count=adapters,
            rank=RANK,
            **bench.engine_config,
        )
        bench.say(f"making {adapters} adapters of rank {RANK} and reading them into the host cache")
        try:
            self.filled: dict[str, float] = self._engine.call("fill")
            self._capacity = self._measure_capacity()
        except BaseException:
            self.close()
            raise

    def window(
        self, adapters: int, seconds: float, seed: int, *, load: float = OVERLOAD, settle: float = SETTLE_S
    ) -> dict[str, Any]:
        """Serve requests over so many of the adapters at a multiple of what the engine can do.

        With the same seed the same requests arrive at the same times, only their adapters differ.
        """
        arrivals = open_loop(
            adapters=adapters,
            rate=load * self._capacity,
            seconds=seconds + settle,
            prompt_tokens=PROMPT,
            new_tokens=ANSWER,
            seed=seed,
        )
        return self._serve(arrivals, seconds, settle)

    def _measure_capacity(self) -> float:
        """Requests a second that the engine serves under a few adapters, all of them waiting from the start."""
        rows = open_loop(adapters=FEW, rate=200, seconds=2, prompt_tokens=PROMPT, new_tokens=ANSWER, seed=3)
        result = self._serve([Arrival(0.0, row.adapter, row.prompt_tokens, row.new_tokens) for row in rows], 2.0)
        rate = result["tokens_per_s"] / statistics.mean(range(*ANSWER))
        self._bench.say(f"capacity is about {rate:.1f} requests/s")
        return float(max(rate, 0.5))

    def _serve(self, arrivals: Sequence[Arrival], seconds: float, settle: float = SETTLE_S) -> dict[str, Any]:
        found: dict[str, Any] = self._engine.call("window", arrivals, seconds + settle, settle)
        return found

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def run(bench: Bench) -> None:
    """1,000 adapters against 5, in turns: at a fixed rate, and above capacity."""
    quick = bench.options.quick
    fixed_s, above_s, rounds = (6.0, 3.0, 2) if quick else (30.0, 15.0, max(3, bench.options.rounds))
    loop = Loop(bench, MANY)
    try:
        fixed = _turns(bench, loop, (FEW, MANY), fixed_s, rounds, load=FIXED, settle=SETTLE_FIXED_S)
        above = _turns(bench, loop, (FEW, MANY), above_s, rounds)
    finally:
        loop.close()
    _tell(bench, "many_adapters", above, loop)
    for count, results in fixed.items():
        spread = Spread(tuple(result["tokens_per_s"] for result in results), "tok/s")
        name = f"Tenora's engine, {FIXED:g} of its capacity asked, {count:,} adapters"
        bench.report.rate(f"fixed_rate_{count}", name, spread)
    medians = {count: statistics.median(result["tokens_per_s"] for result in above[count]) for count in above}
    bench.report.figures(
        "many_adapters",
        {
            "above_capacity_1000_vs_5": round(medians[MANY] / medians[FEW], 3),
            f"at_{FIXED:g}_of_capacity": {str(count): _latencies(results) for count, results in fixed.items()},
        },
    )
    bench.report.ratio_of("adapters1000_vs_5", f"fixed_rate_{MANY}", f"fixed_rate_{FEW}")


def _latencies(results: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Of all windows together, in milliseconds; None where no request came so far."""
    found: dict[str, float | None] = {}
    for key in ("first_token", "request"):
        values = [value for result in results for value in result[f"{key}_s"]]
        for share in (0.5, 0.95):
            found[f"{key}_ms_p{round(100 * share)}"] = round(percentile(values, share) * 1e3) if values else None
    return {**found, "swaps_per_s": round(statistics.median(result["swaps_per_s"] for result in results), 2)}


def sweep(bench: Bench) -> None:
    """From one adapter to a thousand: throughput above capacity, and time to the first token below it."""
    loop = Loop(bench, max(SWEEP_COUNTS))
    try:
        windows = _turns(bench, loop, SWEEP_COUNTS, 8.0, min(3, bench.options.rounds))
        calm = {count: loop.window(count, 10.0, seed=77, load=MODERATE) for count in SWEEP_COUNTS}
    finally:
        loop.close()
    _tell(bench, "sweep", windows, loop, prefix="sweep")
    bench.report.figures(
        "sweep",
        {
            "first_token_ms_at_0.7_of_capacity": {
                str(count): {
                    "p50": round(percentile(result["first_token_s"], 0.5) * 1e3, 1),
                    "p99": round(percentile(result["first_token_s"], 0.99) * 1e3, 1),
                }
                for count, result in calm.items()
            }
        },
    )


def _turns(
    bench: Bench,
    loop: Loop,
    counts: Sequence[int],
    seconds: float,
    rounds: int,
    *,
    load: float = OVERLOAD,
    settle: float = SETTLE_S,
) -> dict[int, list[dict[str, Any]]]:
    windows: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts:
            windows[count].append(loop.window(count, seconds, seed=number, load=load, settle=settle))
            last = windows[count][-1]
            bench.say(
                f"round {number + 1} of {rounds}, load {load:g}: {count} adapters: {last['tokens_per_s']:.0f} tok/s, "
                f"{last['swaps_per_s']:.1f} swaps/s"
            )
    return windows


def _tell(
    bench: Bench, section: str, windows: dict[int, list[dict[str, Any]]], loop: Loop, prefix: str = "open_loop"
) -> None:
    for count, results in windows.items():
        spread = Spread(tuple(result["tokens_per_s"] for result in results), "tok/s")
        bench.report.rate(f"{prefix}_{count}", f"Tenora's engine, open loop over {count:,} adapters", spread)
    bench.report.figures(
        section,
        {
            "rank": RANK,
            "prompt_tokens": list(PROMPT),
            "new_tokens": list(ANSWER),
            "offered_load": OVERLOAD,
            "popularity": "uniform",
            "slots": bench.options.at_once,
            "host_cache_gb": round(loop.filled["bytes"] / 1e9, 2),
            "read_ms_per_adapter": round(loop.filled["read_ms"], 2),
            "swaps_per_s": {
                str(count): round(statistics.median(result["swaps_per_s"] for result in results), 2)
                for count, results in windows.items()
            },
            "store_reads": sum(result["store_reads"] for results in windows.values() for result in results),
        },
    )


SECTION = Section(
    "many-adapters",
    "open loop at a fixed rate and above capacity, 1,000 registered adapters against 5",
    run,
    ("adapters1000_vs_5",),
    quick=True,
)
SWEEP = Section("sweep", "the open loop from 1 to 1,000 adapters, with times to the first token", sweep)
