"""What is measured, one function for each section; all work on the same models, rows and adapter start."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from adapters.memory import keep_freed_memory
from bench.trainers.findings import Findings
from bench.trainers.ours import FastSteps, Loss, answers_loss, labels_loss
from bench.trainers.rivals import plain_trainer, trl_trainer
from bench.trainers.turns import Step, ratios, take_turns
from bench.trainers.work import (
    BATCH,
    TEXTS,
    Row,
    batches,
    classifier,
    instruction_rows,
    language_model,
    review_texts,
    twin,
)
from training.fast.levers import NEEDS, Levers
from training.fast.precision import Precision, choose_precision

PAD = 1
EVERY, EVALUATED = 5, 5
"""Recipe 1: after so many steps, the loss on so many batches of validation."""
LOOKS, FEW_LOOKS = 7, 2
"""How often that is measured, after once to warm up; and how often what no ratio comes of."""
RUN, VALIDATED = 30, 12
"""Steps of the short run; batches that its validation loss is taken over."""
COMPARED = 3
"""Batches that every set of levers is timed on: there are some thirty sets."""
OF_STEPS = {
    "fp32": ("packing", "share_prefix", "loss_rows", "narrow", "fused", "prepack", "onednn"),
    "bf16": ("packing", "share_prefix", "loss_rows", "narrow", "fused", "prepack", "compiled"),
}
"""The levers that a step in a type can have."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Bench:
    """Handed to every section.

    Args:
        rounds: Batches that are timed, after one to warm up.
        shapes: Sizes of the models, by name; empty for the real ones.
        say: Told what is going on.
    """

    findings: Findings
    rounds: int
    shapes: Mapping[str, dict[str, Any]]
    say: Callable[[str], None]

    def precisions(self, *, onednn: bool = True) -> dict[str, Precision]:
        """Float32, with oneDNN by the way that is faster here, and bfloat16."""
        fp32 = choose_precision("float32", _CPU, onednn=onednn)
        if onednn:
            self.findings.document["machine"]["float32_matmul"] = fp32.matmul
        return {"fp32": fp32, "bf16": choose_precision("bfloat16", _CPU)}

    def language_model(self) -> Any:
        """The one that instructions are learned by."""
        return language_model(self.shapes.get("gpt2"))

    def classifier(self) -> Any:
        """The one that reviews are learned by."""
        return classifier(self.shapes.get("distilbert"))

    def note(self, section: str, names: Mapping[str, str], seconds: Mapping[str, Sequence[float]]) -> None:
        """Keep what the steps took."""
        for key, taken in seconds.items():
            self.findings.step(section, key, names[key], taken)


_NAMES = {
    "trainer_fp32": "Trainer, float32",
    "trainer_bf16": "Trainer, bf16=True",
    "trl": "SFTTrainer, its defaults",
    "trl_unchecked": "SFTTrainer, gradient_checkpointing=False",
    "fp32": "Tenora, float32",
    "bf16": "Tenora, bfloat16",
}


def instructions(bench: Bench) -> None:
    """A step on instruction rows, against Trainer and SFTTrainer."""
    model, rows = bench.language_model(), instruction_rows("train", BATCH * (bench.rounds + 1))
    systems: dict[str, Step] = {
        "trainer_fp32": plain_trainer(twin(model), rows, BATCH, bf16=False),
        "trainer_bf16": plain_trainer(twin(model), rows, BATCH, bf16=True),
        **_trl(bench, model, rows),
        **_ours(bench, model, answers_loss),
    }
    taken = take_turns(systems, batches(rows, BATCH))
    bench.note("instructions", _NAMES, taken)
    pairs = {
        "fp32_vs_trainer": ("trainer_fp32", "fp32"),
        "bf16_vs_trainer": ("trainer_fp32", "bf16"),
        "bf16_vs_trainer_bf16": ("trainer_bf16", "bf16"),
        "bf16_vs_trl": ("trl", "bf16"),
        "bf16_vs_trl_unchecked": ("trl_unchecked", "bf16"),
    }
    for key, (slower, faster) in pairs.items():
        if slower in taken:
            bench.findings.median_ratio(key, ratios(taken[slower], taken[faster]))
    tokens = [len(row.ids) for row in rows]
    bench.findings.figure("instructions", "tokens of a row, mean and longest", [sum(tokens) / len(tokens), max(tokens)])
    bench.findings.figure("instructions", "learned tokens of a row", sum(len(row.targets) for row in rows) / len(rows))


