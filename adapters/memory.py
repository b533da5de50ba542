"""Freed memory is kept: the next buffers are those of the ones before."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Have the C library reuse buffers of up to 64 MB rather than hand them back and ask for them anew.

    Fresh pages are faulted in and cleared one by one: the larger part of what reading an adapter costs, and a tenth of
    what evaluating a few dozen rows takes.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # only glibc has it
            mallopt(_M_MMAP_THRESHOLD, 64 << 20)
            mallopt(_M_TRIM_THRESHOLD, 256 << 20)
