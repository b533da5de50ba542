"""What --quantize int8 costs in quality and gains in speed: two engines in one process, which take turns.

    python -m bench.quantize
    python -m bench.quantize --base FOLDER --text FILE     quality of another base, on a text of yours
    python -m bench.quantize --no-speed

Quality is measured on --base: how well each engine predicts a text, and how often both choose the same next token.
Speed is measured on --shape, with random weights unless it names a base. Progress goes to stderr, tables to stdout.
"""

import argparse
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import PACKAGES, cores, describe_machine

if TYPE_CHECKING:
    from torch import Tensor

    from bench.systems.tenora_engine import TenoraEngine

WAYS = ("none", "int8")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WINDOW = 256
"""Tokens that are read at once; every token but the first of them is predicted."""
AT_ONCE, PROMPT, LONG = 16, 64, 512
NEW = 16
"""Decode steps in a round."""

Pair = Mapping[str, "TenoraEngine"]


@dataclass
class Quality:
    """Sums over a text; ``tokens`` were predicted, which are ``octets`` bytes."""

    tokens: int = 0
    octets: int = 0
    same: int = 0
    divergence: float = 0.0
    surprise: dict[str, float] | None = None

    def bits_per_byte(self, way: str) -> float:
        """How many bits an engine would need to write the text down."""
        assert self.surprise is not None
        return self.surprise[way] / math.log(2) / self.octets

    def perplexity(self, way: str) -> float:
        """Between how many tokens an engine is torn."""
        assert self.surprise is not None
        return math.exp(self.surprise[way] / self.tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's affair, not the reader's
    print(_conditions(describe_machine(args.threads, None)), end="\n\n")
    print(quality_table(args), end="\n\n", flush=True)
    if args.speed:
        print(speed_table(args))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded", help="base whose quality is measured [%(default)s]")
    parser.add_argument("--text", type=Path, metavar="FILE", help="text to predict [the examples' held-out rows]")
    parser.add_argument("--windows", type=int, default=32, help=f"most windows of {WINDOW} tokens [%(default)s]")
    parser.add_argument("--shape", default="llama-135m", help="shape, or base, whose speed is measured [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each engine [%(default)s]")
    parser.add_argument("--threads", type=int, default=min(2, cores()), help="threads of both engines [%(default)s]")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="[%(default)s]")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="measure quality only")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()) / "tenora-bench",
                        help="where models and adapters are kept [%(default)s]")  # fmt: skip
    return parser.parse_args(arguments)


# ── quality ───────────────────────────────────────────────────────────────────────────────────────────────────


def quality_table(args: argparse.Namespace) -> str:
    """Both engines over the text."""
    from bench.markdown import table

    engines = _engines(args.base, args)
    found = compare(engines, _text(args.text), args.windows)
    plain = engines["none"].engine.base.model.dtype
    rows = [
        (name, f"{found.bits_per_byte(way):.4f}", f"{found.perplexity(way):.3f}")
        for way, name in (("none", str(plain).removeprefix("torch.")), ("int8", "int8"))
    ]
    return (
        f"{engines['none'].source.id}: {found.tokens:,} tokens of {args.text or 'the held-out examples'}\n\n"
        f"{table(('weights', 'bits per byte', 'perplexity'), rows)}\n\n"
        f"The same likeliest token: {found.same / found.tokens:.1%}; divergence: "
        f"{found.divergence / found.tokens:.5f} nats per token."
    )


def compare(engines: Pair, text: str, windows: int) -> Quality:
    """How well each engine predicts a text, and how far int8 is from the other."""
    found = Quality(surprise=dict.fromkeys(engines, 0.0))
    for ids in _windows(engines["none"], text, windows):
        guesses = {way: next_tokens(system, ids)[:-1] for way, system in engines.items()}
        exact, rounded = guesses["none"], guesses["int8"]
        found.tokens += len(exact)
        found.octets += len(engines["none"].engine.base.tokenizer.decode(ids[1:]).encode())
        found.same += int((exact.argmax(-1) == rounded.argmax(-1)).sum())
        found.divergence += float((exact.exp() * (exact - rounded)).sum())
        for way, guess in guesses.items():
            assert found.surprise is not None
            found.surprise[way] -= float(guess[range(len(guess)), ids[1:]].sum())
    return found


def next_tokens(system: "TenoraEngine", ids: list[int]) -> "Tensor":
    """Log-probabilities of what follows each token: ``[t, vocabulary]``."""
    import torch

    from service.engine.loader import Probe
    from service.engine.self_check import trial_prompt

    engine = system.engine
    asked = replace(engine.base, probe=Probe(ids, torch.empty(0)))
    with torch.inference_mode(), trial_prompt(asked, engine._builder, engine._cache) as batch:
        _, hidden = engine._runner.forward(batch)
        logits: Tensor = engine.base.model.get_output_embeddings()(hidden)
    return logits.float().log_softmax(-1)