def exact(bench: Bench) -> None:
    """Loss and gradients of one batch against the plain padded way in exact float32."""
    model, rows = bench.language_model(), instruction_rows("train", BATCH)
    plain = FastSteps(twin(model), answers_loss, Levers.none(), Precision(torch.float32), PAD)
    loss, gradient = plain.gradients(rows)
    systems = _ours(bench, model, answers_loss)
    autocast = FastSteps(twin(model), answers_loss, Levers.none(), Precision(torch.bfloat16), PAD)
    for key, system in {**systems, "autocast": autocast}.items():
        own, found = system.gradients(rows)
        differences = abs(own - loss) / abs(loss), float((found - gradient).norm() / gradient.norm())
        if key == "fp32":
            bench.findings.median_ratio("loss_diff_fp32", [differences[0]])
            bench.findings.median_ratio("grad_diff_fp32", [differences[1]])
        elif key == "bf16":
            bench.findings.figure("exact", "loss_diff_bf16", differences[0])
            bench.findings.median_ratio("grad_diff_bf16", [differences[1]])
        else:
            bench.findings.figure("exact", "grad_diff of plain bfloat16 autocast", differences[1])


def reviews(bench: Bench) -> None:
    """A step on texts of film reviews' lengths, against Trainer."""
    model, texts = bench.classifier(), review_texts(TEXTS * (bench.rounds + 1))
    systems = {
        "trainer_fp32": plain_trainer(twin(model), texts, TEXTS, bf16=False),
        "trainer_bf16": plain_trainer(twin(model), texts, TEXTS, bf16=True),
        **_ours(bench, model, labels_loss),
    }
    taken = take_turns(systems, batches(texts, TEXTS))
    bench.note("reviews", _NAMES, taken)
    for key in ("fp32", "bf16"):
        bench.findings.median_ratio(f"distilbert_{key}", ratios(taken["trainer_fp32"], taken[key]))
    lengths = [[len(text.ids) for text in batch] for batch in batches(texts, TEXTS)]
    padded = sum(len(batch) * max(batch) for batch in lengths)
    bench.findings.figure("reviews", "share of places that padding fills", 1 - sum(map(sum, lengths)) / padded)


def evaluation(bench: Bench) -> None:
    """Recipe 1's evaluation beside its steps: what share of the time it takes.

    The ratio is that of a run as the recipe has it: in float32, looking at its curve in the fastest type, all 40 rows
    at once; the training curve comes from the steps themselves. Beside it what it would be with training rows anew.
    """
    keep_freed_memory()  # as a run does, and not before: rivals are in this process, and theirs do not
    model = bench.language_model()
    rows = batches(instruction_rows("train", BATCH * EVERY), BATCH)
    held_out = batches(instruction_rows("heldout", BATCH * EVALUATED), BATCH)
    together, learned = ([[row for batch in part for row in batch]] for part in (held_out, rows))
    recipes = "one batch of 40"
    ways = {
        recipes: together,
        "5 batches of 8": held_out,
        "one batch of 40, and one of 40 training rows": [*together, *learned],
    }
    for key, system in _ours(bench, model, answers_loss).items():
        shares: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(1 + (LOOKS if key == "fp32" else FEW_LOOKS)):
            training = _seconds(lambda system=system: [system(batch) for batch in rows])
            for name, parts in ways.items():
                if name == recipes or turn <= FEW_LOOKS:
                    taken = _seconds(lambda system=system, parts=parts: system.evaluate(parts))
                    shares[name].append(taken / (training + taken))
        for name, values in shares.items():
            bench.findings.figure("evaluation", f"share in {key}, {name}", median(values[1:]))
        if key == "fp32":
            bench.findings.median_ratio("eval_share", shares[recipes][1:])


