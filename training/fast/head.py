"""Cross-entropy over a wide vocabulary from hidden states, through a frozen output layer.

The logits of a chunk of positions are turned into the gradient of their hidden states at once, in their own memory:
nothing of the width of the vocabulary is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Positions whose logits are in memory at a time."""


class _CrossEntropy(torch.autograd.Function):
    """Sum over positions of weight × −log p(target); ``projection`` is ``[vocabulary, hidden]``, frozen."""

    @staticmethod
    def forward(  # noqa: PLR0917 (torch's protocol)
        ctx: Any, hidden: Tensor, projection: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        wide = torch.promote_types(projection.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part].to(projection.dtype) @ projection.T).to(wide)
            if bias is not None:
                logits += bias
            log_sum = logits.logsumexp(-1)
            picked = logits.gather(1, targets[part, None])[:, 0]
            total += ((log_sum - picked) * weights[part]).sum()
            if gradient is not None:
                share = logits.sub_(log_sum[:, None]).exp_()
                share.scatter_add_(1, targets[part, None], -torch.ones_like(share[:, :1]))
                share.mul_(weights[part, None])
                gradient[part] = (share.to(projection.dtype) @ projection).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * dtotal, None, None, None, None


def cross_entropy(hidden: Tensor, projection: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ weightᵢ · −log p(targetᵢ), a float32 scalar.

    Args:
        hidden: ``[n, hidden]``.
        projection: ``[vocabulary, hidden]``, which gets no gradient; its type is that of the products.
        bias: ``[vocabulary]`` float32 or None.
        targets: ``[n]`` token ids.
        weights: ``[n]`` float32.
    """
    total: Tensor = _CrossEntropy.apply(hidden, projection, bias, targets, weights)  # type: ignore[no-untyped-call]
    return total
