"""What the client does with the versions of adapters: brings them, moves aliases, pins, lists. Files are streamed."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from service.client_types import check, reachable

ADAPTERS = "/v1/adapters"
UPLOAD_TIMEOUT_S = 1200.0
"""How long an answer to an upload is waited for: its bytes have to arrive, be checked and be synced to disk."""
_PARTS = {
    "config": "adapter_config.json",
    "weights": "adapter_model.safetensors",
    "manifest": "tenora.json",
    "card": "README.md",
    "report": "report.json",
}

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and all there are."""


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One version of an adapter; a dry run has neither a number nor a date."""

    adapter: str
    digest: str
    aliases: tuple[str, ...]
    number: int | None
    published_at: datetime | None
    published_by: str | None
    task: str | None
    rank: int | None
    labels: tuple[str, ...] | None
    base: str | None
    size: int | None
    pinned: bool


class LifecycleClient:
    """The part of :class:`service.client.TenoraClient` that changes what is served."""

    _http: httpx.Client

    def upload(
        self,
        source: Path,
        name: str,
        *,
        aliases: Sequence[str] = (),
        template: str | None = None,
        labels: Sequence[str] | None = None,
        multi_label: bool = False,
        score: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> AdapterVersion:
        """Publish an adapter: a folder as PEFT or a training run wrote it, or an archive (.zip, .tar, .tar.gz) of one.

        Args:
            source: The folder or the archive.
            name: tenant/name, or the name alone with a tenant's key.
            aliases: What to point at it beside `latest`.
            template: Of a plain PEFT folder: alpaca, chat, plain, or a Jinja text.
            labels: Of a plain PEFT classifier, in order.
            multi_label: Whether those labels hold or not each by itself.
            score: Whether a head of one number scores answers.
            dry_run: Have it checked, and keep nothing.
            progress: Told of every piece that is read.

        Raises:
            TenoraError: The server refused it; ``param`` names the field, file or tensor.
            OSError: A file cannot be read.
        """
        fields: dict[str, Any] = {
            "name": name,
            "alias": list(dict.fromkeys(["latest", *aliases])),
            "multi_label": str(multi_label).lower(),
            "score": str(score).lower(),
            "dry_run": str(dry_run).lower(),
        }
        fields |= {} if template is None else {"template": template}
        fields |= {} if labels is None else {"labels": list(labels)}
        if source.is_dir() and not (source / _PARTS["manifest"]).exists() and (source / _PARTS["weights"]).exists():
            # As `tenora adapters publish` dates a plain PEFT folder, so that both make the same version of it.
            modified = int((source / _PARTS["weights"]).stat().st_mtime)
            fields["created"] = datetime.fromtimestamp(modified, UTC).isoformat()
        with _opened(source, progress) as files, reachable():
            response = self._http.post(ADAPTERS, data=fields, files=files, timeout=UPLOAD_TIMEOUT_S)
        return read_version(check(response).json())

    def versions(self, adapter: str) -> list[AdapterVersion]:
        """All versions of tenant/name, in the order of their publishing."""
        with reachable():
            response = check(self._http.get(_path(adapter)))
        return [read_version(entry) for entry in response.json()["data"]]

    def promote(self, adapter: str, version: str, alias: str = "latest") -> str:
        """Point an alias at a version, given by a beginning of its digest; returns the digest."""
        return str(self._change(adapter, "promote", alias=alias, version=version)["digest"])

    def rollback(self, adapter: str, alias: str = "latest") -> str:
        """Point an alias at what it pointed at before; returns that digest."""
        return str(self._change(adapter, "rollback", alias=alias)["digest"])

    def pin(self, adapter: str, version: str, pinned: bool = True) -> AdapterVersion:
        """Keep a version from being deleted and in memory once it was read, or let it go."""
        return read_version(self._change(adapter, "pin" if pinned else "unpin", version=version))

    def delete(self, adapter: str, version: str | None = None) -> None:
        """Delete a version, or an adapter with all of them; requests in flight finish."""
        with reachable():
            check(self._http.delete(_path(adapter) + ("" if version is None else f"/versions/{quote(version)}")))

    def _change(self, adapter: str, what: str, **body: str) -> Mapping[str, Any]:
        with reachable():
            response = check(self._http.post(f"{_path(adapter)}/{what}", json=body))
        found: Mapping[str, Any] = response.json()
        return found


def read_version(entry: Mapping[str, Any]) -> AdapterVersion:
    """A version as the wire has it."""
    return AdapterVersion(
        adapter=entry["adapter"],
        digest=entry["digest"],
        aliases=tuple(entry["aliases"]),
        number=entry["number"],
        published_at=datetime.fromisoformat(entry["published_at"]) if entry["published_at"] else None,
        published_by=entry["published_by"],
        task=entry["task"],
        rank=entry["rank"],
        labels=tuple(entry["labels"]) if entry["labels"] is not None else None,
        base=entry["base"],
        size=entry["size"],
        pinned=entry["pinned"],
    )


def _path(adapter: str) -> str:
    return f"{ADAPTERS}/{quote(adapter)}"


@contextmanager
def _opened(source: Path, progress: Progress | None) -> Iterator[list[tuple[str, tuple[str, BinaryIO]]]]:
    """The files to be sent, as parts of a form."""
    if source.is_dir():
        paths = [(part, source / name) for part, name in _PARTS.items() if (source / name).exists()]
        paths += [("plot", path) for path in sorted(source.glob("*.png"))]
    else:
        paths = [("archive", source)]
    watch = _Watch(sum(path.stat().st_size for _, path in paths), progress)
    with ExitStack() as stack:
        yield [(part, (path.name, stack.enter_context(_Watched(path, watch)))) for part, path in paths]


class _Watch:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._read = 0

    def add(self, size: int) -> None:
        self._read += size
        if self._progress is not None:
            self._progress(self._read, self._total)


class _Watched(io.FileIO):
    """A file that says how far it has been read."""

    def __init__(self, path: Path, watch: _Watch) -> None:
        super().__init__(path)
        self._watch = watch

    def read(self, size: int | None = -1, /) -> Any:
        data = super().read(-1 if size is None else size)
        self._watch.add(len(data or b""))
        return data
