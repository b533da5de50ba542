"""The training itself: steps, measurements and checkpoints, until the epochs are over or nothing gets better.

    a step     the order gives its rows ─► each process its share, a batch at a time ─► loss summed, divided by the
               weight of all rows of the step ─► backward ─► gradients summed over processes ─► clip ─► AdamW

Dividing by the weight of the whole step makes a step the same however its rows are cut into batches and dealt out.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adapters.memory import keep_freed_memory
from training.checkpoint import Checkpoints, State, random_state, reading, restore_random
from training.config import TrainConfig
from training.errors import NotFiniteError, TrainingError
from training.fast.model import FastModel
from training.order import Order, looks_after, rate_at, shares
from training.processes import Processes
from training.progress import Progress
from training.reporting.results import LOWER_IS_BETTER, Point, Sample, Step
from training.tasks.task import Metrics, Task
from training.updates import Update, trained


@dataclass(slots=True)
class History:
    """What was measured on the way. ``since`` are the losses of the steps since the last point."""

    points: list[Point] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    since: list[float] = field(default_factory=list)
    tokens: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "points": [point.model_dump() for point in self.points],
            "steps": [step.model_dump() for step in self.steps],
            "since": self.since,
            "tokens": self.tokens,
            "training_seconds": self.training_seconds,
            "evaluation_seconds": self.evaluation_seconds,
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "History":
        """Of a checkpoint."""
        points = [Point(**point) for point in facts["points"]]
        return cls(**{**facts, "points": points, "steps": [Step(**step) for step in facts["steps"]]})

    def best(self, metric: str) -> Point:
        """The first of the best epochs."""
        sign = 1 if metric in LOWER_IS_BETTER else -1
        epochs = [point for point in self.points if point.whole and point.step]
        return min(epochs, key=lambda point: sign * point.validation[metric])


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished training. The model holds the best epoch; so does ``folder``."""

    history: History
    best: Point
    folder: Path
    stopped: Literal["finished", "early"]


