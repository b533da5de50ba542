"""A frozen linear layer with its LoRA matrices as one step of the backward pass.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ          forward
    dx = dy W + s (dy B) A               backward; W gets no gradient
    dA = s (dy B)ᵀ x,  dB = s dyᵀ (x Aᵀ)

The products run in one type; A and B stay float32 and so do their gradients. What is saved for the
backward pass is x and the narrow x Aᵀ.
"""

from typing import Any

import torch
from torch import Tensor, nn

from training.fast.dropout import kept
from training.fast.frozen import FrozenWeight


class _LoraLinear(torch.autograd.Function):
    """Torch's protocol for the equations above."""

    @staticmethod
    def forward(  # noqa: PLR0917 (torch's protocol)
        ctx: Any, x: Tensor, frozen: FrozenWeight, dtype: torch.dtype, a: Tensor, b: Tensor, scaling: float, drop: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        left = kept(flat.shape, drop, flat) if drop else None
        narrow = (flat if left is None else flat * left) @ a.to(dtype).T
        y = frozen.product(flat, dtype)
        y.addmm_(narrow, b.to(dtype).T, alpha=scaling)
        ctx.save_for_backward(flat, a, b, narrow, left)
        ctx.frozen, ctx.scaling, ctx.shape, ctx.dtypes = frozen, scaling, x.shape, (x.dtype, dtype)
        return y.view(*x.shape[:-1], frozen.width)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        flat, a, b, narrow, left = ctx.saved_tensors
        outer, dtype = ctx.dtypes
        dy = dy.reshape(-1, ctx.frozen.width).to(dtype)
        dnarrow = (dy @ b.to(dtype)).mul_(ctx.scaling)
        da = (dnarrow.T @ (flat if left is None else flat * left)).to(a.dtype)
        db = (narrow.T @ dy).T.mul(ctx.scaling).to(b.dtype)  # this way round the narrow side is cheap
        dx = None
        if ctx.needs_input_grad[0]:
            dx = ctx.frozen.back(dy, dtype)
            if left is None:
                dx.addmm_(dnarrow, a.to(dtype))
            else:
                dx.add_((dnarrow @ a.to(dtype)).mul_(left))
            dx = dx.view(ctx.shape).to(outer)
        return dx, None, None, da, db, None, None


class _FrozenLinear(torch.autograd.Function):
    """A linear layer without an adapter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenWeight, dtype: torch.dtype) -> Tensor:
        ctx.frozen, ctx.shape, ctx.dtypes = frozen, x.shape, (x.dtype, dtype)
        return frozen.product(x.reshape(-1, x.shape[-1]), dtype).view(*x.shape[:-1], frozen.width)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        outer, dtype = ctx.dtypes
        dx = ctx.frozen.back(dy.reshape(-1, ctx.frozen.width), dtype)
        return dx.view(ctx.shape).to(outer), None, None


class Arithmetic:
    """In which type the products of a model run just now."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class FastLora:
    """The forward of one of PEFT's LoRA layers, over the same parameters.

    Args:
        layer: PEFT's layer; its base is a Linear or a Conv1D.
        arithmetic: In which type the products run.
        pack_float32: See `FrozenWeight`.
    """

    def __init__(self, layer: Any, arithmetic: Arithmetic, *, pack_float32: bool = False) -> None:
        (name,) = layer.active_adapters
        self._layer, self._name, self._arithmetic = layer, name, arithmetic
        self._frozen = FrozenWeight(layer.get_base_layer(), pack_float32=pack_float32)

    def __call__(self, x: Tensor) -> Tensor:
        """``[…, in] -> […, out]`` in the type of the products."""
        layer, name = self._layer, self._name
        dtype = self._arithmetic.dtype
        if layer.disable_adapters:  # asked for the base by PEFT's disable_adapter()
            return _FrozenLinear.apply(x, self._frozen, dtype)  # type: ignore[no-untyped-call, no-any-return]
        dropout = layer.lora_dropout[name]
        drop = dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        scaling = layer.scaling[name]
        y: Tensor = _LoraLinear.apply(x, self._frozen, dtype, a, b, scaling, drop)  # type: ignore[no-untyped-call]
        return y


class FastFrozen:
    """The forward of a linear layer of the base that has no adapter.

    Args:
        layer: A Linear or a Conv1D.
        arithmetic: In which type the products run.
        pack_float32: See `FrozenWeight`.
    """

    def __init__(self, layer: nn.Module, arithmetic: Arithmetic, *, pack_float32: bool = False) -> None:
        self._frozen, self._arithmetic = FrozenWeight(layer, pack_float32=pack_float32), arithmetic

    def __call__(self, x: Tensor) -> Tensor:
        """``[…, in] -> […, out]`` in the type of the products."""
        y: Tensor = _FrozenLinear.apply(x, self._frozen, self._arithmetic.dtype)  # type: ignore[no-untyped-call]
        return y
