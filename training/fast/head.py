"""Cross-entropy over a wide vocabulary from hidden states, through a frozen output layer.

The logits of a chunk of positions are turned into the gradient of their hidden states at once, in their own memory:
nothing of the width of the vocabulary is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from training.fast.frozen import FrozenWeight
from training.fast.native import loss as native

CHUNK = 128
"""Positions whose logits are in memory at a time: few enough for the C library to reuse that memory."""
_PIECE = 16
"""Positions whose shares are computed at a time: few enough to stay in the cache from one pass to the next."""


class _CrossEntropy(torch.autograd.Function):
    """Sum over positions of weight × −log p(target)."""

    @staticmethod
    def forward(  # noqa: PLR0917 (torch's protocol)
        ctx: Any,
        hidden: Tensor,
        output: FrozenWeight,
        dtype: torch.dtype,
        targets: Tensor,
        weights: Tensor,
        compiled: bool,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = output.product(hidden[part], dtype)
            total_loss = native.total_loss if compiled and native.can_compute(logits) else _total_loss
            total += total_loss(logits, targets[part], weights[part], turn=gradient is not None)
            if gradient is not None:
                gradient[part] = output.back(logits, dtype).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * dtotal, None, None, None, None, None


def _total_loss(logits: Tensor, targets: Tensor, weights: Tensor, *, turn: bool) -> Tensor:
    """Σ weight · −log p(target); with ``turn`` the logits become its gradient."""
    pieces = (torch.split(whole, _PIECE) for whole in (logits, targets, weights))
    return torch.stack([_losses_of(*piece, turn=turn) for piece in zip(*pieces, strict=True)]).sum()


def _losses_of(logits: Tensor, targets: Tensor, weights: Tensor, *, turn: bool) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights, target = weights.to(wide), targets[:, None]
    own = logits.gather(1, target)[:, 0].to(wide)
    highest = logits.amax(-1, keepdim=True).to(wide)
    shares = logits.to(wide).sub_(highest).exp_()  # float32 logits turn in place
    total = shares.sum(-1)  # 1 at least: the likeliest token's is e⁰
    losses = (highest[:, 0] + total.log() - own) * weights
    if turn:
        shares.mul_((weights / total)[:, None]).scatter_add_(1, target, -weights[:, None])
        logits.copy_(shares)
    return losses.sum()


def cross_entropy(
    hidden: Tensor,
    output: FrozenWeight,
    dtype: torch.dtype,
    targets: Tensor,
    weights: Tensor,
    *,
    compiled: bool = False,
) -> Tensor:
    """Σ weightᵢ · −log p(targetᵢ), a float32 scalar.

    Args:
        hidden: ``[n, hidden]``.
        output: The output layer, which gets no gradient.
        dtype: Of its products.
        targets: ``[n]`` token ids.
        weights: ``[n]`` float32.
        compiled: In bfloat16 by the compiled kernels, where those are there.
    """
    total: Tensor = _CrossEntropy.apply(hidden, output, dtype, targets, weights, compiled)  # type: ignore[no-untyped-call]
    return total
