"""Dropout from few random numbers: on a CPU, drawing them one by one takes longer than the layer around them.

A word of 64 random bits decides four places, each with 16 bits. The rate is rounded to a 65,536th, and what is kept
is scaled by the rounded rate, so the expectation is exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.fast.native.dropout import Counted, can_drop

_STEPS = 1 << 16
_LOWEST = -(1 << 15)


def kept(shape: Sequence[int], rate: float, like: Tensor) -> Tensor:
    """``shape``, of the type and device of ``like``: 0 with probability ``rate``, and else what makes the mean 1."""
    if like.device.type != "cpu":
        return like.new_empty(shape).bernoulli_(1 - rate).div_(1 - rate)
    count, dropped = math.prod(shape), round(rate * _STEPS)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    keeps = words.view(torch.int16)[:count] >= _LOWEST + dropped
    return keeps.view(*shape).to(like.dtype).mul_(_STEPS / (_STEPS - dropped))


class Drop(Protocol):
    """Which places of a tensor are dropped; what is left is scaled so that the mean stays."""

    def of(self, x: Tensor) -> Tensor:
        """``x`` without them, in a tensor of its own."""

    def into(self, x: Tensor) -> Tensor:
        """The same in place."""


@dataclass(frozen=True, slots=True)
class Masked:
    """By a mask that is kept."""

    mask: Tensor

    def of(self, x: Tensor) -> Tensor:
        """``x`` without them, in a tensor of its own."""
        return x * self.mask

    def into(self, x: Tensor) -> Tensor:
        """The same in place."""
        return x.mul_(self.mask)


def draw(like: Tensor, rate: float, *, compiled: bool) -> Drop | None:
    """Places of tensors of this shape and type, by the compiled kernels if those are wanted; None at a rate of zero."""
    if not rate:
        return None
    if rate >= 1:
        return Masked(torch.zeros_like(like))
    return Counted(rate) if compiled and can_drop(like) else Masked(kept(like.shape, rate, like))


class _Dropped(torch.autograd.Function):
    """``x`` without the places of a `Drop`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: Drop) -> Tensor:
        ctx.drop = drop
        return drop.of(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return ctx.drop.of(dy), None


class FastDropout:
    """The forward of a dropout layer.

    Args:
        compiled: By the compiled kernels, where those are there.
    """

    def __init__(self, layer: nn.Dropout, *, compiled: bool = False) -> None:
        self._layer, self._compiled = layer, compiled

    def __call__(self, x: Tensor) -> Tensor:
        """The shape of ``x``."""
        rate = self._layer.p if self._layer.training else 0.0
        if x.device.type != "cpu":
            return nn.functional.dropout(x, rate)
        drop = draw(x, rate, compiled=self._compiled)
        if drop is None:
            return x
        y: Tensor = _Dropped.apply(x, drop)  # type: ignore[no-untyped-call]
        return y
