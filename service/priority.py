"""Threads that give way: reading an adapter must not slow down those who are being answered."""

import os
import sys
import threading

NICE = 19
"""The least there is: a core that a step wants is the step's, and all of it is theirs where nobody else wants it."""


def give_way() -> None:
    """Lower the priority of the calling thread, where threads have one of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
