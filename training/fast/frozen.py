"""A weight that is not trained, laid out for its two products: with an input, and with the gradient of an output.

On a CPU both layouts are packed by oneDNN beforehand. torch would pack the weight anew in each product, which takes a
fifth of the time of a product with a few hundred rows in bfloat16, and some 5% of one in float32. In bfloat16 the
copies take the base's own memory once more; in float32 twice, so there they are made only where that is little.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHARE = 8
"""The packed float32 copies of a base may take one part in so many of the memory, or there are none."""


class FrozenWeight:
    """Weight and bias of a Linear or a Conv1D, in every type that was asked for.

    float32 is the layer's own memory unless it is packed; another type is a copy. Copies are made when first used.

    Args:
        packs: The types it is packed for, on a CPU whose oneDNN can.
    """

    def __init__(self, layer: Any, packs: Collection[torch.dtype] = ()) -> None:
        weight = layer.weight.detach()
        self._weight = weight.T if isinstance(layer, nn.Linear) else weight  # [in, out]
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._rounded: dict[torch.dtype, Tensor] = {}
        self._biases: dict[torch.dtype, Tensor | None] = {}
        self._packed: dict[tuple[str, torch.dtype], Tensor] = {}
        self._packed_types = packs

    @property
    def width(self) -> int:
        """Numbers that come out for a token."""
        return int(self._weight.shape[1])

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x Wᵀ + b: ``[n, in] -> [n, out]`` of ``dtype``."""
        x, bias = x.to(dtype), self._bias_of(dtype)
        if self._packs(dtype):
            return packed_product(x, self._packed_as("forward", self._weight.T, dtype), bias)
        weight = self._of(dtype)
        return x @ weight if bias is None else torch.addmm(bias, x, weight)

    def back(self, dy: Tensor, dtype: torch.dtype) -> Tensor:
        """dy W: ``[n, out] -> [n, in]`` of ``dtype``."""
        dy = dy.to(dtype)
        if self._packs(dtype):
            return packed_product(dy, self._packed_as("backward", self._weight, dtype), None)
        return dy @ self._of(dtype).T

    def _packs(self, dtype: torch.dtype) -> bool:
        return dtype in self._packed_types and self._weight.device.type == "cpu" and CAN_PACK

    def _packed_as(self, way: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if (way, dtype) not in self._packed:
            rounded = weight.to(dtype).contiguous()
            self._packed[way, dtype] = packed(rounded)
        return self._packed[way, dtype]

    def _of(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._rounded:
            self._rounded[dtype] = self._weight.to(dtype)
        return self._rounded[dtype]

    def _bias_of(self, dtype: torch.dtype) -> Tensor | None:
        if dtype not in self._biases:
            self._biases[dtype] = None if self._bias is None else self._bias.to(dtype)
        return self._biases[dtype]


def is_small(numbers: int) -> bool:
    """Whether packed float32 copies of so many weights, in each process here, are little beside the memory."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 2 * 4 * numbers * processes * SHARE <= memory()


def memory() -> int:
    """Bytes that this process may use: of the machine, or what its container allows."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return min(installed, int(allowed)) if allowed.isdigit() else installed


CAN_PACK = bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(weight: Tensor) -> Tensor:
    """A contiguous ``[out, in]`` as oneDNN reads it."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return found


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[n, k] · [k, m]`` with a packed weight by oneDNN, as torch's own compiler calls it."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
