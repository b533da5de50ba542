"""The step of `tenora train`: loss over the rows, backward, clip, AdamW."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.trainers.work import Row, Text, trained
from training.fast.frozen import is_small
from training.fast.levers import Levers
from training.fast.model import FastModel
from training.fast.precision import Precision

CLIP, RATE = 1.0, 1e-4
"""What Trainer clips gradients to by default; the rate of all systems, constant."""

Loss = Callable[[FastModel, Sequence[Any]], Tensor]


class FastSteps:
    """Takes training steps over a model.

    Args:
        model: Wrapped by PEFT; its trained parameters are this system's own.
        loss: The mean loss of a batch.
    """

    def __init__(self, model: Any, loss: Loss, levers: Levers, precision: Precision, pad_id: int) -> None:
        self.model, self.precision = model, precision
        frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
        packs = precision.packs and is_small(frozen)  # as a run would
        self._fast = FastModel(model, levers, precision.dtype, pad_id, coarse=precision.coarse, packs=packs)
        self._loss = loss
        self._optimiser = torch.optim.AdamW(trained(model).values(), lr=RATE, weight_decay=0.0, fused=True)

    def __call__(self, batch: Sequence[Any]) -> float:
        """One step; returns the loss before it."""
        with self.precision.active():
            self.model.train()
            loss = self._loss(self._fast, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained(self.model).values(), CLIP)
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
            return float(loss.detach())

    def close(self) -> None:
        """Give the model back as it was; no steps after that."""
        self._fast.close()

    def gradients(self, batch: Sequence[Any]) -> tuple[float, Tensor]:
        """(loss, all gradients end to end) of a batch, without dropout and without a step."""
        with self.precision.active():
            self.model.eval()
            loss = self._loss(self._fast, batch)
            found = torch.autograd.grad(loss, list(trained(self.model).values()))
            return float(loss.detach()), torch.cat([gradient.flatten() for gradient in found])

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Sequence[Any]]) -> float:
        """The mean loss of batches of the same size, as a run looks at it between epochs."""
        with self.precision.active(), self._fast.coarsely():
            self.model.eval()
            return sum(float(self._loss(self._fast, batch)) for batch in batches) / len(batches)


def answers_loss(fast: FastModel, rows: Sequence[Row]) -> Tensor:
    """The mean over the learned tokens."""
    targets = [row.targets for row in rows]
    return fast.token_loss([row.ids for row in rows], targets) / sum(map(len, targets))


def labels_loss(fast: FastModel, texts: Sequence[Text]) -> Tensor:
    """The mean over the texts."""
    logits = fast.label_logits([text.ids for text in texts])
    return torch.nn.functional.cross_entropy(logits, torch.tensor([text.label for text in texts]))
