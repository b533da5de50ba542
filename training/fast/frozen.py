"""A weight that is not trained, laid out for its two products: with an input, and with the gradient of an output.

In bfloat16 on a CPU both layouts are packed by oneDNN beforehand. torch would pack the weight anew in each product,
which takes a fifth of the time of a product with a few hundred rows. It costs a second copy in two bytes a number.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FrozenWeight:
    """Weight and bias of a Linear or a Conv1D, in every type that was asked for.

    float32 is the layer's own memory; another type is a copy, made when it is first used.
    """

    def __init__(self, layer: Any) -> None:
        weight = layer.weight.detach()
        self._weight = weight.T if isinstance(layer, nn.Linear) else weight  # [in, out]
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._rounded: dict[torch.dtype, Tensor] = {}
        self._biases: dict[torch.dtype, Tensor | None] = {}
        self._packed: dict[str, Tensor] = {}

    @property
    def width(self) -> int:
        """Numbers that come out for a token."""
        return int(self._weight.shape[1])

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x Wᵀ + b: ``[n, in] -> [n, out]`` of ``dtype``."""
        x, bias = x.to(dtype), self._bias_of(dtype)
        if self._packs(dtype):
            return _packed_product(x, self._packed_as("forward", self._weight.T), bias)
        weight = self._of(dtype)
        return x @ weight if bias is None else torch.addmm(bias, x, weight)

    def back(self, dy: Tensor, dtype: torch.dtype) -> Tensor:
        """dy W: ``[n, out] -> [n, in]`` of ``dtype``."""
        dy = dy.to(dtype)
        if self._packs(dtype):
            return _packed_product(dy, self._packed_as("backward", self._weight), None)
        return dy @ self._of(dtype).T

    def _packs(self, dtype: torch.dtype) -> bool:
        return dtype == torch.bfloat16 and self._weight.device.type == "cpu" and _CAN_PACK

    def _packed_as(self, way: str, weight: Tensor) -> Tensor:
        if way not in self._packed:
            rounded = weight.to(torch.bfloat16).contiguous()
            self._packed[way] = torch.ops.mkldnn._reorder_linear_weight(rounded)
        return self._packed[way]

    def _of(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._rounded:
            self._rounded[dtype] = self._weight.to(dtype)
        return self._rounded[dtype]

    def _bias_of(self, dtype: torch.dtype) -> Tensor | None:
        if dtype not in self._biases:
            self._biases[dtype] = None if self._bias is None else self._bias.to(dtype)
        return self._biases[dtype]


_CAN_PACK = bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``[n, k] · [k, m]`` by oneDNN, as torch's own compiler calls it."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y