def _windows(system: "TenoraEngine", text: str, most: int) -> Iterator[list[int]]:
    ids = list(system.engine.base.tokenizer(text, verbose=False)["input_ids"])
    size = min(WINDOW, system.engine.max_model_len - 1)
    for start in range(0, min(len(ids) - size + 1, most * size), size):
        yield ids[start : start + size]


def _text(file: Path | None) -> str:
    if file is not None:
        return file.read_text("utf-8")
    names = ("instructions_heldout.jsonl", "reviews_heldout.jsonl")
    rows = [json.loads(line) for name in names for line in (EXAMPLES / name).read_text("utf-8").splitlines()]
    keys = ("instruction", "input", "output", "text")
    return "\n".join(" ".join(row[key] for key in keys if row.get(key)) for row in rows)


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────────────────


def speed_table(args: argparse.Namespace) -> str:
    """Both engines in turns; the fastest step of each."""
    from bench.context import Bench, Options
    from bench.markdown import table
    from bench.report import Report

    options = Options(
        shape=args.shape, quick=True, rounds=args.rounds, threads=args.threads, dtype=args.dtype,
        cache=args.cache.resolve(), llama_server=None,
    )  # fmt: skip
    bench = Bench(options, Report(None, {}, {}))
    bench.section = "quantize"
    engines = _engines(str(bench.base.path), args, bench.adapters(AT_ONCE))
    work = _work(bench.base.config().vocab_size)
    fastest: dict[tuple[str, str], float] = {}
    for number in range(args.rounds):
        for name, step in work.items():
            for way, system in engines.items():
                taken = step(system, number)
                fastest[name, way] = min(taken, fastest.get((name, way), taken))
        bench.say(f"round {number + 1} of {args.rounds}")
    rows = []
    for name in work:
        plain, rounded = (fastest[name, way] for way in WAYS)
        rows.append((name, f"{plain:.2f}", f"{rounded:.2f}", f"{plain / rounded:.2f}×"))
    sizes = {way: _megabytes(system) for way, system in engines.items()}
    rows.append(
        ("the base in memory, MB", *(f"{sizes[way]:.0f}" for way in WAYS), f"{sizes['none'] / sizes['int8']:.2f}×")
    )
    plain = str(engines["none"].engine.base.model.dtype).removeprefix("torch.")
    head = (f"the fastest of {args.rounds} rounds, ms", plain, "int8", "ratio")
    return f"{args.shape}, in turns\n\n{table(head, rows)}"


def _work(vocabulary: int) -> dict[str, Callable[["TenoraEngine", int], float]]:
    """What is timed: each returns the milliseconds of its fastest step."""
    from bench.workloads import prompts

    def decode(system: "TenoraEngine", rows: int, seed: int, which: Sequence[int | None]) -> float:
        return min(system.decode_ms(prompts(rows, PROMPT, vocabulary, seed), which, NEW))

    def prefill(system: "TenoraEngine", seed: int) -> float:
        system.submit(prompts(1, LONG, vocabulary, seed)[0], None, 1)
        start = time.perf_counter()
        system.engine.step()
        taken = time.perf_counter() - start
        assert not system.engine.has_work(), "the prompt did not fit one step"
        return taken * 1e3

    adapted: list[int | None] = list(range(AT_ONCE))
    return {
        f"decode, {AT_ONCE} rows": lambda system, seed: decode(system, AT_ONCE, seed, [None] * AT_ONCE),
        f"decode, {AT_ONCE} rows, {AT_ONCE} adapters": lambda system, seed: decode(system, AT_ONCE, seed, adapted),
        "decode, 1 row": lambda system, seed: decode(system, 1, seed, [None]),
        f"prompt of {LONG} tokens": prefill,
    }


def _megabytes(system: "TenoraEngine") -> float:
    """What the base's linears take as they are kept."""
    total = 0
    for linear in system.engine.base.linears.values():
        kept = getattr(linear.base, "panels", None)
        total += linear.weight.nbytes if kept is None else kept.nbytes
    return total / 1e6


def _engines(base: str, args: argparse.Namespace, adapters: Sequence[Path] = ()) -> Pair:
    from bench.systems.tenora_engine import TenoraEngine

    # All prompts fit one step, so that all answers begin and end together.
    sizes = {
        "max_running": AT_ONCE,
        "max_step_tokens": AT_ONCE * PROMPT,
        "threads": args.threads,
        "prefix_reuse": False,
    }
    return {way: TenoraEngine(base=base, adapters=adapters, dtype=args.dtype, quantize=way, **sizes) for way in WAYS}


def _conditions(machine: Mapping[str, object]) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *PACKAGES) if machine.get(name))
    return (
        f"{machine['cpu']} ({', '.join(machine['instructions']) or 'no wide instructions'}), "  # type: ignore[arg-type]
        f"{machine['threads']} of {machine['cores']} cores, {machine['system']}; {versions}. "
        f"Load before the run: {machine['load_before']}."
    )


if __name__ == "__main__":
    main()
