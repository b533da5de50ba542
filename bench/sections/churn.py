"""Whether an answer is the same when its neighbours and everybody's adapters change all the time."""

from collections.abc import Sequence
from typing import Any

from bench.context import Bench
from bench.remote import Remote
from bench.sections.section import Section
from bench.workloads import choose, lengths, prompts

REQUESTS, ADAPTERS, SLOTS, AT_ONCE = 48, 24, 4, 8
PROMPT, ANSWER = (8, 64), (8, 40)


def run(bench: Bench) -> None:
    """Each request alone, then all of them at once through few slots; in both types."""
    base = bench.base
    folders = bench.adapters(ADAPTERS)
    counts = lengths(REQUESTS, *ANSWER, seed=6)  # different, so that requests come and go one by one
    vocabulary = base.config().vocab_size
    batch = [prompts(1, size, vocabulary, 70_000 + k)[0] for k, size in enumerate(lengths(REQUESTS, *PROMPT, seed=5))]
    which = [index % ADAPTERS for index in choose("distinct", REQUESTS, 0)]
    config = {**bench.engine_config, "adapter_slots": SLOTS, "max_running": AT_ONCE}
    for dtype in ("float32", "bfloat16"):
        with Remote(
            "bench.systems.tenora_engine:TenoraEngine",
            threads=bench.options.threads,
            base=str(base.path),
            adapters=folders,
            **{**config, "dtype": dtype},
        ) as engine:
            bench.say(f"{REQUESTS} requests alone, in {dtype}")
            alone = [
                engine.call("generate", [ids], [index], count)[0]
                for ids, index, count in zip(batch, which, counts, strict=True)
            ]
            churned = engine.call("generate", batch, which, counts)
        found = compare(alone, churned)
        bench.say(
            f"{dtype}: {found['equal_answers']:.0%} of the answers are equal, {found['equal_tokens']:.1%} of the tokens"
        )
        bench.report.figures("churn", {dtype: found})


def compare(alone: Sequence[Sequence[int]], together: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Shares of answers that are equal, and of tokens up to the first that differs."""
    pairs = list(zip(alone, together, strict=True))
    common = [next((k for k, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x)) for x, y in pairs]
    return {
        "equal_answers": sum(list(x) == list(y) for x, y in pairs) / len(pairs),
        "equal_tokens": round(sum(common) / sum(len(x) for x, _ in pairs), 4),
    }


SECTION = Section("churn", "answers under churn equal those of the same requests alone", run)
