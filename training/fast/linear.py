"""A frozen linear layer with its LoRA matrices as one step of the backward pass.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ          forward
    dx = dy W + s (dy B) A               backward; W gets no gradient
    dA = s (dy B)ᵀ x,  dB = s dyᵀ (x Aᵀ)

The products run in one type; A and B stay float32 and so do their gradients. What is saved for the
backward pass is x and the narrow x Aᵀ.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.fast.dropout import Drop, draw
from training.fast.frozen import FrozenWeight
from training.fast.native.lora import add_lora, can_add


class _How(NamedTuple):
    """What a layer's products are beside its input and LoRA's matrices."""

    frozen: FrozenWeight
    dtype: torch.dtype
    scaling: float
    dropout: float
    compiled: bool


class _LoraLinear(torch.autograd.Function):
    """Torch's protocol for the equations above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, how: _How) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(how.dtype)
        drop = draw(flat, how.dropout, compiled=how.compiled)
        y = how.frozen.product(flat, how.dtype)
        narrow = _add_lora(flat if drop is None else drop.of(flat), a, b, how, y)
        ctx.save_for_backward(flat, a, b, narrow)
        ctx.how, ctx.drop, ctx.shape, ctx.outer = how, drop, x.shape, x.dtype
        return y.view(*x.shape[:-1], how.frozen.width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        flat, a, b, narrow = ctx.saved_tensors
        how, drop = ctx.how, ctx.drop
        dy = dy.reshape(-1, how.frozen.width).to(how.dtype)
        dx = how.frozen.back(dy, how.dtype) if ctx.needs_input_grad[0] else None
        dnarrow = _back_lora(dy, a, b, how, dx, drop)
        da = (dnarrow.T @ (flat if drop is None else drop.of(flat))).to(a.dtype)
        db = (narrow.T @ dy).T.mul(how.scaling).to(b.dtype)  # this way round the narrow side is cheap
        return None if dx is None else dx.view(ctx.shape).to(ctx.outer), da, db, None


def _add_lora(x: Tensor, a: Tensor, b: Tensor, how: _How, y: Tensor) -> Tensor:
    """``y += s (x Aᵀ) Bᵀ``; returns ``x Aᵀ``."""
    if how.compiled and can_add(x, a, b, y):
        return add_lora(x, a, b, how.scaling, y)
    narrow = x @ a.to(how.dtype).T
    y.addmm_(narrow, b.to(how.dtype).T, alpha=how.scaling)
    return narrow


def _back_lora(dy: Tensor, a: Tensor, b: Tensor, how: _How, dx: Tensor | None, drop: Drop | None) -> Tensor:  # noqa: PLR0917
    """``dx += s (dy B) A``, if there is one; returns ``s (dy B)``."""
    if how.compiled and dx is not None and drop is None and can_add(dy, b.T, a.T, dx):
        return add_lora(dy, b.T, a.T, how.scaling, dx, scale_first=True)
    dnarrow = (dy @ b.to(how.dtype)).mul_(how.scaling)
    if dx is not None:
        if drop is None:
            dx.addmm_(dnarrow, a.to(how.dtype))
        else:
            dx.add_(drop.into(dnarrow @ a.to(how.dtype)))
    return dnarrow


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
        packs: The types that the frozen weight is packed for.
        compiled: In bfloat16 the narrow products run by the compiled kernels, where those are there.
    """

    def __init__(
        self, layer: Any, arithmetic: Arithmetic, packs: Collection[torch.dtype] = (), *, compiled: bool = False
    ) -> None:
        (name,) = layer.active_adapters
        self._compiled = compiled
        self._layer, self._name, self._arithmetic = layer, name, arithmetic
        self._frozen = FrozenWeight(layer.get_base_layer(), packs)

    def __call__(self, x: Tensor) -> Tensor:
        """``[…, in] -> […, out]`` in the type of the products."""
        layer, name = self._layer, self._name
        dtype = self._arithmetic.dtype
        if layer.disable_adapters:  # asked for the base by PEFT's disable_adapter()
            return _FrozenLinear.apply(x, self._frozen, dtype)  # type: ignore[no-untyped-call, no-any-return]
        dropout = layer.lora_dropout[name]
        drop = dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        how = _How(self._frozen, dtype, layer.scaling[name], drop, self._compiled)
        y: Tensor = _LoraLinear.apply(x, a, b, how)  # type: ignore[no-untyped-call]
        return y


class FastFrozen:
    """The forward of a linear layer of the base that has no adapter.

    Args:
        layer: A Linear or a Conv1D.
        arithmetic: In which type the products run.
        packs: The types that its weight is packed for.
    """

    def __init__(self, layer: nn.Module, arithmetic: Arithmetic, packs: Collection[torch.dtype] = ()) -> None:
        self._frozen, self._arithmetic = FrozenWeight(layer, packs), arithmetic

    def __call__(self, x: Tensor) -> Tensor:
        """``[…, in] -> […, out]`` in the type of the products."""
        y: Tensor = _FrozenLinear.apply(x, self._frozen, self._arithmetic.dtype)  # type: ignore[no-untyped-call]
        return y
