"""Immutable versions on disk, and pointers to them.

    root/<tenant>/<name>/versions/<digest>/   adapter_config.json, adapter_model.safetensors, tenora.json;
                                              perhaps README.md, report.json, *.png, which are not in the digest
    root/<tenant>/<name>/pointers.json        versions, aliases, served
    root/.staging/                            what is being written, or thrown away
    root/.locks/                              one lock file a name, for writers in several processes

Publishing writes everything aside, syncs it, renames the folder into place and then replaces the pointers in one
step. Until that step the version does not exist; after it, it exists whole. Deleting goes the other way round:
pointers first, bytes later. Readers take no locks.
"""

import functools
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.adapter import FILES, copy_adapter, infer_manifest, load_adapter
from adapters.base import BaseSource
from adapters.disk import locked, make_folder, sync_folder, sync_tree
from adapters.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterFormatError,
    AdapterNameError,
    AdapterNotFoundError,
    named,
)
from adapters.extras import find_extras
from adapters.files import content_digest
from adapters.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from adapters.names import LATEST, AdapterName, AdapterRef, check_part
from adapters.pointers import POINTERS_FILE, Pointers, find_version, read_pointers, write_pointers
from adapters.templates import PromptTemplate

_STAGING, _LOCKS, _VERSIONS = ".staging", ".locks", "versions"


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
    """A folder of adapters. Any number of processes may read and write it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / _STAGING

    # Reading

    def resolve(self, ref: AdapterRef) -> Version:
        """The version that a reference means; without a version or an alias, `latest`."""
        pointers = self._pointers(ref.name)
        if not pointers.served:
            raise AdapterNotFoundError(f"{ref.name} is not served at present: load it again", key="name")
        return self._version(ref.name, find_version(ref, pointers))

    def names(self, tenant: str | None = None) -> list[AdapterName]:
        """All adapters, or those of a tenant, sorted; those not served included."""
        if tenant is not None:
            check_part(tenant, "tenant")
        tenants = [self.root / tenant] if tenant is not None else _folders(self.root)
        return [
            AdapterName(folder.name, adapter.name)
            for folder in tenants
            for adapter in _folders(folder)
            if (adapter / POINTERS_FILE).is_file()
        ]

    def versions(self, name: AdapterName) -> list[Version]:
        """All versions, in the order of their publishing."""
        return [self._version(name, digest) for digest in self._pointers(name).versions]

    def aliases(self, name: AdapterName) -> dict[str, str]:
        """{alias: digest}."""
        return dict(self._pointers(name).aliases)

    def is_served(self, name: AdapterName) -> bool:
        """Whether requests may name the adapter."""
        return self._pointers(name).served

    # Writing

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
    ) -> Version:
        """Check the adapter in ``folder`` against the base and make it a version; the same bytes are the same version.

        A plain PEFT folder gets its manifest from what is given and what can be inferred (`infer_manifest`). The card,
        the report and plots go along; a version that is there already keeps its own.
        """
        for alias in aliases:
            check_part(alias, "alias")
        with self._aside() as staged:
            copy_adapter(folder, staged)
            if not (staged / MANIFEST_FILE).exists():
                manifest = infer_manifest(
                    staged, base, template=template, labels=labels, multi_label=multi_label, score=score
                )
                write_manifest(staged, manifest)
            elif template is not None or labels is not None or multi_label or score:
                message = f"{folder.name} has a {MANIFEST_FILE} already, which states its task, template and labels"
                raise AdapterExistsError(message, key=MANIFEST_FILE)
            load_adapter(staged, base)
            digest = content_digest(staged, FILES)
            sync_tree(staged)
            with self._locked(name):
                self._place(staged, name, digest)
                pointers = self._read(name) or Pointers()
                self._write(name, pointers.with_version(digest, aliases))
        return self._version(name, digest)

    def set_alias(self, name: AdapterName, alias: str, version: str) -> None:
        """Point an alias at a version, given by its digest or a unique beginning of at least 8 digits."""
        check_part(alias, "alias")
        with self._writing(name) as pointers:
            digest = find_version(AdapterRef(name, version=version), pointers)
            self._write(name, pointers.with_version(digest, (alias,)))

    def delete_alias(self, name: AdapterName, alias: str) -> None:
        """Remove an alias; `latest` cannot be removed."""
        if alias == LATEST:
            raise AdapterExistsError(f"{LATEST} cannot be removed: delete the version, or the adapter", key="alias")
        with self._writing(name) as pointers:
            find_version(AdapterRef(name, alias=alias), pointers)
            rest = {other: digest for other, digest in pointers.aliases.items() if other != alias}
            self._write(name, Pointers(pointers.versions, rest, pointers.served))

    def set_served(self, name: AdapterName, served: bool) -> None:
        """Hide an adapter from requests, or show it again; nothing is deleted."""
        with self._writing(name) as pointers:
            self._write(name, Pointers(pointers.versions, pointers.aliases, served))

    def delete_version(self, name: AdapterName, digest: str) -> None:
        """Delete a version that no alias but `latest` points at; `latest` falls back to the one before."""
        with self._writing(name) as pointers:
            digest = find_version(AdapterRef(name, version=digest), pointers)
            held = sorted(alias for alias, at in pointers.aliases.items() if at == digest and alias != LATEST)
            if held:
                message = f"{name}@{digest[:12]} is what {named(held)} points at: move or delete that alias first"
                raise AdapterExistsError(message, key="version")
            self._write(name, pointers.without_version(digest))
            self._throw_away(self._folder(name) / _VERSIONS / digest)

    def delete(self, name: AdapterName) -> None:
        """Delete an adapter with all its versions and aliases."""
        with self._writing(name):
            self._throw_away(self._folder(name))

    def recover(self) -> list[str]:
        """Remove what interrupted writers left behind; return what it was. Does nothing while others write."""
        if not self.root.is_dir():
            return []
        make_folder(self._staging)
        make_folder(self.root / _LOCKS)
        try:
            with locked(self._staging_lock, wait=False):
                left = sorted(self._staging.iterdir())
                for entry in left:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                orphans = [orphan for tenant in _folders(self.root) for orphan in self._clean_tenant(tenant)]
        except BlockingIOError:
            return []
        return [str(path.relative_to(self.root)) for path in (*left, *orphans)]

    # Inside

    def _pointers(self, name: AdapterName) -> Pointers:
        pointers = self._read(name)
        if pointers is None:
            raise AdapterNotFoundError(f"there is no adapter {name}", key="name")
        return pointers

    def _read(self, name: AdapterName) -> Pointers | None:
        return read_pointers(self._folder(name))

    def _write(self, name: AdapterName, pointers: Pointers) -> None:
        write_pointers(self._folder(name), pointers, self._staging)

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

    def _place(self, staged: Path, name: AdapterName, digest: str) -> None:
        versions = self._folder(name) / _VERSIONS
        make_folder(versions)
        if not (versions / digest).exists():
            staged.rename(versions / digest)
            sync_folder(versions)

    def _throw_away(self, path: Path) -> None:
        trash = self._staging / f"trash-{uuid.uuid4().hex}"
        path.rename(trash)
        sync_folder(path.parent)
        shutil.rmtree(trash)

    def _clean_tenant(self, tenant: Path) -> list[Path]:
        return [path for folder in _folders(tenant) for path in self._clean(AdapterName(tenant.name, folder.name))]

    def _clean(self, name: AdapterName) -> list[Path]:
        """Remove versions that no pointer knows: their publisher, or their deleter, did not get to the end."""
        folder = self._folder(name)
        with self._locked(name):
            try:
                pointers = read_pointers(folder)
            except AdapterFormatError:
                return []  # broken from outside: every use says so, and the versions are kept for a repair
            known = pointers.versions if pointers else ()
            orphans = [path for path in _folders(folder / _VERSIONS) if path.name not in known]
            if pointers is None:
                orphans = [folder]
            for path in orphans:
                self._throw_away(path)
        return orphans

    @property
    def _staging_lock(self) -> Path:
        return self.root / _LOCKS / "staging"

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """A new folder in staging, gone at the end unless it was renamed away."""
        with self._sharing():
            staged = self._staging / uuid.uuid4().hex
            staged.mkdir()
            try:
                yield staged
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        """Keeps recover() from taking the staging of a living writer for a leftover."""
        for folder in (self.root, self._staging, self.root / _LOCKS):
            make_folder(folder)
        with locked(self._staging_lock, shared=True):
            yield

    @contextmanager
    def _locked(self, name: AdapterName) -> Iterator[None]:
        # Names have no '@', so no two share a file. Lock files stay: removing one would split a lock in two.
        with locked(self.root / _LOCKS / f"{name.tenant}@{name.name}"):
            yield

    @contextmanager
    def _writing(self, name: AdapterName) -> Iterator[Pointers]:
        self._pointers(name)  # no lock file for a name that does not exist
        with self._sharing(), self._locked(name):
            yield self._pointers(name)


# A version's files never change, and its path holds its digest.
_manifest = functools.lru_cache(maxsize=4096)(read_manifest)


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
