"""Uploads that are no adapters, or worse: each refused in one sentence, and nothing of it stays."""

import io
import json
import pickle
import socket
import struct
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save

from adapters.base import resolve_base
from adapters.names import AdapterName
from adapters.store import Store
from tests.service.conftest import ACME, ADMIN, KEYS, Home
from tests.service.running import RunningServer, eventually, running
from tests.service.uploading import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    Files,
    archive,
    contents,
    parts,
    tarred,
    tree,
    upload,
    zipped,
)
from tests.support.tiny import tiny_base, write_peft_adapter


@pytest.fixture
def plain(home: Home) -> Path:
    """A good adapter in a plain PEFT folder."""
    return home.folders / "acme-write"


def refused(response: httpx.Response, status: int, param: str | None, *words: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    for word in words:
        assert word in error["message"], error
    assert "/tmp" not in error["message"], "a path of ours"


class Watched:
    """Uploads to a server, none of which may leave a trace."""

    def __init__(self, server: RunningServer, store: Path) -> None:
        self.server = server
        self.store = store
        self.before = tree(store)

    def __call__(self, files: Files, name: str = "acme/bad", **fields: Any) -> httpx.Response:
        return upload(self.server, files, name, **fields)

    def check(self) -> None:
        eventually(lambda: tree(self.store) == self.before, what=f"{tree(self.store) ^ self.before} gone")
        assert self.server.http.get("/v1/adapters/acme/bad").status_code == 404
        assert self.server.http.get("/v1/events?adapter=acme/bad").json()["data"] == []


@pytest.fixture
def watched(publisher: RunningServer, published: Path) -> Iterator[Watched]:
    made = Watched(publisher, published)
    yield made
    made.check()


def changed(folder: Path, change: Any) -> bytes:
    tensors = load((folder / WEIGHTS).read_bytes())
    change(tensors)
    return save(tensors)


def pickled() -> bytes:
    made = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, made)
    return made.getvalue()


@pytest.mark.parametrize("data", [pickle.dumps({"a": 1}), pickled()], ids=["plain", "torch"])
def test_pickles_named_otherwise(watched: Watched, plain: Path, data: bytes) -> None:
    refused(watched(parts(plain, weights=data)), 422, WEIGHTS, "pickle", "safetensors")
    inside = contents(plain) | {WEIGHTS: data}
    refused(watched(archive(zipped(inside))), 422, WEIGHTS, "pickle")


def test_pickles_in_archives(watched: Watched, plain: Path) -> None:
    inside = contents(plain) | {"adapter_model.bin": pickled()}
    refused(watched(archive(zipped(inside))), 422, "adapter_model.bin", "pickle", "leave it out")
    refused(watched(archive(tarred({"training_args.bin": b"\x80\x02"}))), 422, "training_args.bin", "pickle")
    itself = watched(archive(pickled()))
    assert (itself.status_code, itself.json()["error"]["code"]) == (422, "adapter_invalid")


def link(kind: bytes, name: str = WEIGHTS) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tars(watched: Watched, plain: Path, kind: bytes) -> None:
    made = tarred({CONFIG: (plain / CONFIG).read_bytes(), WEIGHTS: link(kind)})
    refused(watched(archive(made)), 422, WEIGHTS, "link", "pack the files")


def test_links_in_zips(watched: Watched, plain: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        member = zipfile.ZipInfo(WEIGHTS)
        member.create_system, member.external_attr = 3, 0o120777 << 16
        file.writestr(member, "/etc/passwd")
    refused(watched(archive(made.getvalue())), 422, WEIGHTS, "link")


@pytest.mark.parametrize("name", [f"../{WEIGHTS}", f"/{WEIGHTS}", f"a/../{WEIGHTS}", f"..\\{WEIGHTS}", f"a/b/{CONFIG}"])
def test_paths_that_lead_elsewhere(watched: Watched, name: str) -> None:
    for made in (zipped({name: b"x"}), tarred({name: b"x"}), tarred({name: b"x"}, "w")):
        refused(watched(archive(made)), 422, name, "pack")


def test_strangers_duplicates_and_crowds_in_archives(watched: Watched, plain: Path) -> None:
    good = contents(plain)
    refused(watched(archive(zipped(good | {"run.py": b"1/0"}))), 422, "run.py", "leave it out", MANIFEST)
    refused(watched(archive(tarred({f"./{CONFIG}": b"{}", CONFIG: b"{}"}))), 422, CONFIG, "twice")
    refused(watched(archive(tarred({f"a/{CONFIG}": b"{}", f"b/{WEIGHTS}": b"x"}))), 422, f"b/{WEIGHTS}", "folder")
    folders = {f"{number}/": b"" for number in range(70)}
    refused(watched(archive(zipped(folders))), 422, "archive", "64")
    refused(watched(archive(zipped({f"{number:06}.png": b"" for number in range(5000)}))), 422, "archive", "tables")


def test_tables_that_would_fill_the_memory(watched: Watched) -> None:
    """A header of a tar that says of itself that it has a gigabyte, and gzip that inflates to one."""
    member = tarfile.TarInfo(CONFIG)
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    made = tarred({}, "w")
    bomb = member.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 22) + made
    refused(watched(archive(bomb)), 422, "archive", "tables")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x1f\x8b", b"neither", bytes(2000)])
