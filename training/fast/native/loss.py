"""Cross-entropy of logits in bfloat16 by the compiled kernels, which turn them into their gradient where they lie."""

import torch
from torch import Tensor

from adapters.native import library


def can_compute(logits: Tensor) -> bool:
    """Whether the kernels are for these logits."""
    fits = logits.dtype == torch.bfloat16 and logits.device.type == "cpu" and logits.is_contiguous()
    return fits and library.supports(torch.bfloat16)


def total_loss(logits: Tensor, targets: Tensor, weights: Tensor, *, turn: bool) -> Tensor:
    """Σ weight · −log p(target); with ``turn`` the logits become its gradient.

    Args:
        logits: ``[n, vocabulary]``, for which :func:`can_compute` says yes.
        targets: ``[n]`` token ids.
        weights: ``[n]``.

    Raises:
        IndexError: a target is not in the vocabulary.
    """
    targets, weights = targets.long().contiguous(), weights.float().contiguous()
    if bool(((targets < 0) | (targets >= logits.shape[1])).any()):
        raise IndexError(f"token ids {targets.tolist()} to learn, and logits for {logits.shape[1]}")
    found = torch.empty(len(logits), dtype=torch.float32, device="cpu")
    library.function("tenora_cross_entropy", torch.bfloat16)(
        logits.data_ptr(), targets.data_ptr(), weights.data_ptr() if turn else None, found.data_ptr(),
        *logits.shape, torch.get_num_threads(),
    )  # fmt: skip
    return (found * weights).sum()
