"""Immutable versions on disk, and what points to them in a database.

    root/<tenant>/<name>/versions/<digest>/   adapter_config.json, adapter_model.safetensors, tenora.json;
                                              perhaps README.md, report.json, *.png, which are not in the digest
    root/tenora.db                            names, versions, aliases (or a PostgreSQL elsewhere): `registry.py`
    root/.staging/                            what is being written, or thrown away
    root/.locks/                              tells living writers from dead ones

Publishing writes everything aside, syncs it, announces it, renames the folder into place and then makes it live in one
transaction. Until that the version does not exist; after it, it exists whole. Deleting goes the other way round: the
rows first, the bytes later. Readers take no locks.
"""

import functools
import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from adapters.adopt import find_adopted, forget_pointers
from adapters.audit import OPERATOR
from adapters.base import BaseSource
from adapters.database.database import Database, now
from adapters.disk import locked, make_folder, sync_folder, sync_tree
from adapters.errors import AdapterExistsError, AdapterFormatError, AdapterNameError, AdapterNotFoundError, StateError
from adapters.extras import find_extras
from adapters.manifest import Manifest, read_manifest
from adapters.names import LATEST, AdapterName, AdapterRef, check_part
from adapters.pointers import Pointers, find_version
from adapters.registry import Known, Registry
from adapters.staging import Stated, stage
from adapters.templates import PromptTemplate

logger = logging.getLogger(__name__)

_STAGING, _LOCKS, _VERSIONS, _MARKER = ".staging", ".locks", "versions", ".database"


@dataclass(frozen=True, slots=True)
class Version:
    """One published version of an adapter; its files never change."""

    name: AdapterName
    digest: str
    path: Path
    manifest: Manifest

    @property
    def extras(self) -> dict[str, Path]:
        """{file name: path} of its card (README.md), report (report.json) and plots (*.png), as far as there are any.

        The digest says what an adapter does, not what is told about it: these files are the first publisher's.
        """
        return find_extras(self.path)


