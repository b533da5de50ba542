"""`pointers.json`: which versions an adapter has, and what its aliases mean. Replaced whole, in one atomic step."""

import json
import os
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from adapters.disk import sync_folder
from adapters.errors import AdapterFormatError, AdapterNotFoundError
from adapters.files import read_json_object
from adapters.names import LATEST, AdapterRef

POINTERS_FILE = "pointers.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Pointers:
    """``versions`` are digests in the order of their publishing; a digest that is not among them does not exist."""

    versions: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    served: bool = True

    def with_version(self, digest: str, aliases: tuple[str, ...]) -> "Pointers":
        """Add a version, and point the aliases at it."""
        versions = self.versions if digest in self.versions else (*self.versions, digest)
        return replace(self, versions=versions, aliases=self.aliases | dict.fromkeys(aliases, digest))

    def without_version(self, digest: str) -> "Pointers":
        """Remove a version; `latest` falls back to the one published before it."""
        versions = tuple(version for version in self.versions if version != digest)
        aliases = {alias: version for alias, version in self.aliases.items() if version != digest}
        if self.aliases.get(LATEST) == digest and versions:
            aliases[LATEST] = versions[-1]
        return replace(self, versions=versions, aliases=aliases)


def read_pointers(folder: Path) -> Pointers | None:
    """The pointers in an adapter's folder; None where there are none."""
    if not (folder / POINTERS_FILE).exists():
        return None
    try:
        raw = read_json_object(folder / POINTERS_FILE)
        if raw.pop("format") != _FORMAT:
            raise ValueError("another format")
        pointers = Pointers(tuple(raw.pop("versions")), dict(raw.pop("aliases")), bool(raw.pop("served")))
    except (AdapterFormatError, KeyError, ValueError, TypeError) as error:
        message = f"{POINTERS_FILE} of {folder.parent.name}/{folder.name} is broken ({error}): restore it from a backup"
        raise AdapterFormatError(message, key=POINTERS_FILE) from error
    return pointers


def write_pointers(folder: Path, pointers: Pointers, staging: Path) -> None:
    """Write aside, sync, rename, sync: a reader sees the old pointers or the new ones."""
    aside = staging / f"pointers-{uuid.uuid4().hex}"
    with aside.open("x", encoding="utf-8") as stream:
        json.dump({"format": _FORMAT, **asdict(pointers)}, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(folder / POINTERS_FILE)
    sync_folder(folder)


def find_version(ref: AdapterRef, pointers: Pointers) -> str:
    """The digest that a reference means."""
    if ref.version is not None:
        found = [digest for digest in pointers.versions if digest.startswith(ref.version)]
        if len(found) == 1:
            return found[0]
        what = "has no version" if not found else "has several versions"
        message = f"{ref.name} {what} that begin{'s' if not found else ''} with {ref.version}"
        raise AdapterNotFoundError(message, key="version")
    alias = ref.alias or LATEST
    if alias not in pointers.aliases:
        raise AdapterNotFoundError(f"{ref.name} has no alias {alias!r}", key="alias")
    return pointers.aliases[alias]
