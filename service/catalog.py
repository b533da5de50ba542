"""Which models there are, for whom, and what a name means. Loading and unloading as vLLM's clients know it."""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from adapters.base import BaseSource
from adapters.cache import HostCache
from adapters.config import read_lora_config
from adapters.errors import AdapterError, AdapterNameError, AdapterNotFoundError
from adapters.manifest import Manifest, Task, read_manifest
from adapters.names import LATEST, AdapterName, AdapterRef
from adapters.store import Store, Version
from service.errors import InvalidRequestError, ModelNotFoundError, PathNotAllowedError, PermissionDeniedError, shorten
from service.messages import BaseInfo, ModelInfo

_ABSOLUTE = re.compile(r"(?<![\w.])/(?:[^\s/'\"`]+/)+([^\s/'\"`]+)")
"""An absolute path; its last part may be told."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Summary:
    """What a list tells of a version: a hundredth of its manifest, and there may be thousands of them."""

    created: int
    task: Task

    @classmethod
    def of(cls, manifest: Manifest) -> "_Summary":
        return cls(int(datetime.fromisoformat(manifest.created).timestamp()), manifest.task)


class LoraNotFoundError(ModelNotFoundError):
    """vLLM's routes have a wording of their own for a name that is not there."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__("", param=param)
        self.message = message


def served_name(version: Version) -> str:
    """``tenant/name@digest``: what exactly answered a request."""
    return _served_name(version.name, version.digest)


def _served_name(name: AdapterName, digest: str) -> str:
    return f"{name}@{digest}"


