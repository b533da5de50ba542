"""Writers for the store's tests, in processes of their own.

They are forked from a server that has imported everything already, so that they begin to write at once.
"""

import contextlib
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import sqlalchemy.event
import transformers

from adapters.base import BaseSource
from adapters.database.database import Database
from adapters.errors import AdapterError
from adapters.names import AdapterName
from adapters.store import Store

CRASHED = 77
_FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.utime"}
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
# transformers imports its parts on first use; the server shall have them.
_PRELOADED = (transformers.AutoTokenizer, transformers.AutoModelForCausalLM, transformers.GPT2LMHeadModel)


def process(target: Callable[..., None], *args: Any) -> ForkServerProcess:
    """A process that will run ``target``."""
    return _CONTEXT.Process(target=target, args=args)


def store_at(root: Path, url: str | None = None) -> Store:
    """The store in a folder, with its database elsewhere if there is a URL."""
    return Store(root, Database(url) if url is not None else None)


def publish_all(
    root: Path, base: BaseSource, folders: Sequence[Path], name: AdapterName, start: int, url: str | None = None
) -> None:
    """Publish each folder once, beginning with the one at ``start``."""
    for index in range(len(folders)):
        store_at(root, url).publish(folders[(start + index) % len(folders)], name, base)


def set_aliases(root: Path, name: AdapterName, digest: str, aliases: Sequence[str]) -> None:
    """Point many aliases at one version."""
    for alias in aliases:
        Store(root).set_alias(name, alias, digest)


def crash_at(
    step: int, root: Path, base: BaseSource, change: str, folder: Path, name: AdapterName, digest: str
) -> None:
    """Make one change, and drop dead at the n-th thing that it does to the store; no clean-up runs.

    A thing is one that changes files, or a statement to the database, the end of a transaction included.
    """
    left = step

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(CRASHED)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        reads = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _FILE_EVENTS and not reads and str(root) in repr(args):
            count()

    store = Store(root)
    store.names()
    base.tokenizer()
    sys.addaudithook(watch)
    assert store.database._engines is not None
    for moment in ("before_cursor_execute", "commit"):
        sqlalchemy.event.listen(store.database._engines.writing, moment, count)
    if change == "publish":
        store.publish(folder, name, base, aliases=("latest", "canary"))
    elif change == "delete version":
        store.delete_version(name, digest)
    elif change == "delete":
        store.delete(name)
    else:
        store.set_alias(name, "stable", digest)


def write_for_ever(
    root: Path,
    base: BaseSource,
    folders: Sequence[Path],
    names: Sequence[AdapterName],
    seed: int,
    url: str | None = None,
) -> None:
    """Publish, move aliases and delete, in any order, until killed."""
    store, chance = store_at(root, url), random.Random(seed)
    while True:
        name = chance.choice(names)
        # Choosing what has just been deleted is an error, and no concern of this test.
        with contextlib.suppress(AdapterError, IndexError):
            step = chance.random()
            if step < 0.5:
                store.publish(chance.choice(folders), name, base, aliases=("latest", chance.choice("abc")))
            elif step < 0.7:
                store.set_alias(name, chance.choice("abc"), chance.choice(store.versions(name)).digest)
            elif step < 0.9:
                store.delete_alias(name, chance.choice("abc"))
            elif step < 0.98:
                store.delete_version(name, chance.choice(store.versions(name)).digest)
            else:
                store.delete(name)
