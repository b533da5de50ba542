"""A run from checked rows to a published adapter. ``run_task`` reads as what happens."""

import math
import time
import warnings
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adapters.base import resolve_base
from adapters.manifest import utc_now
from adapters.memory import start_collecting
from training.aside import written_aside
from training.checkpoint import Checkpoints, State, reading
from training.config import AnsweringConfig, TrainConfig
from training.errors import ConfigError, NotFiniteError
from training.evaluation.judge import Judge
from training.evaluation.overfitting import overfitting
from training.fast.model import FastModel
from training.loop import Fitted, Loop
from training.model import pick_device
from training.prepared import Prepared, prepare
from training.processes import Processes, join_processes
from training.progress import Both, JsonLines, Progress, Shown, Silent
from training.publish import publish, tool_versions, verify, write_adapter
from training.reporting.files import write_beside, write_run
from training.reporting.plots.draw import draw_all
from training.reporting.results import (
    Base,
    Best,
    Comparison,
    Evaluation,
    Parameters,
    Published,
    Results,
    Rows,
    Seconds,
)
from training.tasks.task import Task
from training.telling import begin, tell
from training.updates import parameter_counts


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of the training."""

    before: Evaluation
    after: Evaluation
    fitted: Fitted
    seconds: float
    comparison: Comparison | None = None


def run_task(task: Task[Any, Any], console: Console) -> Results | None:
    """Train, compare, publish; return what results.json holds. A dry run returns nothing."""
    _quiet()
    config = task.config
    judge = _judge(config)
    task.encode(resolve_base(config.base))
    if config.dry_run:
        from training.dry_run import show_dry_run

        show_dry_run(task, console)
        return None
    processes = join_processes(pick_device(config.device))
    output = _make_output(config, processes)
    checkpoints = _checkpoints(config, output)
    prepared = _as_saved(prepare(task), checkpoints.newest())
    prepared = replace(prepared, precision=processes.agree(prepared.precision))
    start_collecting()
    if processes.first:
        begin(console, prepared, output)
    results = None
    try:
        trained = _train(prepared, checkpoints, _progress(config, console, processes, output), processes)
        if not processes.first:
            return None
        if judge is not None:
            trained = _judged(trained, judge, console)
        results = _publish(task, _write(prepared, trained, output), output)
        write_run(output, results)
        checkpoints.clear()
        tell(console, config, results, output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*_state_of(results, checkpoints, output)) from None
    return results


def _train(prepared: Prepared, checkpoints: Checkpoints, progress: Progress, processes: Processes) -> Trained:
    """Measure, train, measure again. The model is left as the best epoch had it."""
    task = prepared.task
    began = time.monotonic()
    state = checkpoints.newest()
    with prepared.precision.active(), prepared.fast() as fast:
        loop = Loop(task, fast, prepared.update, checkpoints=checkpoints, progress=progress, processes=processes)
        # What was measured before the first step is measured again by a run that goes on: nothing was trained then.
        before = _measured(task, fast)
        torch.manual_seed(task.config.seed + processes.index)  # or all would drop the same places
        known = (
            None
            if task.examples.test
            else {name: value for name, value in before.metrics.items() if name in {"loss", task.config.metric}}
        )
        try:
            fitted = loop.run(known, state)
        finally:
            progress.stop()
        after = _measured(task, fast)
    return Trained(before, after, fitted, time.monotonic() - began)


def _measured(task: Task[Any, Any], fast: FastModel) -> Evaluation:
    """The held-out rows' figures.

    Raises:
        NotFiniteError: their loss is no number.
    """
    try:
        return task.measure(fast)
    except ValueError:  # figures of what is no number
        examples = task.examples.held_out
        if math.isfinite(loss := task.mean_loss(fast, examples)):
            raise
        raise NotFiniteError(loss, task.culprits(fast, examples), "on the held-out rows") from None


def _judged(trained: Trained, judge: Judge, console: Console) -> Trained:
    before, after = judge.score(trained.before, console), judge.score(trained.after, console)
    comparison = judge.compare(before, after, console)
    return Trained(before, after, trained.fitted, trained.seconds, comparison)


def _write(prepared: Prepared, trained: Trained, output: Path) -> Results:
    """The adapter, or the new base, with its report and pictures."""
    task = prepared.task
    folder = _made(task, output)
    results = _results(prepared, trained, folder.name)
    with written_aside(folder) as aside:
        if task.config.update == "full":
            _write_base(prepared, aside)
        else:
            write_adapter(task, trained.fitted.folder, aside, trained.after.metrics)
            verify(task, prepared.model, aside)
        write_beside(aside, results, task.config.publish, draw_all(results, output))
    return results


def _publish(task: Task[Any, Any], results: Results, output: Path) -> Results:
    """What was made, published if that was asked for."""
    if task.config.publish is None:
        return results
    version = publish(task.config.store, task.config.publish, _made(task, output), task)
    published = Published(name=str(version.name), digest=version.digest, store=task.config.store.name)
    return results.model_copy(update={"published": published})


def _made(task: Task[Any, Any], output: Path) -> Path:
    return output / ("base" if task.config.update == "full" else "adapter")


def _results(prepared: Prepared, trained: Trained, folder: str) -> Results:
    task, fitted = prepared.task, trained.fitted
    config, base, history = task.config, task.base, fitted.history
    count, everything = parameter_counts(prepared.model)
    notes = list(task.notes)
    warning = overfitting(history.points)
    return Results(
        task=config.task,
        update=config.update,
        base=Base(id=base.id, revision=base.revision, fingerprint=base.fingerprint),
        recipe=config.as_recipe(),
        rows=Rows(
            train=len(task.examples.train), validation=len(task.examples.validation), test=len(task.examples.test)
        ),
        notes=tuple([*notes, warning] if warning else notes),
        findings=tuple(finding.message for finding in task.findings),
        data_sha256=task.dataset.sha256,
        parameters=Parameters(trained=count, all=everything),
        best=Best(
            metric=config.metric,
            epoch=fitted.best.epoch,
            step=fitted.best.step,
            value=fitted.best.validation[config.metric],
        ),
        before=trained.before,
        after=trained.after,
        baselines=task.baselines(),
        comparison=trained.comparison,
        history=tuple(history.points),
        steps=tuple(history.steps),
        seconds=Seconds(
            total=trained.seconds, training=history.training_seconds, evaluation=history.evaluation_seconds
        ),
        tokens_per_second=history.tokens / history.training_seconds,
        stopped=fitted.stopped,
        precision=str(prepared.precision),
        device=prepared.model.device.type,
        threads=torch.get_num_threads(),
        tools=tool_versions(),
        created=utc_now(),
        adapter=folder if config.update != "full" else None,
    )


def _write_base(prepared: Prepared, folder: Path) -> Path:
    """All weights as a base of their own, with the tokenizer beside them."""
    prepared.model.save_pretrained(folder)
    prepared.task.tokenizer.save_pretrained(folder)
    return folder


def _judge(config: TrainConfig) -> Judge | None:
    """The judge, found to reply before anything is trained."""
    if not isinstance(config, AnsweringConfig) or config.judge is None:
        return None
    judge = Judge(config.judge, config.judge_model, config.judge_key)
    judge.check()
    return judge


def _make_output(config: TrainConfig, processes: Processes) -> Path:
    named = f"{config.task}-{datetime.now():%Y%m%d-%H%M%S}"  # the clock may have moved on in another process
    output = config.output or Path("build/runs") / processes.agree(named)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from None
    return output


def _checkpoints(config: TrainConfig, output: Path) -> Checkpoints:
    """The run's checkpoints; an unfinished run is not overwritten unasked, and one that goes on must be there."""
    checkpoints = Checkpoints(output / "checkpoints")
    begun = checkpoints.newest() is not None
    if begun and not config.resume:
        raise ConfigError(f"--output {output} holds an unfinished run: go on with --resume, or take another folder")
    if config.resume and not begun:
        raise ConfigError(f"--resume: {output} holds no run that was saved and did not finish")
    return checkpoints


