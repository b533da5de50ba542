"""Measures the GPU path: many adapters in one batch against few and none, and against PEFT, on one GPU in one run.

    python -m bench.gpu [--rounds 3] [--json results.json]

A Llama of 1.2 billion parameters with random weights; every adapter has rank 16 on all linears; each request has a
prompt of 128 tokens and wants 128. 64 and 256 requests at once, under no adapter and under 1, 64 and 256 of them.
Systems take turns (A B C A B C …). Reported are output tokens per second, the median step in which every row decodes,
and how much of the memory's speed, measured in the same run by copying, such a step reaches. Without a CUDA device it
refuses.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.measuring import Spread, System, take_turns

if TYPE_CHECKING:
    from adapters.adapter import Adapter
    from service.engine.engine import Engine

SHAPE: Mapping[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
AT_ONCE = (64, 256)
ADAPTERS = (0, 1, 64, 256)
PEFT_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes of one run."""

    shape: Mapping[str, Any] = field(default_factory=lambda: SHAPE)
    at_once: tuple[int, ...] = AT_ONCE
    adapters: tuple[int, ...] = ADAPTERS
    peft_at_once: int = PEFT_AT_ONCE
    rank: int = 16
    prompt_tokens: int = 128
    new_tokens: int = 128
    rounds: int = 3
    device: str = "cuda"
    dtype: str = "bfloat16"


class Case:
    """So many requests at once on one engine, spread over so many adapters."""

    def __init__(self, engine: "Engine", adapters: Sequence["Adapter"], at_once: int, workload: Workload) -> None:
        self.key = f"{at_once}/{len(adapters)}"
        self.name = f"Tenora, {at_once} at once, {len(adapters) or 'no'} adapter{'s' * (len(adapters) != 1)}"
        self.at_once = at_once
        self.in_use = min(at_once, len(adapters))
        self.steps_ms: list[float] = []
        self._engine = engine
        self._adapters = adapters
        self._workload = workload

    def run(self, number: int, *, new_tokens: int | None = None) -> int:
        """Serve one round; returns the tokens generated."""
        from bench.workloads import prompts
        from service.engine.events import FailedEvent
        from service.engine.sampling import SamplingParams
        from service.engine.sequence import Sequence as EngineSequence

        wanted = new_tokens or self._workload.new_tokens
        sampling = SamplingParams(max_tokens=wanted, temperature=0.0, ignore_eos=True)
        vocabulary = self._workload.shape["vocab_size"]
        sequences = []
        for i, ids in enumerate(prompts(self.at_once, self._workload.prompt_tokens, vocabulary, seed=number)):
            # Spread over all of them, so that those in use are not neighbours in memory.
            place = i * max(1, len(self._adapters) // self.at_once)
            adapter = self._adapters[place % len(self._adapters)] if self._adapters else None
            sequences.append(EngineSequence(f"{number}/{i}", ids, adapter=adapter, sampling=sampling))
            self._engine.submit(sequences[-1])
        while self._engine.has_work():
            decoding = all(sequence.decoding for sequence in sequences)
            start = time.perf_counter()
            for event in self._engine.step():
                if isinstance(event, FailedEvent):
                    raise RuntimeError(event.message)
            if decoding and number >= 0:
                self.steps_ms.append((time.perf_counter() - start) * 1e3)
        return self.at_once * wanted

    def system(self) -> System:
        """As something that takes turns."""
        return System(self.key, self.name, self.run, partial(self.run, -1, new_tokens=8))

    def bytes_of_a_step(self, engine: "Engine") -> int:
        """What a decode step in the middle of the answers must read: weights, keys and values, adapters in use."""
        from service.engine.loader import CacheShape

        config, work = engine.base.model.config, self._workload
        width = engine.base.model.dtype.itemsize
        weights = sum(parameter.numel() for parameter in engine.base.model.parameters())
        if not config.tie_word_embeddings:
            weights -= config.vocab_size * config.hidden_size  # of the embedding only the tokens' rows are read
        tokens = self.at_once * (work.prompt_tokens + work.new_tokens // 2)
        low_rank = 0
        if self._adapters:
            pairs = self._adapters[0].weights.pairs.values()
            low_rank = self.in_use * sum(pair.a.numel() + pair.b.numel() for pair in pairs)
        cached = tokens * CacheShape.of(engine.base).token_bytes(engine.base.model.dtype)
        return int((weights + low_rank) * width + cached)


class PeftMixed:
    """PEFT's mixed batches (`adapter_names`), every adapter loaded once."""

    def __init__(self, base: Path, folder: Path, workload: Workload) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, workload.dtype)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(workload.device)
        wrapped = PeftModel.from_pretrained(model, folder, adapter_name="a0", autocast_adapter_dtype=False)
        for number in range(1, workload.peft_at_once):
            wrapped.load_adapter(folder, adapter_name=f"a{number}", autocast_adapter_dtype=False)
        self._model = wrapped.to(dtype).eval()
        self._workload = workload

    def run(self, number: int, *, new_tokens: int | None = None) -> int:
        """Serve one round, each row under its own adapter; returns the tokens generated."""
        from bench.workloads import prompts

        work, wanted = self._workload, new_tokens or self._workload.new_tokens
        rows = prompts(work.peft_at_once, work.prompt_tokens, work.shape["vocab_size"], seed=number)
        ids = torch.tensor(rows, device=work.device)
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=[f"a{i}" for i in range(len(rows))],
                max_new_tokens=wanted,
                min_new_tokens=wanted,
                do_sample=False,
            ).cpu()
        return len(rows) * wanted

    def system(self) -> System:
        """As something that takes turns."""
        at_once = self._workload.peft_at_once
        name = f"PEFT `adapter_names`, {at_once} at once, {at_once} adapters"
        return System("peft", name, self.run, partial(self.run, -1, new_tokens=2))