class Store:
    """A folder of adapters. Any number of processes may read and write it at the same time.

    Args:
        root: The folder; made when something is published into it.
        database: Where names and versions are kept; a file in the folder if it is not said.
    """

    def __init__(self, root: Path, database: Database | None = None) -> None:
        self.root = root
        self.database = database or Database.beside(root)
        self._embedded = self.database.url == Database.beside(root).url
        self._opened = False
        self._registry = Registry(self.database)
        self._staging = root / _STAGING

    # Reading

    def resolve(self, ref: AdapterRef) -> Version:
        """The version that a reference means; without a version or an alias, `latest`."""
        pointers = self._pointers(ref.name)
        if not pointers.served:
            raise AdapterNotFoundError(f"{ref.name} is not served at present: load it again", key="name")
        return self._version(ref.name, find_version(ref, pointers))

    def find(self, ref: AdapterRef) -> Version:
        """The same, whether the adapter is served or not."""
        return self._version(ref.name, find_version(ref, self._pointers(ref.name)))

    def names(self, tenant: str | None = None) -> list[AdapterName]:
        """All adapters, or those of a tenant, sorted; those not served included."""
        if tenant is not None:
            check_part(tenant, "tenant")
        return self._registry.names(tenant) if self._is_there() else []

    def served(self, tenant: str | None = None) -> list[tuple[AdapterName, str]]:
        """(adapter, digest of its `latest`) of all that requests may name, or a tenant's may; sorted."""
        return self._registry.served(tenant) if self._is_there() else []

    def may_use(self, name: AdapterName, tenant: str) -> bool:
        """Whether an adapter is a tenant's own, or was granted to it."""
        return name.tenant == tenant or (self._is_there() and self._registry.is_granted(name, tenant))

    def versions(self, name: AdapterName) -> list[Version]:
        """All versions, in the order of their publishing."""
        return [self._version(name, digest) for digest in self._pointers(name).versions]

    def aliases(self, name: AdapterName) -> dict[str, str]:
        """{alias: digest}."""
        return dict(self._pointers(name).aliases)

    def pinned(self, name: AdapterName) -> frozenset[str]:
        """Digests of the pinned versions."""
        return self._pointers(name).pinned

    def is_served(self, name: AdapterName) -> bool:
        """Whether requests may name the adapter."""
        return self._pointers(name).served

    def folder_of(self, name: AdapterName, digest: str) -> Path:
        """Where the files of a version are, if there is one of that digest."""
        return self._folder(name) / _VERSIONS / digest

    def rows(self) -> Database | None:
        """The database, for lists of what is in it (`listing.py`, `audit.py`); None as long as there is no store."""
        return self.database if self._is_there() else None

    # Writing. ``by`` is who does it, for the audit log.

    def publish(
        self,
        folder: Path,
        name: AdapterName,
        base: BaseSource,
        *,
        aliases: tuple[str, ...] = (LATEST,),
        template: PromptTemplate | None = None,
        labels: tuple[str, ...] | None = None,
        multi_label: bool = False,
        score: bool = False,
        by: str = OPERATOR,
    ) -> Version:
        """Check the adapter in ``folder`` against the base and make it a version; the same bytes are the same version.

        A plain PEFT folder gets its manifest from what is given and what can be inferred (`infer_manifest`). The card,
        the report and plots go along; a version that is there already keeps its own.
        """
        for alias in aliases:
            check_part(alias, "alias")
        with self._aside() as staged:
            stated = Stated(template, labels, multi_label=multi_label, score=score)
            digest = stage(folder, staged, base, stated).digest
            sync_tree(staged)
            self._is_there()  # takes in what lies there before anything is added
            versions = self._folder(name) / _VERSIONS
            self._registry.announce(name, digest, by)
            _place(staged, versions, digest)
            self._registry.publish(name, digest, aliases, by)
        return self._version(name, digest)

    def set_alias(
        self,
        name: AdapterName,
        alias: str,
        version: str,
        *,
        by: str = OPERATOR,
        admitted: bool = False,
        unless_moved_from: tuple[str | None] | None = None,
    ) -> str:
        """Point an alias at a version, given by its digest or a unique beginning of at least 8 digits; return it.

        An alias that has a gate is moved only if who keeps it has ``admitted`` the version; with ``unless_moved_from``
        only if it still points there.
        """
        check_part(alias, "alias")
        self._pointers(name)
        return self._registry.point(name, alias, version, by, admitted=admitted, unless_moved_from=unless_moved_from)

    def roll_back(self, name: AdapterName, alias: str = LATEST, *, by: str = OPERATOR) -> str:
        """Point an alias at what it pointed at before; return that digest."""
        self._pointers(name)
        return self._registry.roll_back(name, alias, by)

    def delete_alias(self, name: AdapterName, alias: str, *, by: str = OPERATOR) -> None:
        """Remove an alias; `latest` cannot be removed."""
        self._pointers(name)
        if alias == LATEST:
            raise AdapterExistsError(f"{LATEST} cannot be removed: delete the version, or the adapter", key="alias")
        self._registry.remove_alias(name, alias, by)

    def set_served(self, name: AdapterName, served: bool, *, by: str = OPERATOR) -> None:
        """Hide an adapter from requests, or show it again; nothing is deleted."""
        self._pointers(name)
        self._registry.set_served(name, served=served, by=by)

    def set_pinned(self, name: AdapterName, version: str, pinned: bool, *, by: str = OPERATOR) -> str:
        """Keep a version from being deleted and from leaving memory, or let it go; return its digest."""
        self._pointers(name)
        return self._registry.set_pinned(name, version, pinned=pinned, by=by)

    def delete_version(self, name: AdapterName, version: str, *, grace: float = 0.0, by: str = OPERATOR) -> None:
        """Delete a version that is not pinned and that no alias but `latest` points at; return its digest.

        Nobody can name it from now on; its bytes go after ``grace`` seconds, for those who just did.
        """
        self._pointers(name)
        self._registry.delete_version(name, version, now() + timedelta(seconds=grace), by)
        self.purge()

    def delete(self, name: AdapterName, *, grace: float = 0.0, by: str = OPERATOR) -> None:
        """Delete an adapter with all its versions and aliases; their bytes go after ``grace`` seconds."""
        self._pointers(name)
        self._registry.delete(name, now() + timedelta(seconds=grace), by)
        self.purge()

    def purge(self) -> list[str]:
        """Remove the bytes of what was deleted, once its grace has passed; return what it was (`tenant/name@digest`).

        Does nothing while something is being published.
        """
        if not self._is_there():
            return []
        with self._undisturbed() as alone:
            return self._purged() if alone else []

    def recover(self) -> list[str]:
        """Remove what interrupted writers left behind; return what it was. Does nothing while others write."""
        if not self._is_there():
            return []
        with self._undisturbed() as alone:
            if not alone:
                return []
            left = sorted(self._staging.iterdir())
            for entry in left:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            return [str(path.relative_to(self.root)) for path in left] + self._purged()

    # Inside

    def _is_there(self) -> bool:
        """Whether there is a store. One whose database is empty takes in the versions that lie in its folder."""
        if not self.root.is_dir():
            return False
        if not self._opened:
            self._check_marker()
            self.database.prepare()
            for name in self._registry.adopt(lambda: find_adopted(self.root)):
                forget_pointers(self._folder(name))
            self._opened = True
        return True

    def _check_marker(self) -> None:
        """Keep one store from having two databases: that of another place than the folder is noted in it.

        Raises:
            StateError: This store's names are kept elsewhere.
        """
        marker = self.root / _MARKER
        if not self._embedded:
            marker.write_text(f"{self.database}\n", "utf-8")
        elif marker.exists():
            where = marker.read_text("utf-8").strip()
            message = (
                f"the names of the store {self.root.name} are kept in {where}: say so (TENORA_DATABASE), or bring "
                "adapters over HTTP (tenora adapters upload FOLDER NAME --url …)"
            )
            raise StateError(message, key="database")

    def _pointers(self, name: AdapterName) -> Pointers:
        self._folder(name)
        pointers = self._registry.pointers(name) if self._is_there() else None
        if pointers is None:
            raise AdapterNotFoundError(f"there is no adapter {name}", key="name")
        return pointers

    def _version(self, name: AdapterName, digest: str) -> Version:
        path = self._folder(name) / _VERSIONS / digest
        try:
            if not path.is_dir():
                raise AdapterFormatError("gone")
            return Version(name, digest, path, _manifest(path))
        except AdapterFormatError as error:
            if path.is_dir():
                raise
            raise AdapterNotFoundError(f"{name}@{digest[:12]} has just been deleted", key="version") from error

    def _folder(self, name: AdapterName) -> Path:
        tenant = self.root / name.tenant
        folder = tenant / name.name
        if tenant.is_symlink() or folder.is_symlink():
            raise AdapterNameError(f"{name} is a link in the store, and links are not followed", key="name")
        return folder

    def _purged(self) -> list[str]:
        purged = []
        for known in self._registry.known(purge_before=now()):
            trash = self._staging / f"trash-{uuid.uuid4().hex}"
            try:
                if self._registry.purge(known, functools.partial(self._take_away, known, trash)):
                    purged.append(f"{known.name}@{known.digest}")
                shutil.rmtree(trash, ignore_errors=True)  # what stays is swept by `recover`
            except OSError as error:  # one that cannot be moved must not keep the others
                logger.warning("%s@%s cannot be removed and is tried again: %s", known.name, known.digest[:12], error)
        return purged

    def _take_away(self, known: Known, trash: Path) -> None:
        """Move a version's folder away, and remove those above it that are empty then."""
        folder = self._folder(known.name)
        path = folder / _VERSIONS / known.digest
        if path.exists():
            path.rename(trash)
            sync_folder(path.parent)
        for empty in (folder / _VERSIONS, folder):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()

    @property
    def _staging_lock(self) -> Path:
        return self.root / _LOCKS / "staging"

    def _make_folders(self) -> None:
        for folder in (self.root, self._staging, self.root / _LOCKS):
            make_folder(folder)

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """A new folder in staging, gone at the end unless it was renamed away."""
        self._make_folders()
        # Shared, so that what a living writer has begun is not taken for a dead one's.
        with locked(self._staging_lock, shared=True):
            staged = self._staging / uuid.uuid4().hex
            staged.mkdir()
            try:
                yield staged
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    @contextmanager
    def _undisturbed(self) -> Iterator[bool]:
        """Keeps publishers out; False if there are some at work."""
        self._make_folders()
        try:
            with locked(self._staging_lock, wait=False):
                yield True
        except BlockingIOError:
            yield False


def _place(staged: Path, versions: Path, digest: str) -> None:
    make_folder(versions)
    if not (versions / digest).exists():
        staged.rename(versions / digest)
        sync_folder(versions)


# A version's files never change, and its path holds its digest.
_manifest = functools.lru_cache(maxsize=4096)(read_manifest)
