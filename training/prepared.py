"""A task with its model, ready for the first step: what a run and a dry run have in common."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from training.config import TrainConfig
from training.fast.check import agreeing
from training.fast.frozen import is_small
from training.fast.levers import Levers
from training.fast.model import FastModel
from training.fast.precision import Precision, choose_precision
from training.model import pick_device
from training.tasks.task import Task
from training.updates import Update, make_update, set_dropout


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model on its device, with only what is trained open to gradients."""

    task: Task[Any, Any]
    model: Any
    update: Update
    levers: Levers
    precision: Precision

    def fast(self) -> FastModel:
        """The model with the levers on it; leaving it gives the model back."""
        how = self.precision
        return FastModel(self.model, self.levers, how.dtype, self.task.pad_id, coarse=how.coarse, packs=how.packs)


def prepare(task: Task[Any, Any]) -> Prepared:
    """Load the base and put what is trained on it; levers that its architecture does not agree with are off."""
    config = task.config
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    model = task.load_model()
    if config.base_dropout is not None:
        set_dropout(model, config.base_dropout)
    update = make_update(task.base, config)
    model = update.prepare(model).to(device)
    levers, note = agreeing(model, wanted_levers(config), *task.probe(), task.pad_id)
    if note is not None:
        task.notes.append(note)
    precision = choose_precision(config.dtype, device, onednn=levers.onednn)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return Prepared(task, model, update, levers, replace(precision, packs=precision.packs and is_small(frozen)))


def wanted_levers(config: TrainConfig) -> Levers:
    """The levers of the configuration."""
    return Levers(
        packing=config.packing,
        share_prefix=config.share_prefix,
        loss_rows=config.loss_rows,
        narrow=config.narrow,
        # What is fused are frozen weights; where all are trained, autocast has to see each layer.
        fused=config.fused and config.update != "full",
        compiled=config.compiled,
        prepack=config.prepack,
        onednn=config.onednn,
        coarse_curve=config.coarse_curve,
    )