def copy_speed(device: str, size: int = 1 << 31) -> float:
    """Bytes per second that the memory reads and writes while it copies, the best of several tries."""
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    best = 0.0
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = max(best, 2 * size / (time.perf_counter() - start))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(workload: Workload, folder: Path) -> dict[str, Any]:
    """Make a model and an adapter, take turns, and put the figures together."""
    from adapters.adapter import load_adapter
    from adapters.base import resolve_base
    from bench.models import make_model
    from bench.random_adapters import peft_template, write_missing
    from service.engine.config import EngineConfig
    from service.engine.engine import Engine

    say("making a model and an adapter")
    source = resolve_base(str(make_model(workload.shape, folder / "base")))
    (written,) = write_missing(source, peft_template(source, rank=workload.rank), [folder / "adapter"])
    one = load_adapter(written, source)
    most, speed = max(workload.adapters), copy_speed(workload.device)
    # The same matrices under many names: what they hold does not change what they cost, and each has its own slot.
    adapters = [replace(one, digest=f"{i}") for i in range(most)]
    engine = Engine(
        source,
        EngineConfig(
            device=workload.device,
            dtype=workload.dtype,
            max_running=max(workload.at_once),
            max_model_len=workload.prompt_tokens + workload.new_tokens,
            max_step_tokens=8192,
            adapter_slots=most,
            max_lora_rank=workload.rank,
            kv_cache_bytes=16 << 30,
        ),
    )
    cases = [
        Case(engine, adapters[:count], at_once, workload) for at_once in workload.at_once for count in workload.adapters
    ]
    say("loading adapters into their slots")
    Case(engine, adapters, most, workload).run(-1, new_tokens=1)
    say("loading PEFT")
    rival = PeftMixed(source.path, written, workload)
    rates = take_turns([*(case.system() for case in cases), rival.system()], workload.rounds, say)
    return report(workload, engine, cases, rates, speed)


def report(
    workload: Workload, engine: "Engine", cases: Sequence[Case], rates: Mapping[str, Spread], speed: float
) -> dict[str, Any]:
    """Rates, steps and ratios of a run."""
    steps = {case.key: statistics.median(case.steps_ms) for case in cases}
    best = speed * 1e-3
    cuda = workload.device == "cuda"
    return {
        "machine": {
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "torch": torch.__version__,
            "copy_gb_per_s": speed / 1e9,
        },
        "workload": {
            "kernels": engine.kernels,
            "prompt_tokens": workload.prompt_tokens,
            "new_tokens": workload.new_tokens,
            "rank": workload.rank,
            "dtype": workload.dtype,
        },
        "rates": {key: spread.to_json() for key, spread in rates.items()},
        "systems": {case.key: case.name for case in cases},
        "decode_step_ms": steps,
        "share_of_memory_speed": {case.key: case.bytes_of_a_step(engine) / (steps[case.key] * best) for case in cases},
        "slower_than_base": {
            case.key: steps[case.key] / steps[f"{case.at_once}/0"] - 1 for case in cases if case.in_use
        },
        "times_peft": {
            case.key: rates[case.key].median / rates["peft"].median
            for case in cases
            if case.at_once == case.in_use == workload.peft_at_once
        },
    }


def table(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{found['machine']['gpu']}, torch {found['machine']['torch']}, memory copies at "
        f"{found['machine']['copy_gb_per_s']:,.0f} GB/s",
        "",
        "| system | output tokens/s | decode step, ms | over base | of the memory's speed |",
        "|---|---:|---:|---:|---:|",
    ]
    for key, name in found["systems"].items():
        over = found["slower_than_base"].get(key)
        lines.append(
            f"| {name} | {found['rates'][key]['median']:,.0f} | {found['decode_step_ms'][key]:.2f} | "
            f"{'' if over is None else f'{over:+.0%}'} | {found['share_of_memory_speed'][key]:.0%} |"
        )
    lines.append(f"| PEFT `adapter_names`, as many adapters | {found['rates']['peft']['median']:,.0f} | | | |")
    lines += [f"\n{found['systems'][key]}: {times:.1f}× PEFT" for key, times in found["times_peft"].items()]
    return "\n".join(lines)


def say(text: str) -> None:
    """Tell the person who waits what is going on."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds after one to warm up")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("bench.gpu needs a CUDA device and torch sees none; bench.serving measures the CPU")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's affair, not the reader's
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Workload(rounds=args.rounds), Path(folder))
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
