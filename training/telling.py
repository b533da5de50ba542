"""What a run says before its first step and after its last, to people or as JSON lines."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from training.config import TrainConfig
from training.data.report import finding_lines, finding_values
from training.prepared import Prepared
from training.progress import write_json
from training.reporting.results import Results
from training.reporting.tables import show_results
from training.tasks.task import Task
from training.updates import parameter_counts

SERVED_RANK = 64
"""The largest rank that a server holds by default."""


def begin(console: Console, prepared: Prepared, output: Path) -> None:
    """What is trained, on what, and where its files go."""
    if prepared.task.config.json_lines:
        write_json(console, "run", {"output": str(output), **_about(prepared)})
    else:
        _announce(console, prepared, output)


def tell(console: Console, config: TrainConfig, results: Results, output: Path) -> None:
    """Tables, and what to do next."""
    if config.json_lines:
        write_json(console, "results", {"file": str(output / "results.json"), "after": results.after.metrics})
        return
    show_results(console, results)
    console.print(
        escape(f"results.json, results.csv and pictures are in {output}; took {results.seconds.total:.0f} s"),
        soft_wrap=True,
    )
    for line in _next(config, results, output):
        console.print(escape(line), soft_wrap=True)


def _about(prepared: Prepared) -> dict[str, Any]:
    split = prepared.task.examples
    count, everything = parameter_counts(prepared.model)
    return {
        "task": prepared.task.config.task,
        "base": prepared.task.base.id,
        "rows": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "parameters": {"trained": count, "all": everything},
        "precision": str(prepared.precision),
        "notes": prepared.task.notes,
        "findings": [finding_values(finding) for finding in prepared.task.findings],
    }


def _announce(console: Console, prepared: Prepared, output: Path) -> None:
    task, config = prepared.task, prepared.task.config
    split = task.examples
    trainable, parameters = parameter_counts(prepared.model)
    console.print(f"{len(split.train)} training rows, {len(split.validation)} validation, {len(split.test)} test")
    if config.update == "lora" and max(config.rank, *config.rank_pattern.values(), 0) > SERVED_RANK:
        console.print(f"note: servers hold ranks up to {SERVED_RANK} unless TENORA_MAX_LORA_RANK says otherwise")
    show_notes(console, task)
    how = {
        "lora": f"LoRA r {config.rank}, alpha {config.alpha:g}",
        "head": "only its head",
        "full": "all of its weights",
    }[config.update]
    console.print(
        f"{escape(task.base.id)} with {how}: {trainable:,} of {parameters:,} parameters are trained "
        f"({trainable / parameters:.2%}), {prepared.model.device.type}, {torch.get_num_threads()} threads, "
        f"{prepared.precision}"
    )
    files = f"files go to {output}; the best epoch is chosen by validation {config.metric.replace('_', ' ')}"
    console.print(escape(files), soft_wrap=True)


def show_notes(console: Console, task: Task[Any, Any]) -> None:
    """What was noticed of the rows and of the run, with the rows' places."""
    for line in (*(f"note: {note}" for note in task.notes), *finding_lines(task.findings)):
        console.print(escape(line), soft_wrap=True)


def _next(config: TrainConfig, results: Results, output: Path) -> list[str]:
    where = f"--base {config.base} --store {config.store}"
    if config.update == "full":
        return [
            f"{output / 'base'} is a base of its own, not an adapter: all of its weights were trained",
            f"next: tenora serve --base {output / 'base'}",
        ]
    if results.published is None:
        return [f"next: tenora adapters publish {output / 'adapter'} TENANT/NAME {where}"]
    name = results.published.name
    verb = {"classify": "classify", "reward": "score"}.get(config.task, "ask")
    return [
        f"published {name}@{results.published.digest[:12]}",
        f"next: tenora serve {where}",
        f'      tenora {verb} {name} "…"',
        f"      tenora report {name} --store {config.store}",
    ]
