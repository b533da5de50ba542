"""Dropout from few random numbers: on a CPU, drawing them one by one takes longer than the layer around them.

A word of 64 random bits decides four places, each with 16 bits. The rate is rounded to a 65,536th, and what is kept
is scaled by the rounded rate, so the expectation is exact.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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


class FastDropout:
    """The forward of a dropout layer."""

    def __init__(self, layer: nn.Dropout) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        """The shape of ``x``."""
        rate = self._layer.p if self._layer.training else 0.0
        if not rate:
            return x
        return x * kept(x.shape, rate, x) if x.device.type == "cpu" else nn.functional.dropout(x, rate)