def test_what_is_no_archive(watched: Watched, data: bytes) -> None:
    response = watched(archive(data))
    # A tar that is nothing but its end is an archive of no files.
    refused(response, 422, CONFIG if data == bytes(2000) else "archive")


def test_an_archive_that_breaks_off(watched: Watched, plain: Path) -> None:
    for made in (tarred(contents(plain)), tarred(contents(plain), "w"), zipped(contents(plain))):
        refused(watched(archive(made[: len(made) // 2])), 422, "archive", "cannot be read")


def test_archives_without_what_is_needed(watched: Watched, plain: Path) -> None:
    refused(watched(archive(zipped({WEIGHTS: (plain / WEIGHTS).read_bytes()}))), 422, CONFIG, "no adapter_config.json")
    refused(watched(archive(tarred({CONFIG: (plain / CONFIG).read_bytes()}))), 422, WEIGHTS, "no adapter_model")


def test_another_base(watched: Watched, tmp_path: Path) -> None:
    other = tiny_base("llama", tmp_path / "other", seed=5)
    made = write_peft_adapter(other, tmp_path / "adapter")
    version = Store(tmp_path / "store").publish(made, AdapterName("acme", "other"), resolve_base(str(other)))
    refused(watched(parts(version.path)), 422, "base.fingerprint", "other", "tiny-llama", "train it again")


def test_wrong_keys_shapes_and_values(watched: Watched, plain: Path) -> None:
    first = min(load((plain / WEIGHTS).read_bytes()))

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first.replace("layers.0", "layers.99")] = tensors.pop(first)

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first] = tensors[first][:, ::2].contiguous()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first][0, 0] = torch.nan

    refused(watched(parts(plain, weights=changed(plain, halve))), 422, first, "shapes")
    refused(watched(parts(plain, weights=changed(plain, spoil))), 422, first, "NaN", "checkpoint")
    wrong = watched(parts(plain, weights=changed(plain, rename)))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "adapter_mismatch")
    assert "layers" in wrong.json()["error"]["param"]
    config = json.loads((plain / CONFIG).read_bytes())
    refused(watched(parts(plain, config=json.dumps(config | {"use_dora": True}).encode())), 422, "use_dora", "DoRA")
    refused(watched(parts(plain, config=json.dumps(config | {"r": 999}).encode())), 400, "config", "999", "64")
    refused(watched(parts(plain, config=b"{")), 422, CONFIG, "JSON")
    refused(watched(parts(plain, manifest=b"{}")), 422, "task", MANIFEST)


def test_forms_that_are_wrong(watched: Watched, plain: Path) -> None:
    good = parts(plain)
    refused(watched(parts(plain, config=None)), 400, "config", "required")
    refused(watched(good, colour="red"), 400, "colour", "not a field")
    refused(watched([*good, ("model", ("x", b""))]), 400, "model", "not a field")
    refused(watched([*good, good[0]]), 400, "config", "more than once")
    refused(watched(good, "acme/x y"), 400, "name", "lower-case")
    refused(watched(good, "acme/bad", alias="Not An Alias"), 400, "alias", "lower-case")
    refused(watched(good, template="alpacca"), 400, "template", "alpaca")
    refused(watched(good, dry_run="perhaps"), 400, "dry_run")
    refused(watched(good, labels=["a", "b"]), 422, "labels", "generates")
    refused(watched(good, created="yesterday"), 400, "created")
    refused(watched([*good, ("archive", ("a.zip", b"PK"))]), 400, "card", "both")
    refused(watched([*good, ("plot", ("../a.png", b""))]), 400, "plot", ".png")
    refused(watched(good, "tiny-llama/tiny-llama"), 400, "name", "base")
    missing = watched.server.http.post("/v1/adapters", files=good)
    refused(missing, 400, "name", "required")
    refused(watched.server.http.post("/v1/adapters", json={"name": "acme/bad"}), 400, None, "multipart/form-data")
    stranger = upload(watched.server, good, "zeta/bad", key=ACME)
    refused(stranger, 404, "name", "zeta/bad")


def test_a_key_that_may_not_publish_sends_nothing(watched: Watched, plain: Path) -> None:
    made = watched.server.http.post("/admin/v1/keys", json={"tenant": "acme", "scopes": ["infer"]}).json()
    response = upload(watched.server, parts(plain), "acme/bad", key=made["key"])
    refused(response, 403, None, "publish")


