"""Folders that are there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.disk import sync_folder, sync_tree

MARK = ".writing-"


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``target`` once all in it is on the disk.

    If something goes wrong it is removed, and ``target`` is as it was.
    """
    aside = target.with_name(f"{MARK}{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        sync_tree(aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(target.parent)
