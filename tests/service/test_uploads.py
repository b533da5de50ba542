"""Uploads that are cancelled leave nothing: no folder, no lock, no place taken among the tenant's."""

import asyncio
import contextlib
import random
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.requests import Request

from adapters.disk import locked, make_folder
from service.errors import ClientGoneError, EngineUnavailableError, QueueFullError
from service.routes.uploads import upload_adapter
from service.settings import Settings
from service.state import ServiceState
from service.uploads import AT_ONCE, Uploads, in_thread
from tests.service.conftest import ADMIN, KEYS, Home
from tests.service.running import eventually, running
from tests.service.test_uploads_refused import BEGIN, BOUNDARY, HEAD

PIECE = 1 << 20


def check_nothing_is_left(root: Path, uploads: Uploads) -> None:
    """What was cancelled is over the moment that its task is."""
    assert not list((root / ".uploads").glob("*"))
    with locked(root / ".locks" / "uploads", wait=False):
        pass
    assert not +uploads._under_way


def lock_of(root: Path) -> Path:
    make_folder(root / ".locks")
    return root / ".locks" / "uploads"


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


def test_cancelled_before_its_folder_is_there(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)

    async def upload() -> None:
        async with uploads.folder("acme"):
            raise AssertionError("it never comes so far")

    async def cancel() -> None:
        task = asyncio.create_task(upload())
        with locked(lock_of(tmp_path)):  # another process clears up meanwhile
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.sleep(0.1)
        await cancelled(task)
        check_nothing_is_left(tmp_path, uploads)

    asyncio.run(cancel())


def test_cancelled_while_something_is_written(tmp_path: Path) -> None:
    """What a thread has begun is waited for: it would write into a folder that is being removed."""
    uploads, began = Uploads(tmp_path), threading.Event()

    def write(folder: Path) -> None:
        began.set()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            make_folder(folder / "adapter")
            (folder / "adapter" / "more").touch()

    async def upload() -> None:
        async with uploads.folder("acme") as folder:
            await in_thread(write, folder)

    async def cancel() -> None:
        task = asyncio.create_task(upload())
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        await cancelled(task)  # told twice
        check_nothing_is_left(tmp_path, uploads)

    asyncio.run(cancel())


def test_what_fails_in_a_thread_is_told() -> None:
    def fail() -> None:
        raise OSError("no")

    async def run() -> None:
        assert await in_thread(int, "7") == 7
        with pytest.raises(OSError, match="no"):
            await in_thread(fail)

    asyncio.run(run())


def request(uploads: Uploads, pieces: AsyncIterator[bytes], store: Path) -> Request:
    """An upload that comes piece by piece."""
    app = FastAPI()
    nobody = cast(Any, None)
    settings = Settings(store=store)
    app.state.service = ServiceState(settings, nobody, nobody, nobody, nobody, nobody, nobody, nobody, uploads)

    async def receive() -> dict[str, Any]:
        async for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        return {"type": "http.disconnect"}

    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/adapters", "headers": headers, "app": app, "state": {}}
    return Request(scope, receive)


async def endless() -> AsyncIterator[bytes]:
    yield BEGIN
    while True:
        yield b"PK" * (PIECE // 2)
        await asyncio.sleep(0)


def test_cancelled_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    uploads, chance = Uploads(tmp_path), random.Random(7)

    async def cancel() -> None:
        for _ in range(40):
            task = asyncio.create_task(upload_adapter(request(uploads, endless(), tmp_path)))
            await asyncio.sleep(chance.uniform(0, 0.02))
            await cancelled(task)
            check_nothing_is_left(tmp_path, uploads)

    asyncio.run(cancel())


def test_a_server_that_stops_gives_uploads_up(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)

    async def stop() -> None:
        task = asyncio.create_task(upload_adapter(request(uploads, endless(), tmp_path)))
        await asyncio.sleep(0.05)
        uploads.end_all()
        with pytest.raises(EngineUnavailableError, match="send the upload again"):
            await task
        check_nothing_is_left(tmp_path, uploads)
        with pytest.raises(EngineUnavailableError, match="send the upload again"):
            await upload_adapter(request(uploads, endless(), tmp_path))  # one that comes later is not begun
        check_nothing_is_left(tmp_path, uploads)
        # Cancelled by whoever waits for no answer, it is that and nothing else.
        others = Uploads(tmp_path)
        task = asyncio.create_task(upload_adapter(request(others, endless(), tmp_path)))
        await asyncio.sleep(0.05)
        others.end_all()
        await cancelled(task)
        check_nothing_is_left(tmp_path, others)

    asyncio.run(stop())


def test_whoever_hangs_up_makes_room(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)

    async def broken() -> AsyncIterator[bytes]:
        yield BEGIN + b"PK" * PIECE

    async def hang_up() -> None:
        for _ in range(AT_ONCE + 1):
            with pytest.raises(ClientGoneError):
                await upload_adapter(request(uploads, broken(), tmp_path))
            check_nothing_is_left(tmp_path, uploads)
        tasks = [asyncio.create_task(upload_adapter(request(uploads, endless(), tmp_path))) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError):
            await upload_adapter(request(uploads, broken(), tmp_path))
        for task in tasks:
            await cancelled(task)
        check_nothing_is_left(tmp_path, uploads)

    asyncio.run(hang_up())


def test_a_server_that_stops_leaves_nothing(home: Home, tmp_path: Path) -> None:
    settings = {**home.settings, "store": str(home.copied(tmp_path / "store")), "drain_timeout": 1}
    with running(tmp_path / "log", key=ADMIN, api_keys=KEYS, **settings) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(HEAD.encode() + b"Content-Length: 50000000\r\n\r\n" + BEGIN + b"PK" * PIECE)
            arriving = tmp_path / "store" / ".uploads"
            eventually(lambda: any(arriving.glob("*/adapter/*")), what="a file on its way")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
        assert not list(arriving.iterdir())
