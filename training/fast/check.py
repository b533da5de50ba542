"""Whether the levers compute what transformers and PEFT compute for a model, found out by doing both.

No table of architectures: whatever a model does to its attention, its last hidden states or its logits that a lever
does not know of shows in the loss or in a gradient of a few rows.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from training.fast.levers import Levers
from training.fast.model import FastModel, Rows, Target
from training.fast.precision import Precision

TOLERANCE = 1e-4
"""Relative; rounding in float32 stays a hundred times below it."""
_FIRST_TO_GO = ("narrow", "fused", "share_prefix", "loss_rows", "packing")
"""Which lever is given up first where several could be to blame: the one that saves least."""


def agreeing(
    model: Any, levers: Levers, rows: Rows, targets: Sequence[Sequence[Target]] | None, pad_id: int
) -> tuple[Levers, str | None]:
    """The largest part of ``levers`` that gives the plain way's loss and gradients for some rows.

    Both are computed in evaluation mode and exact float32. Sets of levers are tried from all that are wanted down to
    none; of sets of the same size first that without ``narrow``, then without ``fused``, ``share_prefix``,
    ``loss_rows``, ``packing``. If all agree that costs two passes over the rows. The model is left as it was.

    What the rows do not show cannot be found: a window of attention that is longer than all of them, for one. Nor is
    what only changes the arithmetic tried: the compiled kernels, packed weights, oneDNN and the coarse curve.

    Args:
        rows: Token ids; a few of different lengths, best with a common beginning.
        targets: What each row predicts; None for a classifier.

    Returns:
        The levers, and a sentence that names what was switched off and why; None if nothing was.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with Precision(torch.float32).active():
            return _agreeing(_Comparison(model, rows, targets, pad_id), levers)
    finally:
        for module, mode in training.items():
            module.training = mode


def _agreeing(comparison: "_Comparison", levers: Levers) -> tuple[Levers, str | None]:
    why = None
    if not comparison.is_finite:
        return levers, None  # such rows compare with nothing; the run names them when it measures
    for chosen in _smaller(levers):
        found = comparison.difference(chosen)
        if found is None:
            off = [field.name for field in fields(Levers) if getattr(levers, field.name) > getattr(chosen, field.name)]
            return chosen, None if why is None else f"switched off for this base: {', '.join(off)} ({why})"
        why = why or found
    raise AssertionError("the plain way does not agree with itself")


def _smaller(levers: Levers) -> Iterator[Levers]:
    """Every part of ``levers``, the largest first; what does nothing without another goes with it."""
    wanted = [name for name in _FIRST_TO_GO if getattr(levers, name)]
    parts = {
        _that_work(levers.without(*off))
        for count in range(len(wanted) + 1)
        for off in itertools.combinations(wanted, count)
    }
    return iter(sorted(parts, key=_precedence))


def _that_work(levers: Levers) -> Levers:
    if not (levers.packing or levers.fused):
        levers = levers.without("compiled")
    if not levers.packing:
        return levers.without("share_prefix", "narrow")
    return levers if levers.loss_rows else levers.without("narrow")


def _precedence(levers: Levers) -> tuple[int, list[bool]]:
    """The larger first; of the same size the one without what is given up first."""
    on: list[bool] = [getattr(levers, name) for name in _FIRST_TO_GO]
    return -sum(on), on


class _Comparison:
    """The plain way's loss and gradients, and others' beside them."""

    def __init__(self, model: Any, rows: Rows, targets: Sequence[Sequence[Target]] | None, pad_id: int) -> None:
        self._model, self._rows, self._targets, self._pad_id = model, rows, targets, pad_id
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._loss, self._gradients = self._compute(Levers.none())

    def difference(self, levers: Levers) -> str | None:
        """How far a way is from the plain one, in words; None if it is not."""
        try:
            loss, gradients = self._compute(levers)
        except Exception as error:
            # Whatever an architecture cannot be asked for: the plain way can.
            return f"{type(error).__name__}: {error}"
        for name, own, plain in (("loss", loss, self._loss), ("gradients", gradients, self._gradients)):
            away = float((own - plain).norm() / plain.norm().clamp_min(torch.finfo(plain.dtype).tiny))
            if not away <= TOLERANCE:
                return f"the {name} would be {away:.1e} away from the plain way's"
        return None

    @property
    def is_finite(self) -> bool:
        """Whether the plain way gives numbers for these rows."""
        return bool(self._loss.isfinite().all() and self._gradients.isfinite().all())

    def _compute(self, levers: Levers) -> tuple[Tensor, Tensor]:
        """(loss or logits, all gradients end to end)."""
        with FastModel(self._model, levers, torch.float32, self._pad_id) as fast:
            if self._targets is not None:
                output = fast.token_loss(self._rows, self._targets)
                loss = output
            else:
                output = fast.label_logits(self._rows)
                loss = output.square().sum()  # any number of labels, one too, has a gradient by it
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        parts = zip(gradients, self._parameters, strict=True)
        flat = [(torch.zeros_like(of) if gradient is None else gradient).flatten() for gradient, of in parts]
        return output.detach(), torch.cat(flat)
