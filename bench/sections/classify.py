"""Texts of many lengths over several classifiers, against one padded batch of PEFT's."""

from bench.context import Bench
from bench.measuring import System, take_turns
from bench.remote import Remote, RemoteError
from bench.sections.section import Section
from bench.workloads import lengths, prompts

TEXTS, ADAPTERS, SHORTEST, LONGEST = 64, 8, 20, 200
QUICK_PATIENCE_S = 4.0
EQUAL_LABELS = 4
"""Labels of every adapter that PEFT gets: it stacks the rows of a batch, so its heads have to be of one size."""


def texts(vocabulary: int, seed: int, count: int = TEXTS) -> list[list[int]]:
    """Random texts, their lengths uniform."""
    found = lengths(count, SHORTEST, LONGEST, seed)
    return [prompts(1, length, vocabulary, seed * TEXTS + k)[0] for k, length in enumerate(found)]


def run(bench: Bench) -> None:
    """Measure Tenora with heads of 2 to 9 labels, PEFT with heads of 4, and hold their answers together."""
    base = bench.model("distilbert")
    vocabulary = base.config().vocab_size
    mixed = [
        bench.adapters(1, base=base, kind=f"labels{2 + k}-", num_labels=2 + k, first=k)[0] for k in range(ADAPTERS)
    ]
    equal = bench.adapters(ADAPTERS, base=base, kind="equal", num_labels=EQUAL_LABELS)
    config = {**bench.engine_config, "adapter_slots": 2 * ADAPTERS}
    common = {"threads": bench.options.threads, "base": str(base.path)}
    bench.say("loading both systems")
    engine = "bench.systems.tenora_engine:TenoraEngine"
    with (
        # Adapters 0 to 7 have heads of different sizes, 8 to 15 of one.
        Remote(engine, **common, adapters=[*mixed, *equal], **config) as tenora,
        Remote(engine, **common, adapters=[*mixed, *equal], **config, quantize="int8") as tenora_int8,
        Remote(
            "bench.systems.peft_model:PeftSystem",
            **common,
            adapters=equal,
            dtype=bench.options.dtype,
            num_labels=EQUAL_LABELS,
        ) as peft,
    ):
        systems = [
            _system("classify_tenora", "Tenora's engine, heads of 2 to 9 labels", tenora, vocabulary),
            _system(
                "classify_tenora_int8",
                "Tenora's engine with `--quantize int8`, heads of 2 to 9 labels",
                tenora_int8,
                vocabulary,
            ),
        ]
        try:
            peft.wait()
        except RemoteError as error:
            bench.report.reason("classify_vs_peft", str(error))
        else:
            name = f"PEFT, one padded batch (`adapter_names`), heads of {EQUAL_LABELS} labels"
            systems.append(_system("classify_peft", name, peft, vocabulary))
            bench.report.figures("classify", _compare(tenora, peft, vocabulary))
        patience = QUICK_PATIENCE_S if bench.options.quick else float("inf")
        rates = take_turns(systems, bench.options.rounds, bench.say, unit="texts/s", patience=patience)
    for system in systems:
        bench.report.rate(system.key, system.name, rates[system.key])
    bench.report.ratio_of("classify_vs_peft", "classify_tenora", "classify_peft")
    if "classify_peft" in rates:
        ratio = rates["classify_tenora_int8"].median / rates["classify_peft"].median
        bench.report.figures("classify", {"int8_vs_peft": round(ratio, 2)})


def _system(key: str, name: str, remote: Remote, vocabulary: int) -> System:
    return System(
        key,
        name,
        lambda number: int(remote.call("classified", texts(vocabulary, number), _which(TEXTS))),
        lambda: remote.call("classified", texts(vocabulary, 99, ADAPTERS), _which(ADAPTERS)),
    )


def _which(count: int, first: int = 0) -> list[int]:
    return [first + number % ADAPTERS for number in range(count)]


def _compare(tenora: Remote, peft: Remote, vocabulary: int) -> dict[str, float]:
    count = 3 * ADAPTERS
    batch = texts(vocabulary, 7, count)
    ours = tenora.call("classify", batch, _which(count, first=ADAPTERS))
    return agreement(ours, peft.call("classify", batch, _which(count)))


def agreement(ours: list[tuple[float, ...]], theirs: list[tuple[float, ...]]) -> dict[str, float]:
    """How far the probabilities of two systems lie apart."""
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(a.index(max(a)) == b.index(max(b)) for a, b in pairs)
    worst = max(abs(p - q) for a, b in pairs for p, q in zip(a, b, strict=True))
    return {"same_label": same / len(pairs), "largest_difference_of_probabilities": round(worst, 5)}


SECTION = Section(
    "classify",
    f"{TEXTS} texts of {SHORTEST}-{LONGEST} tokens over {ADAPTERS} classifiers on DistilBERT's shape, against PEFT",
    run,
    ("classify_vs_peft",),
    quick=True,
)
