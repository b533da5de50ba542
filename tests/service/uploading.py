"""Uploads for tests: an adapter's folder as parts of a form, as archives, and what lies in a store before and after."""

import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.service.running import RunningServer

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "tenora.json"
PARTS = {"config": CONFIG, "weights": WEIGHTS, "manifest": MANIFEST, "card": "README.md"}

Files = list[tuple[str, tuple[str, bytes]]]


def parts(folder: Path, **instead: bytes | None) -> Files:
    """The files of a folder as parts of a form; some of them replaced, or left out (None)."""
    found: dict[str, bytes | None] = {
        part: (folder / name).read_bytes() for part, name in PARTS.items() if (folder / name).exists()
    }
    found |= instead
    return [(part, (PARTS.get(part, part), data)) for part, data in found.items() if data is not None]


def upload(
    server: RunningServer, files: Files, name: str = "acme/new", key: str | None = None, **fields: Any
) -> httpx.Response:
    """POST /v1/adapters."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return server.http.post("/v1/adapters", files=files, data={"name": name, **fields}, headers=headers)


def archive(data: bytes, name: str = "adapter.zip") -> Files:
    return [("archive", (name, data))]


def zipped(members: Mapping[str, bytes], **options: Any) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name, (2026, 1, 31, 12, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def tarred(members: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as file:  # type: ignore[call-overload]
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                file.addfile(data)
                continue
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_770_000_000
            file.addfile(member, io.BytesIO(data))
    return made.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """{name: bytes} of an adapter's own files in a folder."""
    return {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS, MANIFEST) if (folder / name).exists()}


def tree(store: Path) -> set[str]:
    """What lies in a store, but for the files of the database and of locks, which come and go."""
    walked = [(Path(folder), [*folders, *files]) for folder, folders, files in os.walk(store)]
    found = {str((folder / name).relative_to(store)) for folder, names in walked for name in names}
    return {path for path in found if not path.startswith(("tenora.db", ".locks"))} - {".uploads", ".staging"}
