"""A frozen linear layer with its LoRA matrices as one step of the backward pass.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ          forward
    dx = dy W + s (dy B) A               backward; W gets no gradient
    dA = s (dy B)ᵀ x,  dB = s dyᵀ (x Aᵀ)

The products run in the type of ``weight``; A and B stay float32 and so do their gradients. What is saved for the
backward pass is x and the narrow x Aᵀ.
"""

from typing import Any

import torch
from torch import Tensor, nn

from training.fast.dropout import kept


class _LoraLinear(torch.autograd.Function):
    """Torch's protocol for the equations above; ``weight`` is ``[in, out]``."""

    @staticmethod
    def forward(  # noqa: PLR0917 (torch's protocol)
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, drop: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        left = kept(flat.shape, drop, flat) if drop else None
        narrow = (flat if left is None else flat * left) @ a.to(weight.dtype).T
        y = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        y.addmm_(narrow, b.to(weight.dtype).T, alpha=scaling)
        ctx.save_for_backward(flat, weight, a, b, narrow, left)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y.view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, a, b, narrow, left = ctx.saved_tensors
        dy = dy.reshape(-1, weight.shape[1]).to(weight.dtype)
        dnarrow = (dy @ b.to(weight.dtype)).mul_(ctx.scaling)
        da = (dnarrow.T @ (flat if left is None else flat * left)).to(a.dtype)
        db = (narrow.T @ dy).T.mul(ctx.scaling).to(b.dtype)  # this way round the narrow side is cheap
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight.T
            if left is None:
                dx.addmm_(dnarrow, a.to(weight.dtype))
            else:
                dx.add_((dnarrow @ a.to(weight.dtype)).mul_(left))
            dx = dx.view(ctx.shape).to(ctx.dtype)
        return dx, None, None, da, db, None, None


class _FrozenLinear(torch.autograd.Function):
    """A linear layer without an adapter, in the type of its weight ``[in, out]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        y = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return y.view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        dx = dy.reshape(-1, weight.shape[1]).to(weight.dtype) @ weight.T
        return dx.view(ctx.shape).to(ctx.dtype), None, None


class Arithmetic:
    """In which type the products of a model run just now."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class FrozenWeight:
    """Weight ``[in, out]`` and bias ``[out]`` of a Linear or a Conv1D, in every type that was asked for.

    float32 is the layer's own memory; another type is a copy, made once.
    """

    def __init__(self, layer: Any) -> None:
        weight = layer.weight.detach()
        self._weight = weight.T if isinstance(layer, nn.Linear) else weight
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._rounded: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def of(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) in ``dtype``."""
        if dtype not in self._rounded:
            bias = None if self._bias is None else self._bias.to(dtype)
            self._rounded[dtype] = (self._weight.to(dtype), bias)
        return self._rounded[dtype]


class FastLora:
    """The forward of one of PEFT's LoRA layers, over the same parameters.

    Args:
        layer: PEFT's layer; its base is a Linear or a Conv1D.
        arithmetic: In which type the products run.
    """

    def __init__(self, layer: Any, arithmetic: Arithmetic) -> None:
        (name,) = layer.active_adapters
        self._layer, self._name, self._arithmetic = layer, name, arithmetic
        self._frozen = FrozenWeight(layer.get_base_layer())

    def __call__(self, x: Tensor) -> Tensor:
        """``[…, in] -> […, out]`` in the type of the products."""
        layer, name = self._layer, self._name
        weight, bias = self._frozen.of(self._arithmetic.dtype)
        if layer.disable_adapters:  # asked for the base by PEFT's disable_adapter()
            return _FrozenLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call, no-any-return]
        dropout = layer.lora_dropout[name]
        drop = dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        y: Tensor = _LoraLinear.apply(x, weight, bias, a, b, layer.scaling[name], drop)  # type: ignore[no-untyped-call]
        return y


class FastFrozen:
    """The forward of a linear layer of the base that has no adapter."""

    def __init__(self, layer: nn.Module, arithmetic: Arithmetic) -> None:
        self._frozen, self._arithmetic = FrozenWeight(layer), arithmetic

    def __call__(self, x: Tensor) -> Tensor:
        """``[…, in] -> […, out]`` in the type of the products."""
        y: Tensor = _FrozenLinear.apply(x, *self._frozen.of(self._arithmetic.dtype))  # type: ignore[no-untyped-call]
        return y