class Loop:
    """Trains one model.

    Args:
        task: What is learned, encoded.
        fast: The model that learns it.
        update: How what is trained is saved.
        checkpoints: Where.
        progress: Told of everything.
        processes: Who trains along.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        fast: FastModel,
        update: Update,
        *,
        checkpoints: Checkpoints,
        progress: Progress,
        processes: Processes,
    ) -> None:
        self._task, self._fast, self._update = task, fast, update
        self._checkpoints, self._progress, self._processes = checkpoints, progress, processes
        config = self._config = task.config
        self._order = Order(task.examples.train, config.step_rows, config.drop_last, config.seed)
        self._total = self._order.steps_in_epoch * config.epochs
        self._warmup = round(config.warmup * self._total)
        self._parameters = dict(trained(fast.model))
        self._optimiser = make_optimiser(self._parameters, config)
        self._history = History()
        self._done = 0

    def run(self, before: Metrics | None, state: State | None = None) -> Fitted:
        """Train from the beginning, or go on from ``state``.

        Args:
            before: the validation figures of the untrained model, if they are known already.

        Raises:
            TrainingError: the loss is no longer finite, or a checkpoint cannot be written.
        """
        keep_freed_memory()
        if state is None:
            self._begin(before)
        else:
            self._restore(state)
        self._progress.start(self._total, self._order.steps_in_epoch, self._done)
        stopped: Literal["finished", "early"] = "early" if self._is_stale() else "finished"
        while self._done < self._total and not self._is_stale():
            self._take_step()
            ended = self._done % self._order.steps_in_epoch == 0
            if ended:
                self._end_epoch()
                stopped = "early" if self._is_stale() and self._done < self._total else "finished"
            elif looks_after(self._done, self._config.eval_every):
                self._measure_some()
            if ended or (self._config.save_every and self._done % self._config.save_every == 0):
                self._save_state()
        self._progress.stop()
        best = self._history.best(self._config.metric)
        folder = self._checkpoints.epoch(round(best.epoch))
        self._processes.wait()
        self._update.load(self._fast.model, folder)
        self._fast.model.eval()
        return Fitted(self._history, best, folder, stopped)

    def _take_step(self) -> None:
        began = time.perf_counter()
        examples = self._order.step(self._done)
        share = rate_at(self._done, self._total, self._warmup, self._config.schedule)
        for group in self._optimiser.param_groups:
            group["lr"] = group["highest"] * share
        loss = self._gradients(examples)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._config.clip or math.inf))
        if not math.isfinite(norm):
            raise NotFiniteError(norm, self._steep(examples), f"at step {self._done + 1}", "gradient")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._done += 1
        history = self._history
        history.tokens += sum(example.tokens for example in examples)
        history.since.append(loss)
        rate = self._config.lr * share
        step = Step(step=self._done, tokens=history.tokens, loss=loss, learning_rate=rate)
        history.steps.append(step)
        history.training_seconds += time.perf_counter() - began
        self._progress.step(step, history.tokens / history.training_seconds)

    def _gradients(self, examples: Sequence[Any]) -> float:
        """The step's loss; its gradients stand in the parameters, the same in all processes."""
        weight = self._task.weight(examples)
        processes = self._processes
        total = 0.0
        self._fast.model.train()
        for batch in shares(examples, self._config.batch_size, processes.index, processes.count):
            loss = self._task.loss(self._fast, batch) / weight
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            del loss  # and with it masks of dropout, before the next batch needs the room
        total = processes.sum(total, self._fast.device)
        if not math.isfinite(total):
            raise self._not_finite(total, examples, self._done + 1)
        processes.add_gradients(self._parameters.values())
        return total

    def _steep(self, examples: Sequence[Any]) -> list[str]:
        """Where the rows stand whose gradient, each alone, is no number; where all of them stand if none is."""
        alone = []
        for example in examples:
            self._optimiser.zero_grad(set_to_none=True)
            self._task.loss(self._fast, [example]).backward()  # type: ignore[no-untyped-call]
            given = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
            if not all(bool(gradient.isfinite().all()) for gradient in given):
                alone.append(example)
        return sorted({str(row.place) for row in alone or examples})

    def _not_finite(self, loss: float, examples: Sequence[Any], step: int) -> NotFiniteError:
        return NotFiniteError(loss, self._task.culprits(self._fast, examples), f"at step {step}")

    def _begin(self, before: Metrics | None) -> None:
        with self._measuring() as seconds:
            validation = before or self._validate()
            train_loss = self._loss_now()
        self._note(train_loss, validation, seconds, whole=True)

    def _end_epoch(self) -> None:
        """The whole validation part, a sample, a checkpoint."""
        with self._measuring() as seconds:
            validation = self._validate()
            train_loss = self._train_loss()
            sample = self._task.sample(self._fast)
        self._note(train_loss, validation, seconds, whole=True, sample=sample)
        if self._processes.first:
            epoch = self._done // self._order.steps_in_epoch
            self._checkpoints.save_epoch(epoch, lambda folder: self._update.save(self._fast.model, folder))

    def _validate(self) -> Metrics:
        examples = self._task.examples.validation
        try:
            return self._task.validate(self._fast, examples)
        except ValueError:  # figures of classes are not made of what is no number
            loss = self._task.mean_loss(self._fast, examples)
            if math.isfinite(loss):
                raise
            raise self._not_finite(loss, examples, self._done) from None

    def _measure_some(self) -> None:
        """The loss on a few batches, between epochs."""
        with self._measuring() as seconds, self._fast.coarsely():
            some = self._some(self._task.examples.validation)
            validation = {"loss": self._task.mean_loss(self._fast, some)}
            train_loss = self._train_loss()
        self._note(train_loss, validation, seconds, whole=False)

    def _note(
        self, train_loss: float, validation: Metrics, seconds: list[float], *, whole: bool, sample: Sample | None = None
    ) -> None:
        if not math.isfinite(validation["loss"]):
            raise self._not_finite(validation["loss"], self._task.examples.validation, self._done)
        # Whether to stop, and which epoch is best, has to come out the same everywhere.
        train_loss, validation = self._processes.agree((train_loss, validation))
        point = Point(
            step=self._done,
            epoch=self._done / self._order.steps_in_epoch,
            tokens=self._history.tokens,
            train_loss=train_loss,
            validation=validation,
            whole=whole,
            evaluation_seconds=seconds[0],
        )
        self._history.points.append(point)
        self._progress.measured(point)
        if sample is not None:
            self._progress.sample(sample)

    def _train_loss(self) -> float:
        """The mean of the steps since the last point, or the loss on a few batches, as the configuration says."""
        steps, self._history.since = self._history.since, []
        if self._config.train_curve == "steps" and steps:
            return sum(steps) / len(steps)
        return self._loss_now()

    def _loss_now(self) -> float:
        """On the first few batches of the training rows."""
        some = self._some(self._task.examples.train)
        loss = self._task.mean_loss(self._fast, some)
        if not math.isfinite(loss):
            raise self._not_finite(loss, some, self._done)
        return loss

    def _some(self, examples: Sequence[Any]) -> Sequence[Any]:
        """The first few batches, the same at every measurement."""
        return examples[: self._config.eval_batches * self._config.batch_size]

    @contextmanager
    def _measuring(self) -> Iterator[list[float]]:
        """Count the time inside as evaluation; it stands in the list afterwards."""
        began, seconds = time.perf_counter(), [0.0]
        yield seconds
        seconds[0] = time.perf_counter() - began
        self._history.evaluation_seconds += seconds[0]

    def _is_stale(self) -> bool:
        """Whether the last epochs were no better than one before them."""
        epochs = [point for point in self._history.points if point.whole and point.step]
        if not self._config.patience or not epochs:
            return False
        best = self._history.best(self._config.metric)
        return len(epochs) - 1 - epochs.index(best) >= self._config.patience

    def _save_state(self) -> None:
        random = self._processes.gather(random_state(self._fast.device, self._processes.index))
        if not self._processes.first:
            return
        tensors = optimiser_state(self._optimiser, self._parameters)
        for states in random:
            tensors |= states
        facts = {
            "step": self._done,
            "identity": identity(self._task, self._processes),
            "arithmetic": {
                "dtype": str(self._fast.dtype).removeprefix("torch."),
                "matmul": torch.get_float32_matmul_precision(),
                "packs": self._fast.packs,
            },
            "history": self._history.as_json(),
        }
        self._checkpoints.save_state(
            self._done, tensors, facts, lambda folder: self._update.save(self._fast.model, folder)
        )

    def _restore(self, state: State) -> None:
        with reading(state.weights.parent):
            check_identity(self._task, self._processes, state.facts["identity"])
            self._update.load(self._fast.model, state.weights)
            load_optimiser_state(self._optimiser, self._parameters, state.tensors)
            restore_random(state.tensors, self._fast.device, self._processes.index)
            self._history = History.from_json(state.facts["history"])
            self._done = state.facts["step"]


