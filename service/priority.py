"""Threads that give way: reading an adapter must not slow down those who are being answered."""

import os
import sys
import threading

NICE = 10
"""About a tenth of the weight of the step's threads where both want the same core; all of it where nobody else does."""


def give_way() -> None:
    """Lower the priority of the calling thread, where threads have one of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
