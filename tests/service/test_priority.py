"""Threads that give way."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.priority import NICE, give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_a_thread_gives_way_and_the_others_do_not() -> None:
    before = niceness()
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        assert pool.submit(niceness).result() == NICE > before
    assert niceness() == before
