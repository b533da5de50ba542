"""Adapters that must not be imported, and paths that lead astray, over a real server."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base import resolve_base
from adapters.names import AdapterName
from adapters.store import Store
from adapters.templates import PromptTemplate
from tests.service.conftest import Home
from tests.service.running import RunningServer
from tests.service.test_bad_input import INSTRUCT, complete, refused
from tests.support.tiny import tiny_base, write_peft_adapter


@pytest.fixture
def broken(home: Home) -> Iterator[Path]:
    """A copy of a good adapter inside the allowed folder, to be broken by a test."""
    folder = home.folders / "broken"
    shutil.copytree(home.folders / "acme-write", folder)
    yield folder
    shutil.rmtree(folder)


def load(server: RunningServer, name: str, path: object, **body: Any) -> httpx.Response:
    return server.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **body})


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def not_served(server: RunningServer) -> None:
    refused(complete(server, model="acme/broken"), 404, "model_not_found", "model")
    assert "acme/broken" not in server.http.get("/v1/models").text


def test_adapter_with_nan(server: RunningServer, broken: Path) -> None:
    rewrite(broken, lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    response = load(server, "acme/broken", broken)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "adapter_invalid"
    not_served(server)


def test_adapter_with_wrong_shapes(server: RunningServer, broken: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if "lora_A" in key)
        tensors[key] = tensors[key][:, ::2].contiguous()

    rewrite(broken, halve)
    response = load(server, "acme/broken", broken)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "adapter_mismatch")
    assert "lora_A" in response.json()["error"]["message"]
    not_served(server)


def test_adapter_with_missing_keys(server: RunningServer, broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors.pop(next(key for key in tensors if "lora_B" in key)))
    response = load(server, "acme/broken", broken)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "adapter_mismatch")
    assert "lora_B" in response.json()["error"]["message"]
    not_served(server)


def test_adapter_of_another_base(server: RunningServer, home: Home, tmp_path: Path) -> None:
    other = tiny_base("llama", tmp_path / "other", seed=5)
    folder = write_peft_adapter(other, tmp_path / "adapter")
    version = Store(tmp_path / "store").publish(folder, AdapterName("acme", "other"), resolve_base(str(other)))
    inside = home.folders / "of-another-base"
    shutil.copytree(version.path, inside)
    try:
        response = load(server, "acme/broken", inside)
    finally:
        shutil.rmtree(inside)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "adapter_mismatch")
    assert "other" in error["message"]
    assert "tiny-llama" in error["message"]
    not_served(server)


def test_pickled_adapter(server: RunningServer, broken: Path) -> None:
    (broken / "adapter_model.safetensors").unlink()
    torch.save({}, broken / "adapter_model.bin")
    response = load(server, "acme/broken", broken)
    assert response.status_code == 422
    assert "pickle" in response.json()["error"]["message"]
    not_served(server)


def test_dora_is_refused_by_name(server: RunningServer, broken: Path) -> None:
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    response = load(server, "acme/broken", broken)
    assert response.json()["error"]["code"] == "adapter_unsupported"
    assert "use_dora" in response.text
    not_served(server)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "acme/../evil",
        "acme/..",
        "/etc",
        "acme/a/b",
        "acme",
        "Acme/x",
        "acme/x@12345678",
        "acme/ x",
        "a/\u0000",
    ],
)
def test_path_tricks_in_names(server: RunningServer, home: Home, name: str) -> None:
    response = load(server, name, home.folders / "acme-write")
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_adapter_name"


@pytest.mark.parametrize(
    "path",
    ["/etc", "../store/acme", "/", "~", "../../../../etc/passwd", "a\u0000b", "x" * 4000, "acme-write/../../store"],
)
def test_paths_outside_the_allowed_folders(server: RunningServer, path: str) -> None:
    response = load(server, "acme/broken", path)
    assert response.status_code in (400, 404), response.text
    assert response.json()["error"]["param"] == "lora_path"
    not_served(server)


def test_what_exists_outside_is_not_told(server: RunningServer, home: Home) -> None:
    there = load(server, "acme/broken", home.store)
    absent = load(server, "acme/broken", home.store.parent / "absent")
    refused(there, 400, "path_not_allowed", "lora_path")
    refused(absent, 400, "path_not_allowed", "lora_path")


def test_links_out_of_the_allowed_folders(server: RunningServer, home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(home.folders / "acme-write", outside)
    link = home.folders / "link"
    link.symlink_to(outside)
    inner = home.folders / "inner"
    inner.mkdir()
    for file in outside.iterdir():
        (inner / file.name).symlink_to(file)
    try:
        refused(load(server, "acme/broken", link), 400, "path_not_allowed", "lora_path")
        assert load(server, "acme/broken", inner).status_code == 422
    finally:
        link.unlink()
        shutil.rmtree(inner)
    not_served(server)


def test_a_template_that_loops(server: RunningServer, home: Home, broken: Path) -> None:
    # Harmless for the golden prompt, endless for a message that asks for it.
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    text = "{% if 'loop' in instruction %}" + loop + "{% endif %}{{ instruction }}"
    name = AdapterName("acme", "loops")
    store = Store(home.store)
    store.publish(broken, name, home.base, template=PromptTemplate.from_text(text))
    try:
        fine = server.http.post(INSTRUCT, json={"model": "acme/loops", "instruction": "go", "max_tokens": 1})
        assert fine.status_code == 200, fine.text
        endless = server.http.post(INSTRUCT, json={"model": "acme/loops", "instruction": "loop"}, timeout=20)
        assert endless.status_code == 400
        assert endless.json()["error"]["code"] == "template_error"
    finally:
        store.delete(name)
