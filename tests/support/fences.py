"""Tensors whose memory has a fence at one end: the machine stops whoever reads or writes beyond it."""

import ctypes
import mmap

import torch
from torch import Tensor

_PROTECT = ctypes.CDLL(None, use_errno=True).mprotect
_PROTECT.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def fenced(tensor: Tensor, *, before: bool = False) -> Tensor:
    """A copy that begins behind an inaccessible page, or ends in front of one."""
    size = tensor.numel() * tensor.element_size()
    room = max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory alive
    fence = 0 if before else room
    if _PROTECT(whole.data_ptr() + fence, mmap.PAGESIZE, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    first = mmap.PAGESIZE if before else room - size
    copy = whole[first : first + size].view(tensor.dtype).view(tensor.shape)
    copy.copy_(tensor)
    return copy
