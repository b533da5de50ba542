"""The versions of adapters as the engine process answers for them: published, listed, moved, pinned, deleted."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters.adapter import FILES
from adapters.audit import AuditEvent, read_events
from adapters.base import BaseSource
from adapters.cache import HostCache
from adapters.config import read_lora_config
from adapters.errors import AdapterError, AdapterNotFoundError
from adapters.listing import VersionRow, list_adapters, list_versions, pinned_digests
from adapters.manifest import Manifest, read_manifest
from adapters.names import AdapterName
from adapters.staging import Stated, stage
from adapters.store import Store
from adapters.templates import PromptTemplate
from service.errors import AdapterUnknownError, InvalidRequestError
from service.gate.keeper import Gatekeeper
from service.gate.messages import CheckVersion, GateQuestion, RemoveGate, SetGate, ShowGates
from service.lifecycle_messages import (
    AdapterInfo,
    Delete,
    LifecycleQuestion,
    ListAdapters,
    Moved,
    Pin,
    Promote,
    Published,
    PublishUpload,
    ReadEvents,
    RollBack,
    ShowAdapter,
    VersionFiles,
    VersionInfo,
)
from service.publishing import check_rank, rank_of, room_on_disk, telling_nothing

_TEMPLATES = ("alpaca", "chat", "plain")


class Lifecycle:
    """What becomes of adapters in a store; any thread may ask.

    Args:
        base: What uploads are checked against.
        store: Where versions are.
        cache: Adapters in host memory; a deleted one is dropped from it.
        gatekeeper: Checks versions for the aliases that demand something.
        max_lora_rank: Largest rank that a slot can hold.
        delete_grace: Seconds for which the bytes of what is deleted stay.
    """

    def __init__(
        self,
        base: BaseSource,
        store: Store,
        cache: HostCache,
        gatekeeper: Gatekeeper,
        *,
        max_lora_rank: int,
        delete_grace: float,
    ) -> None:
        self._base = base
        self._store = store
        self._cache = cache
        self.gatekeeper = gatekeeper
        self._max_lora_rank = max_lora_rank
        self._grace = delete_grace
        self._pinned: frozenset[str] = frozenset()

    def ask(self, question: LifecycleQuestion) -> Any:
        """Answer a question.

        Raises:
            AdapterUnknownError: There is no such adapter.
        """
        match question:
            case PublishUpload():
                return self._publish(question)
            case ListAdapters(tenant):
                return self._list(tenant)
            case ReadEvents():
                return self._events(question)
        with _known(question.adapter):
            return self._ask_about(question)

    def is_pinned(self, digest: str) -> bool:
        """Whether a version is to stay in host memory once it was read, as of the last `keep_house`."""
        return digest in self._pinned

    def keep_house(self) -> None:
        """See what is pinned, and remove the bytes of what was deleted once their time has come; to be called often."""
        rows = self._store.rows()
        self._pinned = frozenset() if rows is None else pinned_digests(rows)
        self._store.purge()

    # Questions

    def _ask_about(self, question: ShowAdapter | Promote | RollBack | Pin | Delete | GateQuestion) -> Any:
        name = question.adapter
        match question:
            case ShowAdapter():
                return self._show(name)
            case Promote():
                return self._promote(question)
            case SetGate() | RemoveGate() | ShowGates() | CheckVersion():
                return self.gatekeeper.ask(question)
            case RollBack(by=by, alias=alias):
                before = self._store.aliases(name).get(alias)
                return Moved(alias, self._store.roll_back(name, alias, by=by), before)
            case Pin(by=by, version=version, pinned=pinned):
                digest = self._store.set_pinned(name, version, pinned, by=by)
                self.keep_house()
                return self._version(name, digest)
            case Delete():
                return self._delete(question)

    def _promote(self, promote: Promote) -> Moved:
        name, alias, by = promote.adapter, promote.alias, promote.by
        before = self._store.aliases(name).get(alias)
        verdict = self.gatekeeper.admit(name, alias, promote.version, by=by, force=promote.force)
        # What was checked is what is promoted, whatever else begins with the same digits by now.
        version = promote.version if verdict is None else verdict.digest
        digest = self._store.set_alias(name, alias, version, by=by, admitted=verdict is not None)
        return Moved(alias, digest, before, verdict)

    def _publish(self, upload: PublishUpload) -> Published:
        target, folder = upload.adapter, Path(upload.folder)
        if self._base.id in (str(target), target.name):
            raise InvalidRequestError(f"'{self._base.id}' is the base itself: choose another name.", param="name")
        stated = Stated(_template(upload.template), upload.labels, multi_label=upload.multi_label, score=upload.score)
        rows = self._store.rows()
        there = set() if rows is None else {row.digest for row in list_versions(rows, target)}
        with room_on_disk(), telling_nothing(folder, self._store.root):
            check_rank(folder, self._max_lora_rank, param="config")
            if upload.dry_run:
                found = self._checked(target, folder, stated, upload.aliases)
                return Published(found, found.digest not in there)
            version = self._store.publish(
                folder,
                target,
                self._base,
                aliases=upload.aliases,
                template=stated.template,
                labels=stated.labels,
                multi_label=stated.multi_label,
                score=stated.score,
                by=upload.by,
            )
        verdicts = self.gatekeeper.try_all(target, upload.aliases, version.digest, by=upload.by)
        return Published(self._version(target, version.digest), version.digest not in there, verdicts)

    def _checked(self, name: AdapterName, folder: Path, stated: Stated, aliases: tuple[str, ...]) -> VersionInfo:
        """What would be published; checked beside the upload, in a folder that goes with it."""
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            digest = stage(folder, Path(beside), self._base, stated).digest
            return VersionInfo(name, digest, aliases, _read_files(Path(beside)))

    def _list(self, tenant: str | None) -> list[AdapterInfo]:
        rows = self._store.rows()
        found = [] if rows is None else list_adapters(rows, tenant)
        return [AdapterInfo(row.name, row.versions, row.aliases, row.served) for row in found]

    def _show(self, name: AdapterName) -> tuple[AdapterInfo, list[VersionInfo]]:
        aliases, served = self._store.aliases(name), self._store.is_served(name)
        versions = [self._describe(name, row, aliases) for row in self._rows(name)]
        return AdapterInfo(name, len(versions), aliases, served), versions

    def _version(self, name: AdapterName, digest: str) -> VersionInfo:
        aliases = self._store.aliases(name)
        found = [row for row in self._rows(name) if row.digest == digest]
        if not found:
            raise AdapterNotFoundError(f"{name}@{digest[:12]} has just been deleted", key="version")
        return self._describe(name, found[0], aliases)

    def _rows(self, name: AdapterName) -> list[VersionRow]:
        rows = self._store.rows()
        return [] if rows is None else list_versions(rows, name)

    def _describe(self, name: AdapterName, row: VersionRow, aliases: dict[str, str]) -> VersionInfo:
        pointing = tuple(sorted(alias for alias, digest in aliases.items() if digest == row.digest))
        return VersionInfo(
            name,
            row.digest,
            pointing,
            _found_files(self._store.folder_of(name, row.digest)),
            number=row.number,
            published_at=row.published_at,
            published_by=row.published_by,
            pinned=row.pinned,
        )

    def _delete(self, question: Delete) -> float:
        """Delete; returns for how many seconds the bytes stay."""
        name, by = question.adapter, question.by
        if question.alias is not None:
            self._store.delete_alias(name, question.alias, by=by)
            return 0.0
        before = {row.digest for row in self._rows(name)}
        if question.version is not None:
            self._store.delete_version(name, question.version, grace=self._grace, by=by)
        else:
            self._store.delete(name, grace=self._grace, by=by)
        for digest in before - {row.digest for row in self._rows(name)}:
            self._cache.discard(name, digest)
        return self._grace

    def _events(self, question: ReadEvents) -> list[AuditEvent]:
        rows = self._store.rows()
        if rows is None:
            return []
        return read_events(rows, tenant=question.tenant, name=question.name, before=question.before, most=question.most)


@contextmanager
def _known(name: AdapterName) -> Iterator[None]:
    """Say of an adapter that is not there what is said of one that the caller may not know of."""
    try:
        yield
    except AdapterNotFoundError as error:
        if error.key == "name":
            raise AdapterUnknownError(str(name)) from error
        raise


def _template(given: str | None) -> PromptTemplate | None:
    """A template by its name, or a Jinja text."""
    if given is None:
        return None
    is_text = given not in _TEMPLATES and ("{{" in given or "{%" in given)
    return PromptTemplate.from_text(given) if is_text else PromptTemplate.named(given)


def _read_files(folder: Path) -> VersionFiles:
    manifest: Manifest = read_manifest(folder)
    return VersionFiles(
        task=manifest.task,
        rank=rank_of(read_lora_config(folder)),
        labels=manifest.labels,
        base=manifest.base.id,
        size=sum((folder / name).stat().st_size for name in FILES),
    )


def _found_files(folder: Path) -> VersionFiles | None:
    """The same, unless the files are damaged: a list tells of the other versions all the same."""
    try:
        return _read_files(folder)
    except (AdapterError, OSError):
        return None
