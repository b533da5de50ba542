"""What a process does with memory: freed buffers are kept, and what stays for good is not searched for garbage."""

import ctypes
import gc
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


def start_collecting() -> None:
    """End a start that began with ``gc.disable()``: what there is by now stays, and is never searched again.

    The modules of torch and transformers are a million objects. A collection that goes through them takes a quarter
    of a second, several of them a fifth of the time that a start takes, and a later one would hold up a step. A
    process that collects already keeps to it: what it holds may not be meant to stay.
    """
    if gc.isenabled():
        return
    gc.collect()
    gc.freeze()
    gc.enable()
