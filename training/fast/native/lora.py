"""LoRA's two narrow products by the compiled kernels, in one pass over their input and output."""

import ctypes

import torch
from torch import Tensor

from adapters.native import library


def can_add(x: Tensor, down: Tensor, up: Tensor, y: Tensor) -> bool:
    """Whether the kernels compute :func:`add_lora` of these."""
    return (
        x.dtype == y.dtype == torch.bfloat16
        and down.dtype == up.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[1] % 2 == 0
        and y.is_contiguous()
        and library.supports(torch.bfloat16)
    )


def add_lora(x: Tensor, down: Tensor, up: Tensor, scale: float, y: Tensor, *, scale_first: bool = False) -> Tensor:
    """``y += (x downᵀ) (scale · up)ᵀ`` in place.

    Args:
        x: ``[n, in]`` bfloat16.
        down: ``[rank, in]`` float32, which is rounded here; any strides.
        up: ``[out, rank]``, the same.
        y: ``[n, out]`` bfloat16, contiguous.
        scale_first: Scale ``down`` instead.

    Returns:
        What is between both products, ``[n, rank]``.
    """
    x, rank = x.contiguous(), len(down)
    even = rank + rank % 2
    narrow = x.new_empty(len(x), even)
    panels = (x.new_empty(even * down.shape[1]), x.new_empty(even * len(up)))
    call = library.Lora(
        library.Matrix.of(down), library.Matrix.of(up), len(x), scale,
        *(part.data_ptr() for part in (x, narrow, y, *panels)),
    )  # fmt: skip
    library.function("tenora_lora", torch.bfloat16)(ctypes.addressof(call), scale_first, torch.get_num_threads())
    return narrow[:, :rank]
