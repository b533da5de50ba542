"""Versions that lie in a store's folder and that its database, being empty, does not know.

So a store survives the loss of its database, and one from the time before there was one is taken over: its aliases
are in `pointers.json` then. Otherwise the newest version becomes `latest`.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from adapters.errors import AdapterError
from adapters.manifest import read_manifest
from adapters.names import LATEST, AdapterName, check_part
from adapters.pointers import Pointers

_POINTERS_FILE = "pointers.json"


def find_adopted(root: Path) -> Iterator[tuple[AdapterName, Pointers]]:
    """Every adapter in a store's folder with at least one version whose manifest can be read."""
    for tenant in _folders(root):
        for folder in _folders(tenant):
            dates = dict(_dated(folder / "versions"))
            digests = sorted(dates, key=dates.__getitem__)
            pointers = _pointers(folder, digests)
            if pointers.versions:
                yield AdapterName(tenant.name, folder.name), pointers


def forget_pointers(folder: Path) -> None:
    """Remove what the database says from now on."""
    (folder / _POINTERS_FILE).unlink(missing_ok=True)


def _dated(versions: Path) -> Iterator[tuple[str, str]]:
    """(digest, when it was made) of each version."""
    for folder in _folders(versions):
        with contextlib.suppress(AdapterError):
            yield folder.name, read_manifest(folder).created


def _pointers(folder: Path, digests: list[str]) -> Pointers:
    """What `pointers.json` says of these versions, as far as it can be read; without it, the newest is `latest`."""
    try:
        raw = json.loads((folder / _POINTERS_FILE).read_text("utf-8"))
        ordered = [digest for digest in raw["versions"] if digest in digests]
        aliases = {alias: digest for alias, digest in raw["aliases"].items() if digest in ordered}
        return Pointers(tuple(ordered), aliases, bool(raw["served"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Pointers(tuple(digests), {LATEST: digests[-1]} if digests else {})


def _folders(folder: Path) -> list[Path]:
    """Sub-folders that can be names (so neither hidden ones nor links), sorted."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _can_be_name(path) and path.is_dir() and not path.is_symlink())


def _can_be_name(path: Path) -> bool:
    try:
        check_part(path.name, "name")
    except AdapterError:
        return False
    return True
