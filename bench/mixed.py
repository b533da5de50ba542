"""Output tokens per second with many adapters in one batch, against PEFT on the same machine in the same run.

    python -m bench.mixed [--base DIR|ID] [--adapters 16] [--rank 16] [--rounds 5] [--json FILE]

Random adapters of one rank on every linear of the base; each request has a prompt of 64 tokens and wants 48.
The systems take turns (A B C A B C …) and the medians of the rounds are reported; only the ratios mean anything on
another machine.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.adapter import Adapter, infer_manifest, load_adapter
from adapters.base import BaseSource, resolve_base
from adapters.manifest import write_manifest
from adapters.quiet import quiet_transformers
from adapters.templates import PromptTemplate
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence

PROMPT_TOKENS, NEW_TOKENS = 64, 48


def write_adapters(base: BaseSource, count: int, rank: int, folder: Path) -> list[Path]:
    """Random adapters, written by PEFT itself."""
    folders = []
    for i in range(count):
        torch.manual_seed(i)
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules="all-linear")
        wrapped = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.02)
        folders.append(folder / f"a{i}")
        wrapped.save_pretrained(folders[-1])
        write_manifest(folders[-1], infer_manifest(folders[-1], base, template=PromptTemplate.named("plain")))
    return folders


def prompts(base: BaseSource, count: int) -> list[list[int]]:
    """Random tokens: what they say does not change what they cost."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, base.config().vocab_size, (count, PROMPT_TOKENS), generator=generator).tolist()


def run_engine(engine: Engine, batch: list[list[int]], adapters: list[Adapter | None]) -> int:
    """Serve one request per prompt; return the tokens generated."""
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    for i, (ids, adapter) in enumerate(zip(batch, adapters, strict=True)):
        engine.submit(Sequence(str(i), ids, adapter=adapter, sampling=params))
    while engine.has_work():
        engine.step()
    return len(batch) * NEW_TOKENS


def run_peft(model: PeftModel, batch: list[list[int]], names: list[str]) -> int:
    """The same through PEFT's mixed batches."""
    ids = torch.tensor(batch)
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            adapter_names=names,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    return len(batch) * NEW_TOKENS


def load_peft(base: BaseSource, folders: list[Path], dtype: torch.dtype) -> PeftModel:
    """The base in the same type, with every adapter loaded."""
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype)
    wrapped = PeftModel.from_pretrained(model, folders[0], adapter_name="a0", autocast_adapter_dtype=False)
    for i, folder in enumerate(folders[1:], start=1):
        wrapped.load_adapter(folder, adapter_name=f"a{i}", autocast_adapter_dtype=False)
    return wrapped.eval().to(dtype)


def measure(systems: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median output tokens per second of each system, the systems taking turns."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for i in range(rounds + 1):
        for name, run in systems.items():
            start = time.perf_counter()
            tokens = run()
            if i:  # the first round warms up
                rates[name].append(tokens / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded", help="folder or id of a decoder")
    parser.add_argument("--adapters", type=int, default=16, help="distinct adapters, and requests at once")
    parser.add_argument("--rank", type=int, default=16, help="rank of every adapter")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after one to warm up")
    parser.add_argument("--json", type=Path, help="write machine, figures and ratios there too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's affair, not the reader's
    base = resolve_base(args.base)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        folders = write_adapters(base, args.adapters, args.rank, Path(folder))
        engine = Engine(base, EngineConfig(max_running=args.adapters, adapter_slots=args.adapters))
        adapters = [load_adapter(path, base) for path in folders]
        rival = load_peft(base, folders, engine.base.model.dtype)
        batch = prompts(base, args.adapters)
        names = [f"a{i}" for i in range(args.adapters)]
        distinct, identical = f"Tenora, {args.adapters} distinct adapters", "Tenora, one adapter for all"
        bare, mixed, alone = (
            "Tenora, base only",
            "PEFT, one mixed batch (`adapter_names`)",
            "PEFT, one adapter at a time",
        )
        rates = measure(
            {
                distinct: lambda: run_engine(engine, batch, list(adapters)),
                identical: lambda: run_engine(engine, batch, [adapters[0]] * args.adapters),
                bare: lambda: run_engine(engine, batch, [None] * args.adapters),
                mixed: lambda: run_peft(rival, batch, names),
                alone: lambda: sum(run_peft(rival, [ids], [name]) for ids, name in zip(batch, names, strict=True)),
            },
            args.rounds,
        )
        dtype = str(engine.base.model.dtype).removeprefix("torch.")
    print(
        f"\n{base.id}, {dtype}, rank {args.rank}, {args.adapters} at once, {PROMPT_TOKENS} tokens in, {NEW_TOKENS} out"
    )
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"\n| system | output tokens/s | {args.adapters} distinct adapters are |\n|---|---:|---:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {'' if name == distinct else f'{rates[distinct] / rate:.2f}×'} |")
    if args.json:
        ratios = {name: rates[distinct] / rate for name, rate in rates.items() if name != distinct}
        args.json.write_text(json.dumps({"machine": machine(), "rates": rates, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
