"""What the HTTP process asks the engine process about splits. Whether the caller may is decided by then."""

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.names import AdapterName
from adapters.splits import Rules, Split
from service.figures import Row


@dataclass(frozen=True, slots=True)
class SetSplit:
    """Split an alias's requests by these rules, versions named by beginnings of their digests."""

    adapter: AdapterName
    by: str
    """Names the caller's key in the audit log."""
    alias: str
    rules: Rules


@dataclass(frozen=True, slots=True)
class ShowSplit:
    """Ask for an alias's rules and what came of them."""

    adapter: AdapterName
    alias: str


@dataclass(frozen=True, slots=True)
class EndSplit:
    """Send all of an alias's requests to its own version again."""

    adapter: AdapterName
    by: str
    alias: str


SplitQuestion = SetSplit | ShowSplit | EndSplit


@dataclass(frozen=True, slots=True)
class Shown:
    """The answer to all but the last: a split, and its versions side by side."""

    split: Split
    rows: Mapping[tuple[str, bool], Row]
    """By digest, and whether it ran as a shadow."""
