"""Names, listings, and vLLM's routes to load and unload."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.cache import HostCache
from adapters.errors import AdapterFormatError
from adapters.names import AdapterName
from adapters.store import Store
from service.catalog import Catalog
from service.errors import InvalidRequestError
from tests.service.conftest import ACME, ADMIN, ZETA, Home, unguarded
from tests.service.running import RunningServer
from tests.support.tiny import write_peft_adapter


@pytest.fixture
def acme(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {ACME}"}, timeout=30) as client:
        yield client


def text_of(http: httpx.Client, model: str) -> str:
    body = {"model": model, "prompt": "The meal was", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def load(http: httpx.Client, name: str, path: object, **body: Any) -> httpx.Response:
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **body})


def unload(http: httpx.Client, name: str) -> httpx.Response:
    return http.post("/v1/unload_lora_adapter", json={"lora_name": name})


def test_listing_has_vllms_fields(server: RunningServer, home: Home) -> None:
    reply = server.http.get("/v1/models").json()
    assert reply["object"] == "list"
    entries = {entry["id"]: entry for entry in reply["data"]}
    assert {"tiny-llama", "acme/write", "acme/label", "zeta/write"} <= set(entries)
    base, adapter = entries["tiny-llama"], entries["acme/label"]
    assert base["parent"] is None
    assert adapter["parent"] == "tiny-llama"
    assert adapter["root"].startswith("acme/label@")
    assert adapter["owned_by"] == "acme"
    assert adapter["max_model_len"] == 256
    assert adapter["permission"][0]["object"] == "model_permission"
    assert adapter["created"] > 0
    assert str(home.store) not in reply.__repr__()


def test_every_way_to_name_an_adapter(server: RunningServer, acme: httpx.Client, home: Home) -> None:
    store, name = Store(home.store), AdapterName("acme", "write")
    digest = store.aliases(name)["latest"]
    store.set_alias(name, "stable", digest)
    expected = text_of(server.http, "acme/write")
    for model in [f"acme/write@{digest}", f"acme/write@{digest[:8]}", "acme/write:stable", "tiny-llama:acme/write",
                  f"tiny-llama:acme/write@{digest[:12]}"]:  # fmt: skip
        assert text_of(server.http, model) == expected
    for model in ["write", "write:latest", f"write@{digest[:8]}", "tiny-llama:write", "acme/write"]:
        assert text_of(acme, model) == expected
    assert text_of(acme, "tiny-llama") != expected


def test_one_model(server: RunningServer, acme: httpx.Client) -> None:
    assert server.http.get("/v1/models/acme/write").json()["id"] == "acme/write"
    assert acme.get("/v1/models/write:latest").json()["root"].startswith("acme/write@")
    assert server.http.get("/v1/models/tiny-llama").json()["parent"] is None
    assert server.http.get("/v1/models/acme%2Fwrite").json()["id"] == "acme/write"
    assert server.http.get("/v1/models/acme/nothing").status_code == 404


def test_base_is_hashed_live_and_never_changes(server: RunningServer, home: Home) -> None:
    before = server.http.get("/v1/base").json()
    assert before["id"] == "tiny-llama"
    assert before["fingerprint"] == home.base.fingerprint
    assert before["kind"] == "decoder"
    assert before["max_model_len"] == 256
    assert len(before["weights_sha256"]) == 64
    for model in ("acme/write", "zeta/write", "acme/chat"):
        text_of(server.http, model)
    assert server.http.get("/v1/base").json() == before


def test_load_from_an_allowed_folder_and_unload(server: RunningServer, home: Home) -> None:
    http = server.http
    loaded = load(http, "acme/imported", home.folders / "zeta-write")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'acme/imported' added successfully.")
    text_of(http, "acme/imported")
    again = load(http, "acme/imported", home.folders / "zeta-write")
    assert again.status_code == 400
    assert "has already been loaded" in again.json()["error"]["message"]
    gone = unload(http, "acme/imported")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'acme/imported' removed successfully.")
    missing = unload(http, "acme/imported")
    assert missing.status_code == 404
    assert "cannot be found" in missing.json()["error"]["message"]
    assert "acme/imported" not in http.get("/v1/models").text
    assert http.post("/v1/completions", json={"model": "acme/imported", "prompt": "a"}).status_code == 404
    # Unloading destroyed nothing: the name itself is the reference that brings it back.
    assert load(http, "acme/imported", "acme/imported").status_code == 200
    text_of(http, "acme/imported")
    Store(home.store).delete(AdapterName("acme", "imported"))


def test_relative_paths_are_inside_the_allowed_folder(server: RunningServer, home: Home) -> None:
    assert load(server.http, "acme/relative", "zeta-write").status_code == 200
    missing = load(server.http, "acme/absent", home.folders / "absent")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"].startswith("No adapter found")
    Store(home.store).delete(AdapterName("acme", "relative"))


def test_the_bases_name_is_no_adapters(server: RunningServer, acme: httpx.Client, home: Home) -> None:
    """`tiny-llama` means the base; an adapter of that name could be loaded and never reached."""
    refused = load(acme, "tiny-llama", home.folders / "acme-write")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "lora_name"
    assert "base" in refused.json()["error"]["message"]
    assert "acme/tiny-llama" not in server.http.get("/v1/models").text


def test_refusals_tell_the_parameter_and_no_path(server: RunningServer, home: Home) -> None:
    empty = home.folders / "empty"
    empty.mkdir()
    try:
        for path in ("empty", empty, ".", home.folders):
            response = load(server.http, "acme/nothing", path)
            assert 400 <= response.status_code < 500
            assert response.json()["error"]["param"] == "lora_path"
            if path in ("empty", "."):
                assert str(home.folders) not in response.text
                assert str(home.store) not in response.text
        assert response.json()["error"]["code"] == "path_not_allowed"
    finally:
        empty.rmdir()
    for name in ("acme", "acme/UPPER", "acme/a/b"):
        assert load(server.http, name, "zeta-write").json()["error"]["param"] == "lora_name"


def test_paths_of_the_server_are_left_out_of_refusals(home: Home, tmp_path: Path) -> None:
    folder = home.folders / "acme-write"

    class Failing(Store):
        def publish(self, *_: Any, **__: Any) -> Any:
            raise AdapterFormatError(
                f"{folder}/adapter_config.json: [Errno 13] '{self.root}/.staging/x1/adapter_config.json', "
                f"there is no folder {folder}, see /proc/self/fd and a/b",
                key="adapter_config.json",
            )

    catalog = Catalog(
        home.base,
        Failing(tmp_path / "store"),
        HostCache(0, lambda _: None),  # type: ignore[arg-type,return-value]
        unguarded(Store(tmp_path / "store")),
        max_model_len=256,
        max_lora_rank=64,
        folders=(home.folders,),
    )  # type: ignore[arg-type,return-value]
    with pytest.raises(AdapterFormatError) as raised:
        catalog.load("acme/new", "acme-write", None, in_place=False)
    assert raised.value.key == "lora_path"
    assert str(tmp_path) not in raised.value.message
    assert str(home.folders) not in raised.value.message
    assert "/proc" not in raised.value.message
    assert "adapter_config.json: [Errno 13]" in raised.value.message
    assert "no folder acme-write" in raised.value.message
    assert "a/b" in raised.value.message


def test_a_key_reaches_its_own_tenant_only(server: RunningServer, acme: httpx.Client, home: Home) -> None:
    foreign = load(acme, "zeta/stolen", "acme/write")
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "adapter_not_found")
    peek = load(acme, "acme/stolen", "zeta/write")  # a reference to another tenant's is no reference
    unknown = load(acme, "acme/stolen", "zeta/nothing")
    assert peek.status_code == unknown.status_code == 404
    assert unload(acme, "zeta/write").status_code == 404
    assert load(acme, "copy", "write").status_code == 200
    assert text_of(acme, "copy") == text_of(acme, "write")
    Store(home.store).delete(AdapterName("acme", "copy"))


def test_in_place_loading_moves_latest_and_keeps_the_old_version(server: RunningServer, home: Home) -> None:
    http, store, name = server.http, Store(home.store), AdapterName("acme", "swap")
    assert load(http, "acme/swap", home.folders / "acme-write").status_code == 200
    old, digest = text_of(http, "acme/swap"), store.aliases(name)["latest"]
    assert load(http, "acme/swap", home.folders / "zeta-write", load_inplace=True).status_code == 200
    assert text_of(http, "acme/swap") != old
    assert text_of(http, f"acme/swap@{digest}") == old
    assert load(http, "acme/swap", f"acme/swap@{digest[:16]}", load_inplace=True).status_code == 200  # rollback
    assert text_of(http, "acme/swap") == old
    store.delete(name)


def test_hot_swap_under_load(server: RunningServer, home: Home, tmp_path: Path) -> None:
    """Requests in flight while versions change: none fails, each is answered by one version whole."""
    store, name = Store(home.store), AdapterName("acme", "hot")
    folders = [write_peft_adapter(home.base.path, tmp_path / str(seed), r=4, seed=20 + seed) for seed in range(3)]
    expected = {}
    for folder in folders:
        version = store.publish(folder, name, home.base)
        expected[version.digest] = text_of(server.http, f"acme/hot@{version.digest}")
    assert len(set(expected.values())) == 3
    seen: list[tuple[str, str]] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        body = {"model": "acme/hot", "prompt": "The meal was", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        with httpx.Client(base_url=server.url, headers={"X-API-Key": ADMIN}, timeout=30) as http:
            while not stop.is_set():
                response = http.post("/v1/completions", json=body)
                if response.status_code != 200:
                    failures.append(response.text)
                    return
                digest = response.headers["x-tenora-adapter"].partition("@")[2]
                seen.append((digest, response.json()["choices"][0]["text"]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for swap in range(12):
        store.set_alias(name, "latest", list(expected)[swap % 3])
        enough = len(seen) + 4
        while len(seen) < enough and not failures:
            stop.wait(0.005)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert {digest for digest, _ in seen} == set(expected)
    assert all(expected[digest] == text for digest, text in seen)
    store.delete(name)


def test_zetas_key_sees_zetas(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": ZETA}, timeout=30) as zeta:
        listed = [entry["id"] for entry in zeta.get("/v1/models").json()["data"]]
    assert listed == ["tiny-llama", "zeta/label", "zeta/write"]


def test_a_version_that_was_altered_on_disk_is_refused(server: RunningServer, home: Home, tmp_path: Path) -> None:
    name = AdapterName("acme", "altered")
    folder = write_peft_adapter(home.base.path, tmp_path / "adapter", seed=30)
    store = Store(home.store)
    version = store.publish(folder, name, home.base)
    shutil.copyfile(
        home.folders / "acme-write" / "adapter_model.safetensors", version.path / "adapter_model.safetensors"
    )
    response = server.http.post("/v1/completions", json={"model": "acme/altered", "prompt": "a"})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "adapter_invalid"
    store.delete(name)


def test_an_adapter_of_too_high_a_rank_is_refused_before_it_is_served(home: Home, tmp_path: Path) -> None:
    folder = write_peft_adapter(home.base.path, tmp_path / "folders" / "high", r=80, seed=40)
    store = Store(tmp_path / "store")
    catalog = Catalog(
        home.base,
        store,
        HostCache(0, lambda _: None),  # type: ignore[arg-type,return-value]
        unguarded(store),
        max_model_len=256,
        max_lora_rank=64,
        folders=(folder.parent,),
    )
    with pytest.raises(InvalidRequestError, match="rank 80; this server holds ranks up to 64"):
        catalog.load("acme/high", "high", None, in_place=False)
    assert store.names(None) == []