class Catalog:
    """The base and the adapters of a store.

    Args:
        base: The one base of the process.
        store: The adapters.
        cache: Adapters in host memory; an unloaded one is dropped from it.
        max_model_len: Longest prompt plus answer in tokens.
        max_lora_rank: Largest rank that a slot can hold.
        folders: Where adapters may be imported from.
    """

    def __init__(
        self,
        base: BaseSource,
        store: Store,
        cache: HostCache,
        *,
        max_model_len: int,
        max_lora_rank: int,
        folders: tuple[Path, ...],
    ) -> None:
        self.base = base
        self._store = store
        self._cache = cache
        self._max_model_len = max_model_len
        self._max_lora_rank = max_lora_rank
        self._folders = tuple(folder.expanduser().resolve() for folder in folders)
        self._started = int(time.time())
        self._summaries: dict[str, _Summary] = {}
        """By digest, of the versions that the last whole list had, and of those listed since."""

    def describe_base(self) -> BaseInfo:
        """What the process holds."""
        return BaseInfo(
            id=self.base.id,
            kind=self.base.kind,
            fingerprint=self.base.fingerprint,
            max_model_len=self._max_model_len,
            adapters=sum(1 for _ in self._served(None)),
        )

    def resolve(self, model: str, tenant: str | None) -> Version | None:
        """The version that a name means at this moment; None is the base itself.

        Raises:
            ModelNotFoundError: Unknown, not served, not a name at all, or another tenant's: the same answer.
        """
        if model == self.base.id:
            return None
        try:
            ref = AdapterRef.parse(model.removeprefix(f"{self.base.id}:"), tenant)
            if tenant is not None and ref.name.tenant != tenant:
                raise ModelNotFoundError(model)
            return self._store.resolve(ref)
        except (AdapterNameError, AdapterNotFoundError) as error:
            raise ModelNotFoundError(model) from error

    def models(self, tenant: str | None) -> list[ModelInfo]:
        """The base, then every adapter that the tenant may use."""
        served = [(name, digest, self._summary(name, digest)) for name, digest in self._served(tenant)]
        if tenant is None:  # all that there is: what is not among it will not be asked for again
            self._summaries = {digest: summary for _, digest, summary in served if summary is not None}
        models = (
            self._adapter_model(str(name), name, digest, summary)
            for name, digest, summary in served
            if summary is not None
        )
        return [self._base_model(), *models]

    def model(self, model: str, tenant: str | None) -> ModelInfo:
        """One model under the name that was asked for."""
        version = self.resolve(model, tenant)
        if version is None:
            return self._base_model()
        return self._adapter_model(model, version.name, version.digest, _Summary.of(version.manifest))

    def load(self, name: str, path: str, tenant: str | None, *, in_place: bool) -> str:
        """Serve what ``path`` names as ``name``; returns vLLM's sentence.

        ``path`` is a store reference, or a folder inside one of the allowed folders. Nothing is served in place: a
        folder becomes a new immutable version, and `latest` moves to it.
        """
        target = self._new_name(name, tenant)
        if not in_place and self._is_served(target):
            raise InvalidRequestError(
                f"The lora adapter '{target}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True.",
                param="lora_name",
            )
        version = self._in_store(path, tenant)
        folder = version.path if version is not None else self._allowed_folder(path)
        if version is not None and version.name == target:
            self._store.set_alias(target, LATEST, version.digest)
        else:
            self._publish(folder, target)
        self._store.set_served(target, True)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str, tenant: str | None) -> str:
        """Stop serving ``name``; requests in flight finish. Returns vLLM's sentence."""
        missing = LoraNotFoundError(f"The lora adapter '{shorten(name)}' cannot be found.", param="lora_name")
        try:
            target = self._own_name(name, tenant)
        except (AdapterNameError, PermissionDeniedError) as error:
            raise missing from error
        if not self._is_served(target):
            raise missing
        self._store.set_served(target, False)
        for version in self._store.versions(target):
            self._cache.discard(version.digest)
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _new_name(self, name: str, tenant: str | None) -> AdapterName:
        """A name to load under; the parameter at fault is named as the route names it."""
        try:
            target = self._own_name(name, tenant)
        except AdapterNameError as error:
            raise AdapterNameError(error.message, key="lora_name") from error
        if self.base.id in (name, str(target)):
            raise InvalidRequestError(f"'{name}' is the base itself: choose another name.", param="lora_name")
        return target

    def _publish(self, folder: Path, target: AdapterName) -> None:
        """Publish a folder; a refusal tells the client about its parameter and nothing about our disks."""
        try:
            self._check_rank(folder)
            self._store.publish(folder, target, self.base)
        except AdapterError as error:
            for place in (folder, self._store.root.resolve(), self._store.root):
                error.message = error.message.replace(f"{place}/", "").replace(str(place), folder.name)
            key = "lora_name" if isinstance(error, AdapterNameError) else "lora_path"
            raise type(error)(_ABSOLUTE.sub(r"\1", error.message), key=key) from error

    def _own_name(self, text: str, tenant: str | None) -> AdapterName:
        qualified = f"{tenant}/{text}" if tenant is not None and "/" not in text else text
        name = AdapterName.parse(qualified)
        if tenant is not None and name.tenant != tenant:
            raise PermissionDeniedError(f"This key belongs to the tenant '{tenant}'.", param="lora_name")
        return name

    def _check_rank(self, folder: Path) -> None:
        spec = read_lora_config(folder)
        rank = max([spec.r, *spec.rank_pattern.values()])
        if rank > self._max_lora_rank:
            raise InvalidRequestError(
                f"The adapter has rank {rank}; this server holds ranks up to {self._max_lora_rank} "
                "(TENORA_MAX_LORA_RANK).",
                param="lora_path",
            )

    def _is_served(self, name: AdapterName) -> bool:
        return name in self._store.names(name.tenant) and self._store.is_served(name)

    def _in_store(self, path: str, tenant: str | None) -> Version | None:
        """The version that a reference means, whether it is being served or not; None if it is no reference."""
        try:
            ref = AdapterRef.parse(path, tenant)
        except AdapterNameError:
            return None
        if (tenant is not None and ref.name.tenant != tenant) or ref.name not in self._store.names(ref.name.tenant):
            return None
        digest = ref.version or self._store.aliases(ref.name).get(ref.alias or LATEST)
        found = [v for v in self._store.versions(ref.name) if digest and v.digest.startswith(digest)]
        return found[0] if len(found) == 1 else None

    def _allowed_folder(self, path: str) -> Path:
        """A folder to import, links resolved. The answer does not tell what exists outside the allowed folders."""
        allowed = False
        for root in self._folders:
            try:
                folder = (root / path).resolve()
                if folder == root or not folder.is_relative_to(root):
                    continue
                allowed = True
                if folder.is_dir():
                    return folder
            except (OSError, ValueError):  # too long, or with a NUL: no path at all
                continue
        if allowed:
            raise LoraNotFoundError(f"No adapter found for '{shorten(path)}'.", param="lora_path")
        raise PathNotAllowedError(
            f"'{shorten(path)}' is neither an adapter in the store nor inside a folder that adapters may be "
            "imported from (TENORA_ADAPTER_FOLDERS).",
            param="lora_path",
        )

    def _served(self, tenant: str | None) -> Iterator[tuple[AdapterName, str]]:
        """Every name that requests may use, and the digest that it means; the versions themselves are not opened."""
        for name in self._store.names(tenant):
            try:
                digest = self._store.aliases(name).get(LATEST) if self._store.is_served(name) else None
            except AdapterNotFoundError:
                continue  # just deleted
            except AdapterError as error:
                logger.warning("%s is left out of the list of models: %s", name, error)
                continue
            if digest is not None:
                yield name, digest

    def _summary(self, name: AdapterName, digest: str) -> _Summary | None:
        """What a list tells of a version; None if it was deleted, or is broken."""
        summary = self._summaries.get(digest)
        # Not by way of the store, which would keep the whole manifest for the requests that it expects.
        folder = self._store.root / name.tenant / name.name / "versions" / digest
        if summary is None and folder.is_dir():
            try:
                summary = self._summaries[digest] = _Summary.of(read_manifest(folder))
            except AdapterError as error:
                logger.warning("%s is left out of the list of models: %s", name, error)
        return summary

    def _base_model(self) -> ModelInfo:
        return ModelInfo(
            id=self.base.id,
            root=self.base.id,
            parent=None,
            owner="tenora",
            created=self._started,
            task=None,
            max_model_len=self._max_model_len,
        )

    def _adapter_model(self, shown: str, name: AdapterName, digest: str, summary: _Summary) -> ModelInfo:
        return ModelInfo(
            id=shown,
            root=_served_name(name, digest),
            parent=self.base.id,
            owner=name.tenant,
            created=summary.created,
            task=summary.task,
            max_model_len=self._max_model_len,
        )
