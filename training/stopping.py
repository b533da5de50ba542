"""A run that is stopped from outside: by ^C, or by SIGTERM, by which machines stop what they run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Stop:
    """Which signal stopped a run, if one did."""

    number: int = signal.SIGINT

    @property
    def status(self) -> int:
        """What a process ends with that the signal stopped."""
        return 128 + self.number


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Have SIGTERM do what ^C does, once: another one is not to disturb what is cleaned up then."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # where signals never arrive
        yield stop
        return

    def interrupt(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.number = number
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
