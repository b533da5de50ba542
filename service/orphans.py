"""No process outlives the one that started the server."""

import contextlib
import os
import signal
import threading
import time

CHECK_S = 0.5


def exit_with(parent: int, manager: int) -> None:
    """End this process, and the queues' manager with it, once ``parent`` is no longer our parent.

    A thread watches, because a main process that is killed has no time to say so. The manager holds no state of its
    own and does not notice; whoever sees the death first ends it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(CHECK_S)
        with contextlib.suppress(ProcessLookupError):
            os.kill(manager, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()
