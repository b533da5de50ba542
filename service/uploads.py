"""Where uploads wait while they arrive: a folder of their own beside the store's, of which nothing stays."""

import asyncio
import contextlib
import shutil
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from adapters.disk import locked, make_folder
from service.errors import EngineUnavailableError, QueueFullError

AT_ONCE = 4
"""Uploads of one tenant that may be under way, so that nobody fills the disk or stands before all others."""
_FOLDER, _LOCKS = ".uploads", ".locks"
_REMOVING_S, _AGAIN_S = 5.0, 0.05
P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run something in a thread. Who is cancelled meanwhile waits for its end: what it has in hand is removed next."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        running.exception()  # nobody waits for it any more
        raise asyncio.CancelledError
    return running.result()


class Uploads:
    """The uploads of one server.

    Args:
        store: The store's folder; made when something is uploaded.
    """

    def __init__(self, store: Path) -> None:
        self._root = store.resolve() / _FOLDER
        self._locks = store.resolve() / _LOCKS
        self._under_way: Counter[str | None] = Counter()
        self._tasks: set[asyncio.Task[object]] = set()
        self._ended = False

    def clean(self) -> None:
        """Remove what a server left behind that was killed. Does nothing while another one takes an upload."""
        if not self._root.is_dir():
            return
        make_folder(self._locks)
        with contextlib.suppress(BlockingIOError), locked(self._lock, wait=False):
            for left in self._root.iterdir():
                shutil.rmtree(left, ignore_errors=True)

    def end_all(self) -> None:
        """Give up what is under way, as the server stops; what would hold it up otherwise is not yet all there."""
        self._ended = True
        for task in self._tasks:
            task.cancel()

    @asynccontextmanager
    async def folder(self, tenant: str | None) -> AsyncIterator[Path]:
        """A new folder for an upload, gone at the end whatever happens.

        Raises:
            QueueFullError: As many of the tenant's uploads as allowed are under way.
            EngineUnavailableError: The server stopped in the middle of it.
        """
        if self._under_way[tenant] >= AT_ONCE:
            raise QueueFullError(f"{AT_ONCE} uploads are under way and at most so many may be.", retry_after=5)
        self._check_open()
        task = asyncio.current_task()
        assert task is not None, "an upload is received by a task"
        self._under_way[tenant] += 1
        self._tasks.add(task)
        made = self._root / uuid.uuid4().hex
        try:
            with contextlib.ExitStack() as stack:
                try:
                    await in_thread(self._make, made, stack)
                    yield made
                finally:
                    # A gigabyte takes a while to be removed, and others are being answered meanwhile.
                    await in_thread(_remove, made)
        except asyncio.CancelledError:
            if self._ended and not task.uncancel():
                raise _stopping() from None
            raise
        finally:
            self._tasks.discard(task)
            self._under_way[tenant] -= 1

    def _check_open(self) -> None:
        if self._ended:
            raise _stopping()

    def _make(self, folder: Path, stack: contextlib.ExitStack) -> None:
        make_folder(self._root)
        make_folder(self._locks)
        # Shared, so that what is arriving is not taken for what a dead server left.
        stack.enter_context(locked(self._lock, shared=True))
        folder.mkdir()

    @property
    def _lock(self) -> Path:
        return self._locks / "uploads"


def _stopping() -> EngineUnavailableError:
    return EngineUnavailableError("The server stops: send the upload again.", retry_after=1)


def _remove(folder: Path) -> None:
    """Remove a folder, also one that the engine process, which has not heard yet, is still writing into."""
    end = time.monotonic() + _REMOVING_S
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > end:
            return
        time.sleep(_AGAIN_S)
