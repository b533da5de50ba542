"""Signals that stop a run."""

import os
import signal
import threading

import pytest

from training.stopping import stoppable


def test_sigterm_interrupts_once_and_is_set_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        os.kill(os.getpid(), signal.SIGTERM)  # while it cleans up
    assert stop.status == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_not_stopped_by_it_was_by_the_keyboard() -> None:
    with stoppable() as stop:
        pass
    assert stop.status == 130


def test_threads_leave_signals_alone() -> None:
    found = []

    def work() -> None:
        with stoppable():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
