"""What a run would learn, and what it would take: nothing is trained, nothing is written.

Three rows as the model sees them with the learned tokens marked, how many tokens and steps there are, and the time and
memory of two steps and of two measurements taken here.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.memory import start_collecting
from training.loop import make_optimiser
from training.order import Order, looks_after, shares
from training.prepared import Prepared, prepare
from training.tasks.examples import AnswerExample, Example, PairExample, PreferenceExample, TextExample
from training.tasks.task import Task
from training.telling import show_notes
from training.updates import parameter_counts, trained

_ROWS = 3
_TURNS = 2


def show_dry_run(task: Task[Any, Any], console: Console) -> None:
    """Print it all."""
    for number, example in enumerate(task.examples.train[:_ROWS], start=1):
        console.print(Text(f"row {number} ({example.place}, {example.tokens} tokens)", style="bold"))
        console.print(rendered(task, example), soft_wrap=True)
        console.print()
    show_notes(console, task)
    prepared = prepare(task)
    start_collecting()
    console.print(_figures(prepared))


def rendered(task: Task[Any, Any], example: Example) -> Text:
    """A row in words; what is learned is underlined, between ⟦ and ⟧ so that it shows without colours too."""
    match example:
        case AnswerExample():
            return _with_targets(task, example)
        case TextExample():
            labels = ", ".join(task.dataset.labels[label] for label in example.labels) or "none"
            return Text.assemble(_decoded(task, example.ids), (f" ⟦{labels}⟧", "underline"))
        case PreferenceExample():
            better, worse = (_answered(task, ids, example.prompt_length) for ids in (example.ids, example.rejected))
            return Text.assemble("better: ", better, "\nworse: ", worse)
        case PairExample():
            return Text.assemble("better: ", _decoded(task, example.ids), "\nworse: ", _decoded(task, example.rejected))
    return Text(_decoded(task, example.ids))


def _answered(task: Task[Any, Any], ids: Sequence[int], prompt: int) -> Text:
    return Text.assemble(_decoded(task, ids[:prompt]), (f"⟦{_decoded(task, ids[prompt:])}⟧", "underline"))


def _with_targets(task: Task[Any, Any], example: AnswerExample) -> Text:
    text, place = Text(), 0
    for part in example.learned:
        text.append(_decoded(task, example.ids[place : part.start]))
        weight = "" if part.weight == 1 else f" ×{part.weight:g}"
        text.append(f"⟦{_decoded(task, example.ids[part.start : part.stop])}⟧{weight}", style="underline")
        place = part.stop
    return text


def _decoded(task: Task[Any, Any], ids: Sequence[int]) -> str:
    return str(task.tokenizer.decode(list(ids), skip_special_tokens=False))


def _figures(prepared: Prepared) -> Table:
    task, config = prepared.task, prepared.task.config
    order = Order(task.examples.train, config.step_rows, config.drop_last, config.seed)
    total = order.steps_in_epoch * config.epochs
    tokens = [example.tokens for example in task.examples.train]
    learned = _learned(task)
    probed = _probe(prepared, order)
    learning, measuring = probed.step * total, _measuring(task, probed, order.steps_in_epoch)
    count, everything = parameter_counts(prepared.model)
    table = Table(title="what the run would take", title_justify="left", show_header=False)
    split = task.examples
    rows = f"{len(split.train):,} train, {len(split.validation):,} validation, {len(split.test):,} test"
    for name, value in (
        ("rows", rows),
        ("tokens in a row", f"{min(tokens)} to {max(tokens)}, {sum(tokens) / len(tokens):.0f} on average"),
        ("tokens in an epoch", f"{sum(tokens):,}" + (f", {learned:,} of them learned" if learned else "")),
        ("steps", f"{total:,} of {config.step_rows} rows, {order.steps_in_epoch:,} an epoch"),
        ("parameters", f"{count:,} trained of {everything:,} ({count / everything:.2%})"),
        ("arithmetic", str(prepared.precision)),
        ("a step", f"{probed.step:.2f} s (the second of {_TURNS} taken here)"),
        ("time", f"about {_spoken(learning + measuring)} on this machine: {_times(task, learning, measuring)}"),
        ("memory", f"about {probed.memory / 1e9:.1f} GB"),
    ):
        table.add_row(name, value)
    return table


def _learned(task: Task[Any, Any]) -> int:
    return sum(map(_learned_of, task.examples.train))


def _learned_of(example: Example) -> int:
    match example:
        case AnswerExample():
            return sum(part.stop - max(part.start, 1) for part in example.learned)
        case PreferenceExample():
            return example.tokens - 2 * example.prompt_length
    return 0


@dataclass(frozen=True, slots=True)
class _Probed:
    """What was measured here.

    Args:
        step: Seconds of a step.
        whole: Seconds of a held-out row, measured as after an epoch.
        look: The same between epochs.
        memory: Most bytes so far.
    """

    step: float
    whole: float
    look: float
    memory: int


def _probe(prepared: Prepared, order: Order[Any]) -> _Probed:
    """Real steps and measurements of a model that is thrown away."""
    task, config = prepared.task, prepared.task.config
    parameters = dict(trained(prepared.model))
    optimiser = make_optimiser(parameters, config)
    some = task.examples.validation[: config.eval_batch_size]

    def step(number: int) -> None:
        examples = order.step(number % order.steps_in_epoch)
        for batch in shares(examples, config.batch_size, 0, 1):
            (task.loss(fast, batch) / task.weight(examples)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    with prepared.precision.active(), prepared.fast() as fast:
        fast.model.train()
        taken = _timed(step)
        whole = _timed(lambda _: task.mean_loss(fast, some))
        with fast.coarsely():
            look = _timed(lambda _: task.mean_loss(fast, some))
        if fast.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(fast.device)
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _Probed(taken, whole / len(some), look / len(some), memory)


def _timed(work: Callable[[int], object]) -> float:
    """Seconds of the last of a few turns: the first packs weights and asks for memory."""
    seconds = 0.0
    for turn in range(_TURNS):
        began = time.perf_counter()
        work(turn)
        seconds = time.perf_counter() - began
    return seconds


def _measuring(task: Task[Any, Any], probed: _Probed, steps_in_epoch: int) -> float:
    """Seconds for all losses that the run takes, greedy answers apart."""
    config, split = task.config, task.examples
    some = config.eval_batches * config.batch_size
    validation, train = min(some, len(split.validation)), min(some, len(split.train))
    anew = train if config.train_curve == "batches" else 0
    total = steps_in_epoch * config.epochs
    looks = sum(looks_after(step, config.eval_every) for step in range(1, total + 1) if step % steps_in_epoch)
    before = len(split.validation) * bool(split.test) + train
    epochs = config.epochs * (len(split.validation) + anew)
    return probed.look * looks * (validation + anew) + probed.whole * (before + epochs + 2 * len(split.held_out))


def _times(task: Task[Any, Any], learning: float, measuring: float) -> str:
    """What the time is made of."""
    answers = getattr(task.config, "answers", 0)
    apart = f"; up to {answers} greedy answers before and after come on top" if answers else ""
    return f"steps {_spoken(learning)}, losses on the way and at the ends {_spoken(measuring)}{apart}"


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
