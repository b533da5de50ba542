"""Cross-entropy of logits in bfloat16 by the compiled kernels, which read them twice and write their gradient once."""

import torch
from torch import Tensor

from adapters.native import library


def can_compute(logits: Tensor) -> bool:
    """Whether the kernels are for these logits."""
    return logits.dtype == torch.bfloat16 and logits.device.type == "cpu" and library.supports(torch.bfloat16)


def losses(logits: Tensor, targets: Tensor, weights: Tensor, *, turn: bool) -> Tensor:
    """Σ weight · −log p(target); with ``turn`` the logits, ``[n, vocabulary]`` contiguous, become its gradient."""
    weights = weights.float().contiguous()
    found = torch.empty(len(logits))
    library.function("tenora_cross_entropy", torch.bfloat16)(
        logits.data_ptr(), targets.data_ptr(), weights.data_ptr() if turn else None, found.data_ptr(),
        *logits.shape, torch.get_num_threads(),
    )  # fmt: skip
    return (found * weights).sum()
