"""A run from checked rows to a published adapter. ``run_task`` reads as what happens."""

import time
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from adapters.base import resolve_base
from training.config import TrainConfig
from training.errors import ConfigError
from training.fit import Fitted, fit
from training.model import add_lora, parameter_counts, pick_device
from training.plot import plot
from training.progress import Progress
from training.publish import publish, verify, write_adapter
from training.report import results, show, write_json
from training.task import Measured, Task

SERVED_RANK = 64
"""The largest rank that a server holds by default."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of the training: the figures, and the folder of the adapter, proven to come back equal."""

    before: Measured
    after: Measured
    fitted: Fitted
    folder: Path
    facts: dict[str, Any]


def run_task(task: Task[Any], console: Console) -> dict[str, Any]:
    """Train, compare, publish; return what results.json holds."""
    _quiet()
    task.encode(resolve_base(task.config.base))
    output = _make_output(task.config)
    trained = _train(task, output, console)
    _report(task, trained, output, console)
    if task.config.publish is not None:
        version = publish(task.config.store, task.config.publish, trained.folder, task)
        name, store = str(version.name), str(task.config.store)
        trained.facts["published"] = {"name": name, "digest": version.digest, "store": store}
    summary = results(task, trained.fitted.history, trained.before, trained.after, trained.facts)
    write_json(output / "results.json", summary)
    _say_next(console, task.config, trained.facts)
    return summary


def _train(task: Task[Any], output: Path, console: Console) -> Trained:
    """Measure, train, measure again; write the best epoch as an adapter and read it back."""
    began = time.monotonic()
    torch.manual_seed(task.config.seed)
    model = add_lora(task.load_model(), task.base, task.config).to(pick_device(task.config.device))
    _announce(console, task, model, output)
    before = task.measure(model)
    progress = Progress(console)
    try:
        # Without test rows the held-out rows are the validation rows, just measured.
        fitted = fit(task, model, output, progress, None if task.split.test else before.metrics)
    finally:
        progress.stop()
    after = task.measure(model)
    seconds = round(time.monotonic() - began, 1)
    folder = write_adapter(task, fitted.folder, output / "adapter", after.metrics)
    trainable, parameters = parameter_counts(model)
    facts = {
        "parameters": {"trained": trainable, "all": parameters},
        "seconds": seconds,
        "logits_difference_after_reload": verify(task, model, folder),
        "adapter": str(folder),
        "published": None,
    }
    return Trained(before, after, fitted, folder, facts)


def _make_output(config: TrainConfig) -> Path:
    output = config.output or Path("build/runs") / f"{config.task}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from None
    return output


def _announce(console: Console, task: Task[Any], model: Any, output: Path) -> None:
    split, config = task.split, task.config
    trainable, parameters = parameter_counts(model)
    console.print(f"{len(split.train)} training rows, {len(split.validation)} validation, {len(split.test)} test")
    if config.rank > SERVED_RANK:
        console.print(f"note: servers hold ranks up to {SERVED_RANK} unless TENORA_MAX_LORA_RANK says otherwise")
    for note in task.notes:
        console.print(f"note: {escape(note)}")
    console.print(
        f"{escape(task.base.id)} with LoRA r {config.rank}, alpha {config.alpha:g}: {trainable:,} of {parameters:,} "
        f"parameters are trained ({trainable / parameters:.2%}), {model.device.type}, {torch.get_num_threads()} threads"
    )
    files = f"files go to {output}; the best epoch is chosen by validation {config.metric.replace('_', ' ')}"
    console.print(escape(files), soft_wrap=True)


def _report(task: Task[Any], trained: Trained, output: Path, console: Console) -> None:
    """Tables on the console; the picture and the steps as files."""
    history = trained.fitted.history
    best, metric = history.best, history.metric
    show(console, task, trained.before, trained.after)
    figure = f"{best.validation[metric]:.4f}"
    name = metric.replace("_", " ")
    console.print(f"best epoch by validation {name}: {best.epoch:.0f} (step {best.step}, {figure})")
    plot(history, output / "loss.png", f"{task.base.id}, {task.config.task}")
    history.write_csv(output / "results.csv")
    files = f"results.json, results.csv and loss.png are in {output}; took {trained.facts['seconds']:.0f} s"
    console.print(escape(files), soft_wrap=True)


def _say_next(console: Console, config: TrainConfig, facts: dict[str, Any]) -> None:
    where = f"--base {config.base} --store {config.store}"
    if facts["published"] is None:
        command = f"tenora adapters publish {facts['adapter']} TENANT/NAME {where}"
        console.print(escape(f"next: {command}"), soft_wrap=True)
        return
    name, digest = facts["published"]["name"], facts["published"]["digest"]
    verb = "ask" if config.task == "instruct" else "classify"
    console.print(f"published {name}@{digest[:12]}")
    console.print(escape(f"next: tenora serve {where}"), soft_wrap=True)
    console.print(escape(f'      tenora {verb} {name} "…"'), soft_wrap=True)


def _quiet() -> None:
    """Only what is ours to say is said: no progress bars and advice of the libraries."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # PEFT still asks transformers for a property that has been renamed.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*is deprecated", category=FutureWarning)
