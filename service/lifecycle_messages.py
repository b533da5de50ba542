"""What the HTTP process asks the engine process about the versions of adapters, and what it answers.

Whether the caller may speak of the adapter at all has been decided by then. ``by`` names the caller's key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from adapters.names import AdapterName
from service.gate.messages import GateQuestion
from service.gate.verdict import Verdict


@dataclass(frozen=True, slots=True)
class PublishUpload:
    """Check the files in a folder, and publish them unless it is a dry run."""

    adapter: AdapterName
    by: str
    folder: str
    """An adapter's files and nothing else; the asker's to remove."""
    aliases: tuple[str, ...]
    template: str | None
    """The name of a template, or a Jinja text."""
    labels: tuple[str, ...] | None
    multi_label: bool
    score: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class ListAdapters:
    """Ask for all adapters, or for a tenant's own."""

    tenant: str | None


@dataclass(frozen=True, slots=True)
class ShowAdapter:
    """Ask for an adapter with its versions."""

    adapter: AdapterName


@dataclass(frozen=True, slots=True)
class Promote:
    """Point an alias at a version, given by a beginning of its digest."""

    adapter: AdapterName
    by: str
    alias: str
    version: str
    force: bool = False
    """Whatever the alias demands."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Point an alias at what it pointed at before."""

    adapter: AdapterName
    by: str
    alias: str


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep a version from being deleted and from leaving memory, or let it go."""

    adapter: AdapterName
    by: str
    version: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one version, one alias, or the adapter with all of them if neither is named."""

    adapter: AdapterName
    by: str
    version: str | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """Ask for the newest events of the audit log; None does not narrow."""

    tenant: str | None
    name: str | None
    before: int | None
    most: int


LifecycleQuestion = (
    PublishUpload | ListAdapters | ShowAdapter | Promote | RollBack | Pin | Delete | ReadEvents | GateQuestion
)
CHANGING = (PublishUpload, Promote, RollBack, Pin, Delete)

# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter, as a list tells of it."""

    name: AdapterName
    versions: int
    aliases: Mapping[str, str]
    served: bool


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """What a version's files say of it."""

    task: str
    rank: int
    labels: tuple[str, ...] | None
    base: str
    size: int
    """Bytes of the files that make its digest."""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version; what is None is not known of it, as it was not published or its files are damaged."""

    name: AdapterName
    digest: str
    aliases: tuple[str, ...]
    files: VersionFiles | None
    number: int | None = None
    published_at: datetime | None = None
    published_by: str | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """What became of an upload."""

    version: VersionInfo
    new: bool
    """Whether it was not there before."""
    verdicts: tuple[Verdict, ...] = ()
    """What the aliases found that demand something; those that it did not pass stay where they were."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Where an alias points now, and where it did before, if anywhere."""

    alias: str
    digest: str
    before: str | None
    verdict: Verdict | None = None
    """What was found, if the alias demands something."""
