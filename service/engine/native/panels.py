"""The layout in which the CPU kernels read matrices: panels of 16 rows, so that products stream through memory.

See the head of kernels.c. A panel holds ``[k][16]`` values, the last one padded with zeros; or, in bfloat16,
``[k / 2][width][2]``, the last one narrower.
"""

import torch
from torch import Tensor

PANEL = 16


def packed_size(n: int, k: int, dtype: torch.dtype) -> int:
    """Values that a matrix ``[n, k]`` takes once packed."""
    return _rows(n, dtype) * _depth(k, dtype)


def pack(matrix: Tensor, into: Tensor | None = None) -> Tensor:
    """``[n, k]`` to a flat tensor of panels.

    Args:
        matrix: The matrix, in float32 or bfloat16.
        into: Where to put the panels, ``[packed_size]``; a new tensor when None.
    """
    k = matrix.shape[1]
    n, depth = _rows(len(matrix), matrix.dtype), _depth(k, matrix.dtype)
    if (n, depth) != matrix.shape:
        matrix = torch.nn.functional.pad(matrix, (0, depth - k, 0, n - len(matrix)))
    flat = matrix.new_empty(n * depth) if into is None else into
    whole = n // PANEL * PANEL
    _panels(flat[: whole * depth], PANEL, depth).copy_(_split(matrix[:whole], PANEL, depth))
    if n > whole:
        _panels(flat[whole * depth :], n - whole, depth).copy_(_split(matrix[whole:], n - whole, depth))
    return flat


def unpack(flat: Tensor, n: int, k: int) -> Tensor:
    """Undo :func:`pack`."""
    rows, n, depth = n, _rows(n, flat.dtype), _depth(k, flat.dtype)
    whole = n // PANEL * PANEL
    matrix = flat.new_empty(n, depth)
    _split(matrix[:whole], PANEL, depth).copy_(_panels(flat[: whole * depth], PANEL, depth))
    if n > whole:
        _split(matrix[whole:], n - whole, depth).copy_(_panels(flat[whole * depth :], n - whole, depth))
    return matrix[:rows, :k].contiguous()


def _step(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.bfloat16 else 1


def _rows(n: int, dtype: torch.dtype) -> int:
    return n if dtype == torch.bfloat16 else -(-n // PANEL) * PANEL


def _depth(k: int, dtype: torch.dtype) -> int:
    step = _step(dtype)
    return -(-k // step) * step


def _panels(flat: Tensor, width: int, depth: int) -> Tensor:
    """``[panels, depth / step, width, step]``: as it lies in memory."""
    step = _step(flat.dtype)
    return flat.view(-1, depth // step, width, step)


def _split(matrix: Tensor, width: int, depth: int) -> Tensor:
    """The same values of the matrix, in the same order."""
    step = _step(matrix.dtype)
    return matrix.view(-1, width, depth // step, step).transpose(1, 2)
