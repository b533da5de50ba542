"""Events on their way from the engine process to the HTTP process."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable

from service.messages import WorkerEvent

POISONED_EXIT = 70
"""Exit code of an engine process whose state cannot be trusted."""

logger = logging.getLogger(__name__)


class Outbox:
    """Events on their way to the HTTP process; a thread of its own sends what has gathered as one message."""

    def __init__(self, send: Callable[[list[WorkerEvent]], None]) -> None:
        self._send = send
        self._events: deque[WorkerEvent] = deque()
        self._filled = threading.Event()
        self._sending = threading.Lock()

    def start(self) -> None:
        """Begin to send."""
        threading.Thread(target=self._run, name="sender", daemon=True).start()

    def put(self, *events: WorkerEvent, urgent: bool = True) -> None:
        """Add events, in order; may be called from any thread. What is not urgent goes with the next that is."""
        self._events.extend(events)
        if urgent:
            self._filled.set()

    def flush(self) -> None:
        """Send what is there, in the calling thread."""
        with self._sending:
            batch = [self._events.popleft() for _ in range(len(self._events))]
            if batch:
                self._send(batch)

    def _run(self) -> None:
        while True:
            self._filled.wait()
            self._filled.clear()
            try:
                self.flush()
            except (EOFError, OSError):  # the queue's owner is gone, and so is the reason to live
                os._exit(0)
            except Exception:  # a process that cannot report would leave its clients waiting
                logger.exception("events could not be sent; the engine process ends")
                os._exit(POISONED_EXIT)
