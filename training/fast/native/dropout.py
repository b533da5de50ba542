"""Dropout by the compiled kernels: what is dropped follows from a seed and the place, so no mask is kept."""

import ctypes

import torch
from torch import Tensor

from adapters.native import library


def can_drop(x: Tensor) -> bool:
    """Whether the kernels compute :class:`Counted` for tensors like this."""
    return x.device.type == "cpu" and x.dtype in {torch.float32, torch.bfloat16} and library.supports(torch.bfloat16)


class Counted:
    """Places of a tensor that are dropped, by a seed that torch's generator gives; see `training.fast.dropout.Drop`."""

    def __init__(self, rate: float) -> None:
        self._dropout = library.Dropout.drawn(rate)

    def of(self, x: Tensor) -> Tensor:
        """``x`` without them, in a tensor of its own."""
        x = x.contiguous()
        return self._put(x, torch.empty_like(x))

    def into(self, x: Tensor) -> Tensor:
        """The same in place; ``x`` is contiguous."""
        assert x.is_contiguous(), "places are counted in the order of memory"
        return self._put(x, x)

    def _put(self, x: Tensor, y: Tensor) -> Tensor:
        kernel = library.function("tenora_drop", x.dtype)
        kernel(x.data_ptr(), y.data_ptr(), x.numel(), ctypes.addressof(self._dropout), torch.get_num_threads())
        return y
