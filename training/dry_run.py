"""What a run would learn, and what it would take: nothing is trained, nothing is written.

Three rows as the model sees them with the learned tokens marked, how many tokens and steps there are, and the time and
memory of a run, reckoned here.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.memory import start_collecting
from training.data.report import finding_values
from training.estimate import Estimate, estimate
from training.order import Order
from training.prepared import Prepared, prepare
from training.progress import write_json
from training.tasks.examples import AnswerExample, Example, PairExample, PreferenceExample, TextExample
from training.tasks.task import Task
from training.telling import show_notes
from training.updates import parameter_counts

_ROWS = 3


def show_dry_run(task: Task[Any, Any], console: Console) -> None:
    """Print it all, or with ``--json`` one object."""
    if task.config.json_lines:
        write_json(console, "plan", _values(prepare(task)))
        return
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
    found = estimate(prepared, order)
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
        ("a step", f"{found.step:.2f} s (the second of two taken here)"),
        ("time", f"about {_spoken(found.total)} on this machine: {_times(found)}"),
        ("memory", f"about {found.memory / 1e9:.1f} GB"),
    ):
        table.add_row(name, value)
    return table


def _values(prepared: Prepared) -> dict[str, Any]:
    task, config = prepared.task, prepared.task.config
    split, order = task.examples, Order(task.examples.train, config.step_rows, config.drop_last, config.seed)
    found = estimate(prepared, order)
    count, everything = parameter_counts(prepared.model)
    return {
        "shown": [
            {"place": str(example.place), "text": rendered(task, example).plain} for example in split.train[:_ROWS]
        ],
        "rows": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "tokens": sum(example.tokens for example in split.train),
        "learned": _learned(task),
        "steps": order.steps_in_epoch * config.epochs,
        "parameters": {"trained": count, "all": everything},
        "precision": str(prepared.precision),
        "seconds": {"steps": found.learning, "losses": found.measuring, "answers": found.answering},
        "bytes": found.memory,
        "notes": task.notes,
        "findings": [finding_values(finding) for finding in task.findings],
    }


def _learned(task: Task[Any, Any]) -> int:
    return sum(map(_learned_of, task.examples.train))


def _learned_of(example: Example) -> int:
    match example:
        case AnswerExample():
            return sum(part.stop - max(part.start, 1) for part in example.learned)
        case PreferenceExample():
            return example.tokens - 2 * example.prompt_length
    return 0


def _times(found: Estimate) -> str:
    """What the time is made of."""
    answers = f", greedy answers at most {_spoken(found.answering)}" if found.answering else ""
    return f"steps {_spoken(found.learning)}, losses on the way and at the ends {_spoken(found.measuring)}{answers}"


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
