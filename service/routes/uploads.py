"""POST /v1/adapters: an adapter's files, or an archive of them, streamed to disk, checked as a whole and published."""

import os
from pathlib import Path

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from adapters.archive import unpack
from adapters.config import CONFIG_FILE
from adapters.errors import AdapterExistsError, AdapterFormatError
from adapters.manifest import MANIFEST_FILE
from adapters.parcel import WEIGHTS_FILE
from service.errors import ClientGoneError
from service.lifecycle_messages import Published, PublishUpload
from service.publishing import own_name, room_on_disk
from service.routes.lifecycle import CHECKS_TIMEOUT_S, version_entry
from service.state import state_of
from service.tenants.caller import Caller, caller_of
from service.upload_fields import UploadFields
from service.upload_form import ARCHIVE_FILE, UploadForm
from service.uploads import in_thread

UPLOAD_PATH = "/v1/adapters"
GATHERED = 1 << 20
"""Bytes that are written at once: the event loop hands them to a thread, which costs as much as writing a little."""


async def upload_adapter(request: Request) -> Response:
    """Publish an adapter: `name`, and either `config` and `weights` (perhaps `manifest`, `card`, `report`, `plot`) or
    an `archive`; with `dry_run` only say what would be published."""
    caller, state = caller_of(request), state_of(request)
    most, seconds = state.settings.max_upload_bytes, state.settings.upload_timeout
    with room_on_disk():
        async with state.uploads.folder(caller.tenant) as aside:
            folder = aside / "adapter"
            folder.mkdir()
            fields = await _receive(
                request, UploadForm(request.headers.get("content-type", ""), folder, most, caller.tenant)
            )
            await in_thread(_settle, folder, fields.created_at, most)
            published: Published = await state.client.ask(
                _question(fields, folder, caller), seconds + CHECKS_TIMEOUT_S * len(fields.alias)
            )
    verdicts = [verdict.as_dict() for verdict in published.verdicts]
    entry = version_entry(published.version) | {"new": published.new, "verdicts": verdicts}
    if fields.dry_run:
        return JSONResponse(entry | {"dry_run": True})
    return JSONResponse(entry, 201 if published.new else 200)


async def _receive(request: Request, form: UploadForm) -> UploadFields:
    """Feed the body to its form, never holding more of it than is written at once."""
    gathered = bytearray()
    try:
        async for chunk in request.stream():
            gathered += chunk
            if len(gathered) >= GATHERED:
                await in_thread(form.feed, bytes(gathered))
                gathered.clear()
        await in_thread(form.feed, bytes(gathered))
        return form.finish()
    except ClientDisconnect:
        raise ClientGoneError("The client closed the connection before its upload was whole.") from None
    finally:
        form.close()


def _settle(folder: Path, created_at: int | None, most: int) -> None:
    """Leave an adapter's own files in the folder and nothing else, its weights dated."""
    archive, weights = folder / ARCHIVE_FILE, folder / WEIGHTS_FILE
    packed = archive.exists()
    if packed:
        aside = archive.rename(folder.parent / ARCHIVE_FILE)
        unpack(aside, folder, most=most)
        aside.unlink()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).exists():
                raise AdapterFormatError(f"there is no {name} in the archive: pack PEFT's files", key=name)
    if created_at is not None and (folder / MANIFEST_FILE).exists():
        raise AdapterExistsError(f"{MANIFEST_FILE} states already when the adapter was made", key="created")
    if created_at is not None or not packed:
        # It becomes the date of a plain PEFT adapter, and so a part of its digest: the same bytes are to be the same.
        moment = created_at or 0
        os.utime(weights, (moment, moment))


def _question(fields: UploadFields, folder: Path, caller: Caller) -> PublishUpload:
    return PublishUpload(
        adapter=own_name(fields.name, caller.tenant),
        by=caller.key_id,
        folder=str(folder),
        aliases=tuple(dict.fromkeys(fields.alias)),
        template=fields.template,
        labels=tuple(fields.labels) if fields.labels is not None else None,
        multi_label=fields.multi_label,
        score=fields.score,
        dry_run=fields.dry_run,
    )
