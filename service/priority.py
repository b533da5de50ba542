"""Threads that give way: reading an adapter must not slow down those who are being answered."""

import ctypes
import os
import sys
import threading

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

NICE = 19
"""The least there is: a core that a step wants is the step's, and all of it is theirs where nobody else wants it."""


def give_way() -> None:
    """Lower the priority of the calling thread, where threads have one of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def keep_freed_memory() -> None:
    """Have the C library reuse buffers of up to 64 MB rather than hand them back and ask for them anew.

    Fresh pages are the larger part of what reading an adapter costs: each is faulted in and cleared.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # only glibc has it
            mallopt(_M_MMAP_THRESHOLD, 64 << 20)
            mallopt(_M_TRIM_THRESHOLD, 256 << 20)
