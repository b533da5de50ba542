"""Large zeroed buffers that cost memory only where they are written."""

from math import prod

import numpy as np
import torch
from torch import Tensor


def zeroed(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A zeroed tensor; on a CPU its pages are committed on first write.

    ``torch.zeros`` writes every page at once. ``calloc``, which NumPy uses, takes untouched pages from the
    operating system, so a pool may be sized for the worst case.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    buffer = np.zeros(prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(buffer).view(dtype).view(shape)