def make_optimiser(parameters: dict[str, Tensor], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; with LoRA+ the B matrices have a rate of their own."""
    fast = [value for name, value in parameters.items() if "lora_B" in name]
    others = [value for name, value in parameters.items() if "lora_B" not in name]
    groups = [(others, config.lr), (fast, config.lr * config.lora_plus)]
    return torch.optim.AdamW(
        [{"params": params, "lr": rate, "highest": rate} for params, rate in groups if params],
        weight_decay=config.weight_decay,
        fused=True,
    )


def optimiser_state(optimiser: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """AdamW's moments by the names of their parameters."""
    return {
        f"optimiser.{key}.{name}": value
        for name, parameter in parameters.items()
        for key, value in optimiser.state[parameter].items()
    }


def load_optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Put the moments back."""
    for name, parameter in parameters.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            optimiser.state[parameter][key] = tensors[f"optimiser.{key}.{name}"].to(parameter.device)


def identity(task: Task[Any, Any], processes: Processes) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    hashes = {f"{part}_sha256": sha256 for part, sha256 in task.dataset.hashes.items()}
    beside = {"fingerprint": task.base.fingerprint, "processes": processes.count}
    return {**task.config.as_recipe(), **hashes, **beside}


def check_identity(task: Task[Any, Any], processes: Processes, saved: dict[str, Any]) -> None:
    """Refuse to go on with another run's state.

    Raises:
        TrainingError: naming what differs.
    """
    present = identity(task, processes)
    # What there was no flag for when it was saved was as it is without one.
    fields = type(task.config).model_fields
    before = {name: fields[name].default for name in present if name in fields}
    saved = {**before, "processes": processes.count, **saved}
    changed = sorted(name for name in present.keys() | saved.keys() if present.get(name) != saved.get(name))
    if changed:
        differences = "; ".join(f"{name}: {saved.get(name)!r} then, {present.get(name)!r} now" for name in changed)
        raise TrainingError(
            f"the run in --output was another one ({differences}): repeat its flags, or take another --output"
        )