def _as_saved(prepared: Prepared, state: State | None) -> Prepared:
    """A run that goes on computes as it did: measured anew, another arithmetic might be the faster one."""
    if state is None:
        return prepared
    with reading(state.weights.parent):
        saved = state.facts["arithmetic"]
        precision = replace(
            prepared.precision,
            dtype=getattr(torch, saved["dtype"]),
            matmul=saved["matmul"],
            packs=saved.get("packs", False),  # states from before there was such a thing
        )
        return replace(prepared, precision=precision)


def _state_of(results: Results | None, checkpoints: Checkpoints, output: Path) -> tuple[str, str]:
    """What there is of a run that was stopped, and what whoever stopped it can do."""
    published = None if results is None else results.published
    done = "nothing was published" if published is None else f"{published.name} was published before"
    if checkpoints.newest() is None:
        return done, "no step was saved yet" if results is None else f"what was trained is in {output}"
    return done, f"the same command with --output {output} --resume goes on"


def _progress(config: TrainConfig, console: Console, processes: Processes, output: Path) -> Progress:
    if not processes.first:
        return Silent()
    shown: Progress = JsonLines(console) if config.json_lines else Shown(console)
    if not config.tensorboard:
        return shown
    from training.events import Events

    return Both(shown, Events(output / "tensorboard"))


def _quiet() -> None:
    """Only what is ours to say is said: no progress bars and advice of the libraries."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # PEFT still asks transformers for a property that has been renamed.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*is deprecated", category=FutureWarning)
