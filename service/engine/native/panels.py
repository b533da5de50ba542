"""The layout in which the CPU kernels read matrices: panels of 16 rows, so that products stream through memory.

See the head of kernels.c. The kernels read units of four bytes, one float32 or neighbouring bfloat16 or int8. A panel
holds ``[depth][16]`` of them; the last one may be narrower, but for a float32 matrix, which is padded.
"""

import torch
from torch import Tensor

from service.engine.native import library

PANEL = 16


def packed_size(n: int, k: int, dtype: torch.dtype) -> int:
    """Values that a matrix ``[n, k]`` takes once packed."""
    return _rows(n, dtype) * _depth(k, dtype)


def pack(matrix: Tensor, into: Tensor | None = None) -> Tensor:
    """``[n, k]`` to a flat tensor of panels.

    Args:
        matrix: The matrix, in float32, bfloat16 or int8.
        into: Where to put the panels, ``[packed_size]``; a new tensor when None.
    """
    (n, k), dtype = matrix.shape, matrix.dtype
    rows, columns = _rows(n, dtype), _depth(k, dtype)
    if (rows, columns) != (n, k):
        matrix = torch.nn.functional.pad(matrix, (0, columns - k, 0, rows - n))
    flat = matrix.new_empty(rows * columns) if into is None else into
    matrix = matrix.contiguous()
    library.function("tenora_pack")(matrix.data_ptr(), rows, columns * dtype.itemsize // 4, flat.data_ptr())
    return flat


def unpack(flat: Tensor, n: int, k: int) -> Tensor:
    """Undo :func:`pack`."""
    matrix = flat.new_empty(_rows(n, flat.dtype), _depth(k, flat.dtype))
    units, panels = matrix.view(torch.int32), flat.view(torch.int32)
    rows, depth = units.shape
    whole = rows // PANEL * PANEL
    units[:whole].view(-1, PANEL, depth).copy_(panels[: whole * depth].view(-1, depth, PANEL).transpose(1, 2))
    units[whole:].copy_(panels[whole * depth :].view(depth, rows - whole).T)
    return matrix[:n, :k].contiguous()


def _rows(n: int, dtype: torch.dtype) -> int:
    return -(-n // PANEL) * PANEL if dtype == torch.float32 else n


def _depth(k: int, dtype: torch.dtype) -> int:
    step = 4 // dtype.itemsize
    return -(-k // step) * step
