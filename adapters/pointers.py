"""What the names of one adapter mean: its versions, and the aliases that point at them."""

from dataclasses import dataclass, field

from adapters.errors import AdapterNotFoundError
from adapters.names import LATEST, AdapterRef


@dataclass(frozen=True, slots=True)
class Pointers:
    """``versions`` are digests in the order of their publishing; a digest that is not among them does not exist."""

    versions: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    served: bool = True
    pinned: frozenset[str] = frozenset()
    """Versions that may not be deleted, and are kept in memory."""


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
