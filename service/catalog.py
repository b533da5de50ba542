"""Which models there are, for whom, and what a name means. Loading and unloading as vLLM's clients know it."""

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters.audit import OPERATOR
from adapters.base import BaseSource
from adapters.cache import HostCache
from adapters.errors import AdapterError, AdapterNameError, AdapterNotFoundError
from adapters.manifest import Manifest, Task, read_manifest
from adapters.names import LATEST, AdapterName, AdapterRef
from adapters.store import Store, Version
from service.errors import AdapterUnknownError, InvalidRequestError, ModelNotFoundError, PathNotAllowedError, shorten
from service.gate.keeper import Gatekeeper
from service.lifecycle import Lifecycle
from service.lifecycle_messages import LifecycleQuestion
from service.messages import BaseInfo, ModelInfo, Work
from service.publishing import check_rank, own_name, room_on_disk, without_paths
from service.split_messages import SplitQuestion
from service.splits import Routed, Splits

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
        gatekeeper: Checks versions for the aliases that demand something.
        max_model_len: Longest prompt plus answer in tokens.
        max_lora_rank: Largest rank that a slot can hold.
        folders: Where adapters may be imported from.
        delete_grace: Seconds for which the bytes of what is deleted stay.
    """

    def __init__(
        self,
        base: BaseSource,
        store: Store,
        cache: HostCache,
        gatekeeper: Gatekeeper,
        *,
        max_model_len: int,
        max_lora_rank: int,
        folders: tuple[Path, ...],
        delete_grace: float = 0.0,
    ) -> None:
        self.base = base
        self._store = store
        self._cache = cache
        self._max_model_len = max_model_len
        self._max_lora_rank = max_lora_rank
        self._folders = tuple(folder.expanduser().resolve() for folder in folders)
        self._started = int(time.time())
        self.splits = Splits(store)
        self.lifecycle = Lifecycle(
            base, store, cache, gatekeeper, max_lora_rank=max_lora_rank, delete_grace=delete_grace
        )
        self._summaries: dict[str, _Summary] = {}
        """By digest, of the versions that the last whole list had, and of those listed since."""

    def describe_base(self) -> BaseInfo:
        """What the process holds."""
        return BaseInfo(
            id=self.base.id,
            kind=self.base.kind,
            fingerprint=self.base.fingerprint,
            max_model_len=self._max_model_len,
            adapters=len(self._store.served()),
        )

    def resolve(self, model: str, tenant: str | None) -> Version | None:
        """The version that a name means at this moment; None is the base itself.

        Raises:
            ModelNotFoundError: Unknown, not served, not a name at all, or another tenant's: the same answer.
        """
        if model == self.base.id:
            return None
        try:
            ref = self._ref(model, tenant)
            if tenant is not None and not self._store.may_use(ref.name, tenant):
                raise ModelNotFoundError(model)
            return self._store.resolve(ref)
        except (AdapterNameError, AdapterNotFoundError) as error:
            raise ModelNotFoundError(model) from error

    def route(self, work: Work) -> Routed:
        """The version that a request gets: what its name means, or one of those that its requests are split between.

        Raises:
            ModelNotFoundError: As `resolve` does.
        """
        version = self.resolve(work.model, work.tenant)
        if version is None or not self.splits:
            return Routed(version)
        ref = self._ref(work.model, work.tenant)
        alias = ref.alias or LATEST
        if ref.version is not None or not self.splits.concerns(ref.name, alias):
            return Routed(version)
        return self.splits.route(version, alias, work)

    def ask(self, question: LifecycleQuestion | SplitQuestion) -> Any:
        """Answer a question about an adapter's versions."""
        if isinstance(question, SplitQuestion):
            return self.splits.ask(question)
        return self.lifecycle.ask(question)

    def models(self, tenant: str | None) -> list[ModelInfo]:
        """The base, then every adapter that the tenant may use."""
        served = [(name, digest, self._summary(name, digest)) for name, digest in self._store.served(tenant)]
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

    def load(self, name: str, path: str, tenant: str | None, *, in_place: bool, by: str = OPERATOR) -> str:
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
        if version is None or version.name != target:
            version = self._publish(folder, target, by)
        if self._store.aliases(target).get(LATEST) != version.digest:  # an older one, or `latest` has a gate
            verdict = self.lifecycle.gatekeeper.admit(target, LATEST, version.digest, by=by, force=False)
            self._store.set_alias(target, LATEST, version.digest, by=by, admitted=verdict is not None)
        self._store.set_served(target, True, by=by)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str, tenant: str | None, *, by: str = OPERATOR) -> str:
        """Stop serving ``name``; requests in flight finish. Returns vLLM's sentence."""
        missing = LoraNotFoundError(f"The lora adapter '{shorten(name)}' cannot be found.", param="lora_name")
        try:
            target = own_name(name, tenant, param="lora_name")
        except (AdapterNameError, AdapterUnknownError) as error:
            raise missing from error
        if not self._is_served(target):
            raise missing
        self._store.set_served(target, False, by=by)
        for version in self._store.versions(target):
            self._cache.discard(version.name, version.digest)
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _ref(self, model: str, tenant: str | None) -> AdapterRef:
        return AdapterRef.parse(model.removeprefix(f"{self.base.id}:"), tenant)

    def _new_name(self, name: str, tenant: str | None) -> AdapterName:
        """A name to load under; the parameter at fault is named as the route names it."""
        target = own_name(name, tenant, param="lora_name")
        if self.base.id in (name, str(target)):
            raise InvalidRequestError(f"'{name}' is the base itself: choose another name.", param="lora_name")
        return target

    def _publish(self, folder: Path, target: AdapterName, by: str) -> Version:
        """Publish a folder; a refusal tells the client about its parameter and nothing about our disks."""
        try:
            check_rank(folder, self._max_lora_rank, param="lora_path")
            with room_on_disk():
                return self._store.publish(folder, target, self.base, by=by)
        except AdapterError as error:
            key = "lora_name" if isinstance(error, AdapterNameError) else "lora_path"
            raise type(error)(without_paths(error.message, folder, self._store.root), key=key) from error

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
