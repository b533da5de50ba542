"""Memory for what the kernels read from end to end, step after step.

On large pages a core looks up fewer addresses while it streams: a step of sixteen rows takes 3% less time than on
pages of 4 kB. NumPy asks the system for large pages (on Linux, from 4 MB on), torch does not.
"""

import numpy as np
import torch
from torch import Tensor

LINE = 64
"""Bytes of a cache line, on which everything begins."""
CHUNK = 64 << 20
"""Bytes that an arena asks for at once; what is not written of them takes no memory."""


def streamed(count: int, dtype: torch.dtype) -> Tensor:
    """``[count]`` values, not yet written."""
    buffer = np.empty(count * dtype.itemsize + LINE, dtype=np.uint8)
    start = -buffer.ctypes.data % LINE
    return torch.from_numpy(buffer)[start : start + count * dtype.itemsize].view(dtype)


class Arena:
    """Gives out memory from large pieces, for what stays as long as the process: many matrices share their pages."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """``[count]`` values, not yet written."""
        size = count * dtype.itemsize
        whole = -(-size // LINE) * LINE
        if whole > len(self._rest):
            self._rest = streamed(max(whole, CHUNK), torch.uint8)
        taken, self._rest = self._rest[:size], self._rest[whole:]
        return taken.view(dtype)
