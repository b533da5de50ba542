"""What a run leaves behind: tables for the eye, results.json and results.csv for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.history import History
from training.task import Measured, Sampled, Task

_SAMPLES_SHOWN = 3
_ANSWER_SHOWN = 160  # characters
_MARKS = {True: "[green]right[/]", False: "[red]wrong[/]", None: ""}


def show(console: Console, task: Task[Any], before: Measured, after: Measured) -> None:
    """Print the tables before and after."""
    part = "test" if task.split.test else "validation"
    figures = Table(title=f"{len(task.split.held_out)} held-out rows ({part})", title_justify="left")
    figures.add_column("")
    figures.add_column("before", justify="right")
    figures.add_column("after", justify="right")
    for name, value in after.metrics.items():
        figures.add_row(name.replace("_", " "), f"{before.metrics[name]:.4f}", f"{value:.4f}")
    console.print(figures)
    if after.sentences:
        console.print(_answers("sentences", before.sentences, after.sentences))
    if task.config.task == "instruct" and after.samples:
        shown = slice(_SAMPLES_SHOWN)
        console.print(_answers("sample answers", before.samples[shown], after.samples[shown]))


def results(
    task: Task[Any], history: History, before: Measured, after: Measured, facts: dict[str, Any]
) -> dict[str, Any]:
    """Everything of a run as one JSON object."""
    best = history.best
    split = task.split
    return {
        "task": task.config.task,
        "base": {"id": task.base.id, "revision": task.base.revision, "fingerprint": task.base.fingerprint},
        "recipe": task.config.as_recipe(),
        "rows": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "notes": task.notes,
        "data_sha256": task.data_sha256,
        "best": {"metric": history.metric, "epoch": round(best.epoch), "step": best.step, **_plain(best.validation)},
        "before": _measured(before),
        "after": _measured(after),
        "history": [
            {
                "step": point.step,
                "epoch": round(point.epoch, 4),
                "tokens": point.tokens,
                "train_loss": round(point.train_loss, 6),
                "validation": _plain(point.validation),
                "whole": point.whole,
            }
            for point in history.points
        ],
        **facts,
    }


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write ``value`` for people and programs."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _answers(title: str, before: Sequence[Sampled], after: Sequence[Sampled]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    for name in ("input", "before", "after"):
        table.add_column(name, overflow="fold")
    stated = any(sampled.expected is not None for sampled in after)
    if stated:
        table.add_column("expected", overflow="fold")
    for old, new in zip(before, after, strict=True):
        cells = [escape(new.prompt), _marked(old), _marked(new)]
        table.add_row(*cells, *([escape(new.expected or "")] if stated else []))
    return table


def _marked(sampled: Sampled) -> str:
    mark = _MARKS[sampled.right]
    flat = " ".join(sampled.answer.split())
    text = escape(flat if len(flat) <= _ANSWER_SHOWN else f"{flat[: _ANSWER_SHOWN - 1]}…")
    return f"{text}\n{mark}" if mark else text


def _measured(measured: Measured) -> dict[str, Any]:
    def listed(samples: Sequence[Sampled]) -> list[dict[str, Any]]:
        return [
            {"prompt": one.prompt, "answer": one.answer, "expected": one.expected, "right": one.right}
            for one in samples
        ]

    return {**_plain(measured.metrics), "samples": listed(measured.samples), "sentences": listed(measured.sentences)}


def _plain(metrics: Any) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}
