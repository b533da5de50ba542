"""Small integers, from lists to a device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(columns: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, ...]:
    """Copy lists of integers in one transfer: int64 views of one buffer, which a GPU takes without being waited for."""
    flat = [value for column in columns for value in column]
    buffer = torch.tensor(flat, dtype=torch.int64, pin_memory=device.type == "cuda")
    return torch.split(buffer.to(device, non_blocking=True), [len(column) for column in columns])
