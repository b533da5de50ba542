"""Watches the processes of a server from the main one: a dead engine is replaced, any other death ends it all."""

import logging
import multiprocessing.connection
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 30.0
HEALTHY_AFTER_S = 60.0
"""An engine process that lived so long starts the delays anew."""

logger = logging.getLogger(__name__)


class Backoff:
    """Delays between restarts: doubling while processes die young."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._born = clock()

    def delay(self) -> float:
        """Note a death; returns how long to wait before the next start."""
        if self._clock() - self._born >= HEALTHY_AFTER_S:
            self._failures = 0
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0**self._failures)
        self._failures += 1
        return delay

    def started(self) -> None:
        """Note a start."""
        self._born = self._clock()


class Supervisor:
    """A thread in the main process.

    Args:
        engine: Returns the engine process that is meant to live.
        vital: The processes that nothing can replace.
        replace: Starts a fresh engine process in place of the dead one.
        mourn: Tells the HTTP process that the engine is gone.
        give_up: Ends the server; called once, if a vital process dies.
    """

    def __init__(
        self,
        engine: Callable[[], Any],
        vital: Iterable[Any],
        replace: Callable[[], None],
        mourn: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._vital = [process.sentinel for process in vital]
        self._replace = replace
        self._mourn = mourn
        self._give_up = give_up
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._backoff = Backoff()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="supervisor", daemon=True).start()

    def stop(self) -> None:
        """Stop watching; when this returns, no process will be started any more."""
        self._stopping.set()
        with self._starting:
            pass

    def _watch(self) -> None:
        while not self._stopping.is_set():
            engine = self._engine().sentinel
            dead = multiprocessing.connection.wait([engine, *self._vital], timeout=1.0)
            if self._stopping.is_set() or not dead:
                continue
            # When the queues' manager dies, the engine follows at once: look for the vital ones first.
            if any(sentinel in dead for sentinel in self._vital):
                logger.error("a process that cannot be replaced died; the server ends")
                self._give_up()
                return
            self._restart()

    def _restart(self) -> None:
        self._mourn()
        delay = self._backoff.delay()
        logger.error("the engine process died; a fresh one starts in %.2f s", delay)
        if self._stopping.wait(delay):
            return
        with self._starting:
            if not self._stopping.is_set():
                self._replace()
                self._backoff.started()
