"""The layout in which the CPU kernels read matrices: panels of 16 rows, so that products stream through memory.

See the head of kernels.c. The kernels read units of four bytes, one float32 or neighbouring bfloat16 or int8. A panel
holds ``[depth][16]`` of them; the last one may be narrower, but for a float32 matrix, which is padded.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from adapters.native import library
from service.engine.native.memory import Arena

PANEL = 16


def pack(matrix: Tensor, arena: Arena | None = None) -> Tensor:
    """``[n, k]``, in float32, bfloat16 or int8, to a flat tensor of panels, which may be one of an arena's."""
    return pack_all([matrix], matrix.new_empty if arena is None else partial(arena.take, dtype=matrix.dtype))[0]


def pack_all(matrices: Sequence[Tensor], allocate: Callable[[int], Tensor]) -> tuple[Tensor, ...]:
    """Pack many matrices in one call of the kernel, which leaves the interpreter to others meanwhile.

    Args:
        matrices: ``[n, k]`` each, of one type.
        allocate: Makes a flat tensor of so many values of that type, in which the panels of all lie in their order.

    Returns:
        The panels of each, flat.
    """
    whole = [_padded(matrix).contiguous() for matrix in matrices]
    shapes = np.array([matrix.shape for matrix in whole], dtype=np.int64)
    sizes = shapes.prod(axis=1)
    flat = allocate(int(sizes.sum()))
    width = flat.itemsize
    items = np.empty((len(whole), 4), dtype=np.int64)  # kernels.c: Packing
    items[:, 0] = [matrix.data_ptr() for matrix in whole]
    items[:, 1] = shapes[:, 0]
    items[:, 2] = shapes[:, 1] * width // 4
    items[:, 3] = flat.data_ptr() + (sizes.cumsum() - sizes) * width
    library.function("tenora_pack")(items.ctypes.data, len(items))
    return torch.split(flat, sizes.tolist())


def _padded(matrix: Tensor) -> Tensor:
    n, k = matrix.shape
    rows, columns = _rows(n, matrix.dtype), _depth(k, matrix.dtype)
    return matrix if (rows, columns) == (n, k) else torch.nn.functional.pad(matrix, (0, columns - k, 0, rows - n))


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