def levers(bench: Bench) -> None:
    """Each lever alone and each missing: those of a step in both types, and that of the losses between epochs."""
    model = bench.language_model()
    rows = batches(instruction_rows("train", BATCH * (COMPARED + 1)), BATCH)
    bench.findings.figure("levers", "batches of each median", COMPARED)
    found = {onednn: bench.precisions(onednn=onednn) for onednn in (False, True)}

    def made(chosen: Levers, key: str) -> FastSteps:
        return FastSteps(twin(model), answers_loss, chosen, found[chosen.onednn][key], PAD)

    for key, names in OF_STEPS.items():
        sets = _sets(names)
        taken = take_turns({name: made(chosen, key) for name, chosen in sets.items()}, rows)
        bench.note(f"levers, {key}", {name: name for name in sets}, taken)
    sets = _sets(("coarse_curve",))
    held_out = instruction_rows("heldout", BATCH * EVALUATED)
    looks = {name: _look(made(chosen, "fp32")) for name, chosen in sets.items()}
    taken = take_turns(looks, [held_out] * (COMPARED + 1))
    bench.note("levers, evaluation", {name: name for name in sets}, taken)


def run(bench: Bench) -> None:
    """A short training by each way, in the same order: the loss on held-out rows afterwards."""
    model, rows = bench.language_model(), instruction_rows("train", BATCH * RUN)
    held_out = batches(instruction_rows("heldout", BATCH * VALIDATED), BATCH)
    judged = FastSteps(twin(model), answers_loss, Levers(), Precision(torch.float32), PAD)
    bench.findings.figure("run", "held-out loss before", judged.evaluate(held_out))
    own = _ours(bench, model, answers_loss)
    systems = {"trainer_fp32": plain_trainer(twin(model), rows, BATCH, bf16=False), **own}
    take_turns(systems, batches(rows, BATCH))
    for fast in own.values():
        fast.close()  # packed weights cannot be copied
    for key, system in systems.items():
        # The weights of all are judged in the same arithmetic.
        judge = FastSteps(twin(system.model), answers_loss, Levers.none(), Precision(torch.float32), PAD)
        bench.findings.figure("run", f"held-out loss after {RUN} steps, {_NAMES[key]}", judge.evaluate(held_out))


SECTIONS: Mapping[str, tuple[Callable[[Bench], None], bool]] = {
    "instructions": (instructions, True),
    "exact": (exact, True),
    "reviews": (reviews, True),
    "evaluation": (evaluation, True),
    "levers": (levers, False),
    "run": (run, False),
}
"""By name: the section, and whether it is part of a quick run."""


def _ours(bench: Bench, model: Any, loss: Loss) -> dict[str, FastSteps]:
    return {
        key: FastSteps(twin(model), loss, Levers(), precision, PAD) for key, precision in bench.precisions().items()
    }


def _trl(bench: Bench, model: Any, rows: Sequence[Row]) -> dict[str, Step]:
    """SFTTrainer, where TRL is installed."""
    try:
        return {
            "trl": trl_trainer(twin(model), rows, BATCH),
            "trl_unchecked": trl_trainer(twin(model), rows, BATCH, gradient_checkpointing=False),
        }
    except ImportError as error:
        for key in ("bf16_vs_trl", "bf16_vs_trl_unchecked"):
            bench.findings.reason(key, f"TRL is not installed (pip install trl): {error}")
        return {}


def _sets(names: Sequence[str]) -> dict[str, Levers]:
    """No lever, each of ``names`` alone (with what it needs, where it needs others), each missing, and all."""
    needs = {**NEEDS, "prepack": ("fused", "onednn") if "onednn" in names else ("fused",)}
    alone = {name: sorted({name, *needs.get(name, ())}) for name in names}
    return {
        "none": Levers.none(),
        **{" + ".join(on): Levers.only(*on) for on in alone.values()},
        **{f"all but {name}": Levers().without(name) for name in names},
        "all": Levers(),
    }


def _look(system: FastSteps) -> Step:
    """An evaluation of all rows at once in place of a step."""
    return lambda rows: system.evaluate([rows])


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
