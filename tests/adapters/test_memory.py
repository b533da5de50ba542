"""Memory that was freed is there again, and what stays is not searched for garbage."""

import subprocess
import sys

import pytest

BUFFERS = """
import resource
from adapters.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
def used():
    bytearray(48 << 20)
used()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    used()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", BUFFERS.format(keep=keep)], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's setting is glibc's")
def test_buffers_are_reused() -> None:
    """Pages of 4 KB or of 2 MB: a buffer that is made anew faults in each of its pages."""
    assert faults(keep=True) < 20
    assert faults(keep=False) > 4 * faults(keep=True) + 20


COLLECTOR = """
import gc
from adapters.memory import start_collecting
start_collecting()
print(gc.get_freeze_count(), end=" ")
gc.disable()
kept = [[] for _ in range(1000)]
start_collecting()
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""


def test_what_a_start_has_made_is_set_aside() -> None:
    """And nothing of a process that was collecting all the time."""
    done = subprocess.run([sys.executable, "-c", COLLECTOR], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "0 True True\n"
