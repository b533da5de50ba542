"""The training itself: transformers' Trainer over a model wrapped by PEFT.

Trainer owns the loop, the optimiser and the schedule. Here are its settings, the loss, the watch for values that are
not finite, and what happens every few steps and after each epoch.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from training.batches import Batch
from training.config import TrainConfig
from training.errors import ConfigError, TrainingError
from training.history import History, Point
from training.model import pick_dtype
from training.progress import Progress
from training.task import Metrics, Task

_NUMBERS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished training. The model holds the best epoch; so does ``folder``, in PEFT's form."""

    history: History
    folder: Path


def fit(task: Task[Any], model: Any, output: Path, progress: Progress, before: Metrics | None = None) -> Fitted:
    """Train ``model``, keep every epoch under ``output/checkpoints``, and put the best one back into it.

    ``before`` holds the validation figures of the untrained model, if they are known already.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    config = task.config
    steps = _steps_in_epoch(config, len(task.split.train))
    watch = _Watch(task, model, output / "checkpoints", progress, steps=steps)
    watch.begin(before)
    progress.start(config.epochs, steps)
    trainer = _Trainer(
        model=model,
        args=_arguments(config, model.device, output, steps),
        train_dataset=task.split.train,
        data_collator=task.collate,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.prepare(task, watch)
    trainer.train()
    progress.stop()
    watch.restore_best()
    return Fitted(watch.history, watch.folder(watch.history.best))


def _steps_in_epoch(config: TrainConfig, rows: int) -> int:
    steps = rows // config.batch_size if config.drop_last else -(-rows // config.batch_size)
    if not steps:
        raise ConfigError(f"--drop-last leaves no batch of {config.batch_size} out of {rows} rows: lower --batch-size")
    return steps


def _arguments(config: TrainConfig, device: torch.device, output: Path, steps: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(config.warmup * steps * config.epochs),
        max_grad_norm=config.clip,
        dataloader_drop_last=config.drop_last,
        dataloader_pin_memory=device.type == "cuda",
        seed=config.seed,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,  # rows are encoded already
        label_names=["targets"],
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would spread each batch over all GPUs, and a step would be several batches
    return arguments


class _Trainer(Trainer):  # type: ignore[misc]
    """Trainer with the task's loss, which stops at the first value that is not finite."""

    def prepare(self, task: Task[Any], watch: "_Watch") -> None:
        self._task, self._watch = task, watch
        dtype = pick_dtype(task.config.dtype, self.args.device)
        self._autocast = None if dtype == torch.float32 else dtype
        self.loss_is_scaled_for_ga = False

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any) -> Tensor:
        """Mean over the batch's targets."""
        with self._precision():
            total, count = self._task.loss(model, inputs)
        return total / count

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """A step, noted by the watch."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._watch.saw(inputs, loss.item())
        return loss

    def _precision(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.args.device.type, dtype=self._autocast)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Measures, samples and saves on the way."""

    def __init__(self, task: Task[Any], model: Any, folder: Path, progress: Progress, *, steps: int) -> None:
        self._task, self._model, self._folder, self._progress = task, model, folder, progress
        self._steps = steps  # in an epoch
        self.history = History(task.config.metric)
        self._tokens = self._step = 0
        self._since: list[float] = []  # losses since the last point
        self._best: dict[str, Tensor] = {}

    def begin(self, known: Metrics | None) -> None:
        """Measure before the first step; validation figures that are known are not measured again."""
        train_loss = self._train_loss()
        validation = known or self._task.validate(self._model, self._task.split.validation)
        self._note(Point(0, 0.0, 0, train_loss, validation))

    def saw(self, batch: Batch, loss: float) -> None:
        """Note a step's loss.

        Raises:
            TrainingError: it is not finite.
        """
        self._step += 1
        if not torch.isfinite(torch.tensor(loss)):
            numbers = sorted(batch["numbers"].tolist())
            listed = ", ".join(map(str, numbers[:_NUMBERS_SHOWN])) + (" …" if len(numbers) > _NUMBERS_SHOWN else "")
            raise TrainingError(
                f"the loss is {loss} at step {self._step}, on the rows at {listed}: lower --lr, or look at these rows"
            )
        self._tokens += int(batch["attention_mask"].sum())
        self._since.append(loss)
        self.history.steps.append((self._step, self._tokens, loss))
        self._progress.step(loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every few steps: the loss on a few batches of both parts."""
        every = self._task.config.eval_every
        if not every or self._step % every or self._step % self._steps == 0:
            return
        train_loss = self._train_loss()
        validation = {"loss": self._task.mean_loss(self._model, self._some(self._task.split.validation))}
        self._note(Point(self._step, self._step / self._steps, self._tokens, train_loss, validation, whole=False))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each epoch: the whole validation part, a sample answer, a checkpoint."""
        validation = self._task.validate(self._model, self._task.split.validation)
        train_loss = self._train_loss()
        point = Point(self._step, self._step / self._steps, self._tokens, train_loss, validation)
        self._note(point)
        self._progress.sample(self._task.sample(self._model))
        self._model.save_pretrained(self.folder(point), save_embedding_layers=False)
        if self.history.best is point:
            self._best = {name: value.detach().clone() for name, value in self._trained()}

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the model."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self._best[name])
        self._model.eval()

    def folder(self, point: Point) -> Path:
        """Where the checkpoint of an epoch is."""
        return self._folder / f"epoch-{round(point.epoch)}"

    def _note(self, point: Point) -> None:
        self.history.points.append(point)
        self._progress.measured(point)

    def _train_loss(self) -> float:
        """The mean of the epoch's steps; where points lie closer, and at the start, the loss on a few batches."""
        steps, self._since = self._since, []
        if steps and not self._task.config.eval_every:
            return sum(steps) / len(steps)
        return self._task.mean_loss(self._model, self._some(self._task.split.train))

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self._model.named_parameters() if value.requires_grad]

    def _some(self, examples: Sequence[Any]) -> Sequence[Any]:
        """The first few batches, the same at every measurement."""
        return examples[: self._task.config.eval_batches * self._task.config.batch_size]
