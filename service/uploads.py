"""Where uploads wait while they arrive: a folder of their own beside the store's, of which nothing stays."""

import asyncio
import contextlib
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from adapters.disk import locked, make_folder
from service.errors import QueueFullError

AT_ONCE = 4
"""Uploads of one tenant that may be under way, so that nobody fills the disk or stands before all others."""
_FOLDER, _LOCKS = ".uploads", ".locks"


class Uploads:
    """The uploads of one server.

    Args:
        store: The store's folder; made when something is uploaded.
    """

    def __init__(self, store: Path) -> None:
        self._root = store.resolve() / _FOLDER
        self._locks = store.resolve() / _LOCKS
        self._under_way: Counter[str | None] = Counter()

    def clean(self) -> None:
        """Remove what a server left behind that was killed. Does nothing while another one takes an upload."""
        if not self._root.is_dir():
            return
        make_folder(self._locks)
        with contextlib.suppress(BlockingIOError), locked(self._lock, wait=False):
            for left in self._root.iterdir():
                shutil.rmtree(left, ignore_errors=True)

    @asynccontextmanager
    async def folder(self, tenant: str | None) -> AsyncIterator[Path]:
        """A new folder for an upload, gone at the end whatever happens.

        Raises:
            QueueFullError: As many of the tenant's uploads as allowed are under way.
        """
        if self._under_way[tenant] >= AT_ONCE:
            raise QueueFullError(f"{AT_ONCE} uploads are under way and at most so many may be.", retry_after=5)
        self._under_way[tenant] += 1
        made = self._root / uuid.uuid4().hex
        try:
            with contextlib.ExitStack() as stack:
                await asyncio.to_thread(self._make, made, stack)
                try:
                    yield made
                finally:
                    # A gigabyte takes a while to be removed, and others are being answered meanwhile.
                    await asyncio.shield(asyncio.to_thread(shutil.rmtree, made, ignore_errors=True))
        finally:
            self._under_way[tenant] -= 1

    def _make(self, folder: Path, stack: contextlib.ExitStack) -> None:
        make_folder(self._root)
        make_folder(self._locks)
        # Shared, so that what is arriving is not taken for what a dead server left.
        stack.enter_context(locked(self._lock, shared=True))
        folder.mkdir()

    @property
    def _lock(self) -> Path:
        return self._locks / "uploads"
