"""The standard case on another architecture, without HTTP."""

import contextlib

from bench.context import Bench
from bench.measuring import System, take_turns
from bench.remote import Remote
from bench.sections.section import Section
from bench.sections.standard import CASES, PATIENCE_S, WARM_TOKENS, adapters_of
from bench.workloads import prompts

SHAPE = "gpt2-medium"


def run(bench: Bench) -> None:
    """Tenora's engine, PEFT's mixed batch and plain `generate` on GPT-2 medium."""
    options, base = bench.options, bench.model(SHAPE)
    folders = bench.adapters(options.at_once, base=base)
    vocabulary, common = base.config().vocab_size, {"threads": options.threads, "base": str(base.path)}
    with contextlib.ExitStack() as stack:
        bench.say("loading three systems")
        engine = stack.enter_context(
            Remote("bench.systems.tenora_engine:TenoraEngine", **common, adapters=folders, **bench.engine_config)
        )
        peft = stack.enter_context(
            Remote("bench.systems.peft_model:PeftSystem", **common, adapters=folders, dtype=options.dtype)
        )
        plain = stack.enter_context(
            Remote("bench.systems.transformers_model:TransformersSystem", **common, dtype=options.dtype)
        )

        def ask(remote: Remote, method: str, case: str | None, seed: int, new_tokens: int) -> int:
            batch = prompts(options.at_once, options.prompt_tokens, vocabulary, 80_000 + seed)
            which = () if case is None else (adapters_of(case, options.at_once),)
            return int(remote.call(method, batch, *which, new_tokens))

        def system(remote: Remote, method: str, case: str | None, key: str, name: str) -> System:
            return System(
                f"{SHAPE}_{key}",
                f"{SHAPE}: {name}",
                lambda number: ask(remote, method, case, number, options.new_tokens),
                lambda: ask(remote, method, case, 999, WARM_TOKENS),
            )

        systems = [system(engine, "throughput", case, f"tenora_{case}", f"Tenora's engine, {case}") for case in CASES]
        systems.append(system(peft, "mixed", "distinct", "peft_mixed", "PEFT, one mixed batch (`adapter_names`)"))
        systems.append(system(plain, "generate", None, "generate", "transformers `generate`, base only"))
        rates = take_turns(systems, options.rounds, bench.say, patience=PATIENCE_S[options.quick])
    for made in systems:
        bench.report.rate(made.key, made.name, rates[made.key])


SECTION = Section("shapes", "the standard case on GPT-2 medium's shape, engine and PEFT", run)
