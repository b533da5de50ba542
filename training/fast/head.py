"""Cross-entropy over a wide vocabulary from hidden states, through a frozen output layer.

The logits of a chunk of positions are turned into the gradient of their hidden states at once: nothing of the width of
the vocabulary is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from training.fast.frozen import FrozenWeight

CHUNK = 128
"""Positions whose logits are in memory at a time: few enough for the C library to reuse that memory."""


class _CrossEntropy(torch.autograd.Function):
    """Sum over positions of weight × −log p(target)."""

    @staticmethod
    def forward(  # noqa: PLR0917 (torch's protocol)
        ctx: Any, hidden: Tensor, output: FrozenWeight, dtype: torch.dtype, targets: Tensor, weights: Tensor
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits, target = output.product(hidden[part], dtype), targets[part, None]
            shares = logits.softmax(-1, dtype=wide)
            # The likeliest token's share is e⁰ ÷ Σ, which cannot be too small to have a logarithm.
            log_sum = logits.amax(-1).to(wide) - shares.amax(-1).log()
            total += ((log_sum - logits.gather(1, target)[:, 0]) * weights[part]).sum()
            if gradient is not None:
                shares.scatter_add_(1, target, -torch.ones_like(shares[:, :1]))
                shares.mul_(weights[part, None])
                gradient[part] = output.back(shares, dtype).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * dtotal, None, None, None, None


def cross_entropy(hidden: Tensor, output: FrozenWeight, dtype: torch.dtype, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ weightᵢ · −log p(targetᵢ), a float32 scalar.

    Args:
        hidden: ``[n, hidden]``.
        output: The output layer, which gets no gradient.
        dtype: Of its products.
        targets: ``[n]`` token ids.
        weights: ``[n]`` float32.
    """
    total: Tensor = _CrossEntropy.apply(hidden, output, dtype, targets, weights)  # type: ignore[no-untyped-call]
    return total
