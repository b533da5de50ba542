"""Keeps house in the background of the engine process, in a thread that gives way to those who answer."""

import logging
import threading
from collections.abc import Callable

from service.priority import give_way

EVERY_S = 3.0

logger = logging.getLogger(__name__)


class Janitor:
    """Calls a chore every few seconds until the process ends; one that fails is logged and tried again.

    Args:
        chore: What to do.
        every: Seconds between two times.
    """

    def __init__(self, chore: Callable[[], None], every: float = EVERY_S) -> None:
        self._chore = chore
        self._every = every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for a chore that is being done."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        give_way()
        while not self._stopped.is_set():
            try:
                self._chore()
            except Exception as error:
                logger.warning("what was deleted could not be cleared away; it will be tried again: %s", error)
            self._stopped.wait(self._every)
