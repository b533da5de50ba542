"""Weights in int8: whole numbers from -127 to 127, and a scale for each output channel."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LARGEST = 127


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A linear layer's weight.

    Shapes:
        values: ``[out, in]`` int8
        scales: ``[out]`` float32
    """

    values: Tensor
    scales: Tensor

    def dense(self) -> Tensor:
        """What it stands for, ``[out, in]`` float32."""
        return self.values.float() * self.scales[:, None]

    def sums(self) -> Tensor:
        """``[out]`` int32, the sum of each channel's values."""
        return self.values.sum(1, dtype=torch.int32)


def round_weight(weight: Tensor) -> Int8Weight:
    """The nearest weight in int8; the largest value of each output channel is met exactly.

    A channel whose values are all so small that its scale would have no inverse becomes zeros.

    Args:
        weight: ``[out, in]``.
    """
    exact = weight.detach().float()
    scales = exact.abs().amax(1) / LARGEST
    scales = torch.where(scales >= torch.finfo(torch.float32).tiny, scales, 0)
    inverse = torch.where(scales > 0, 1 / scales, 0)
    return Int8Weight((exact * inverse[:, None]).round_().to(torch.int8), scales)


def round_in_place(module: Any) -> None:
    """Give a linear layer, in its own type, the weight that it would have in int8."""
    weight: Tensor = module.weight
    transposed = isinstance(module, Conv1D)
    rounded = round_weight(weight.T if transposed else weight).dense().to(weight.dtype)
    module.weight = nn.Parameter(rounded.T.contiguous() if transposed else rounded, requires_grad=False)