BOUNDARY = "xxyyzz"
HEAD = (
    f"POST /v1/adapters HTTP/1.1\r\nHost: x\r\nX-API-Key: {ADMIN}\r\n"
    f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
)
BEGIN = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n\r\n'.encode()


def exchange(port: int, head: str, *body: bytes) -> bytes:
    """Send bytes as they are; the answer, read until its JSON ends or the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(head.encode() + b"\r\n")
        for piece in body:
            raw.sendall(piece)
        answer = b""
        while not answer.endswith(b"}}") and (more := raw.recv(65536)):
            answer += more
    return answer


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def test_a_form_that_ends_in_a_part(watched: Watched) -> None:
    head = HEAD + "Transfer-Encoding: chunked\r\nConnection: close\r\n"
    answer = exchange(watched.server.port, head, chunked(BEGIN + b"PK" * 100), b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"send it whole" in answer


def test_a_client_that_hangs_up(watched: Watched) -> None:
    with socket.create_connection(("127.0.0.1", watched.server.port), timeout=10) as raw:
        raw.sendall(HEAD.encode() + b"Content-Length: 5000000\r\n\r\n" + BEGIN + bytes(2_000_000))
        eventually(lambda: any((watched.store / ".uploads").glob("*/adapter/*")), what="a file on its way")


def sparse(size: int) -> bytes:
    """The head of a safetensors file of one tensor with a key that no base has; zeros follow."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size // 4 * 4]}}).encode()
    return struct.pack("<Q", len(header)) + header


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def test_memory_does_not_grow_with_an_upload(watched: Watched, plain: Path, tmp_path: Path) -> None:
    size = 200 * 10**6
    file = tmp_path / "big"
    with file.open("wb") as made:
        start = sparse(size)
        made.write(start)
        made.truncate(len(start) + size)
    pid = watched.server.http_pid()
    watched(parts(plain, weights=b"x" * 100_000))  # what every upload takes is there
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = peak_kib(pid)
    config = (CONFIG, (plain / CONFIG).read_bytes())
    with file.open("rb") as weights:
        response = watched.server.http.post(
            "/v1/adapters", data={"name": "acme/bad"}, files={"config": config, "weights": (WEIGHTS, weights)}
        )
    refused(response, 422, "w", "keys")
    grown = (peak_kib(pid) - before) / 1024
    assert grown < 40, f"{grown:.0f} MiB more"


@pytest.fixture(scope="module")
def strict(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that takes a megabyte, and no second longer than one."""
    root = tmp_path_factory.mktemp("strict")
    settings = {**home.settings, "store": str(root / "store"), "max_upload_bytes": 1 << 20, "upload_timeout": 1.0}
    with running(root / "log", key=ADMIN, api_keys=KEYS, **settings) as started:
        yield started


@pytest.fixture
def bounded(strict: RunningServer) -> Iterator[Watched]:
    (strict.log.parent / "store").mkdir(exist_ok=True)
    made = Watched(strict, strict.log.parent / "store")
    yield made
    eventually(lambda: not tree(made.store), what="an empty store")


def test_bombs_are_cut_off(bounded: Watched, plain: Path) -> None:
    bomb = sparse(1 << 28) + bytes(1 << 25)
    config = (plain / CONFIG).read_bytes()
    for made in (zipped({CONFIG: config, WEIGHTS: bomb}), tarred({CONFIG: config, WEIGHTS: bomb})):
        assert len(made) < 1 << 19
        refused(bounded(archive(made)), 422, "archive", "more than 1048576 bytes", "smaller")
    many = {f"{number}.png": bytes(10**6 - 1) for number in range(3)}
    refused(bounded(archive(tarred(many))), 422, "archive", "1048576", "together")
    refused(bounded(parts(plain, card=bytes(10**6 + 1))), 422, "README.md", "1000000")


def test_too_large_announced_and_in_chunks(bounded: Watched) -> None:
    announced = exchange(bounded.server.port, HEAD + "Content-Length: 9999999999\r\n", BEGIN)
    assert announced.startswith(b"HTTP/1.1 413")
    pieces = [chunked(BEGIN)] + [chunked(bytes(1 << 18))] * 5
    answer = exchange(bounded.server.port, HEAD + "Transfer-Encoding: chunked\r\n", *pieces)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer


def test_a_client_that_goes_on_sending_reads_the_answer(bounded: Watched, plain: Path) -> None:
    """It is told what is wrong with the first megabyte although it has three more on its way."""
    files = [*parts(plain, weights=b"\x80" + bytes(900_000))]
    refused(bounded(files), 422, WEIGHTS, "pickle")
    refused(bounded(parts(plain, weights=sparse(1 << 24) + bytes(1 << 24))), 413, None, "1048576")


def test_a_body_that_does_not_come(bounded: Watched) -> None:
    began = time.monotonic()
    answer = exchange(bounded.server.port, HEAD + "Content-Length: 1000\r\n", BEGIN + b"PK")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer
    assert time.monotonic() - began < 20
