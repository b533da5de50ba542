"""The base and the adapters that come with the project: what their cards say is what a fresh server reaches."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adapters.adapter import load_adapter
from adapters.base import resolve_base
from adapters.errors import BaseModelError
from adapters.manifest import read_manifest
from adapters.names import AdapterName
from adapters.shipped import publish_shipped
from adapters.store import Store
from models.make_adapters import RECIPES, SHIPPED
from tests.service.running import RunningServer, running
from tests.support.tiny import write_peft_adapter

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEAD_STARTS = {"sentiment": 0.5, "tickets": 0.2}  # what guessing reaches


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLES / f"{name}_heldout.jsonl").read_text().splitlines()]


def other_base(folder: Path) -> Path:
    """The embedded base with other weights."""
    shutil.copytree(resolve_base("embedded").path, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on a store that was not there before."""
    folder = tmp_path_factory.mktemp("shipped")
    with running(folder / "log", arguments=("serve", "--examples"), store=folder / "store") as server:
        yield server


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_adapter_is_whole_and_small(name: str) -> None:
    folder = SHIPPED / name
    adapter = load_adapter(folder, resolve_base("embedded"))
    assert 0 < adapter.weights.max_rank <= 16
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
    assert f"# tenora/{name}" in card
    assert "no license" not in card
    manifest = (folder / "tenora.json").read_text()
    assert "/work" not in card + manifest
    assert "/tmp" not in card + manifest


def test_a_fresh_server_has_them(shipped: RunningServer) -> None:
    listed = {model["id"] for model in shipped.http.get("/v1/models").json()["data"]}
    assert listed == {"tenora-base", *(f"tenora/{name}" for name in RECIPES)}
    assert "adapters  3" in shipped.output()


@pytest.mark.parametrize(("name", "data"), [("sentiment", "reviews"), ("tickets", "tickets")])
def test_classes_are_told_as_well_as_the_card_says(shipped: RunningServer, name: str, data: str) -> None:
    held_out = rows(data)
    stated = read_manifest(SHIPPED / name).metrics["accuracy"]
    assert stated > HEAD_STARTS[name] + 0.2
    right = 0
    for start in range(0, len(held_out), 50):
        part = held_out[start : start + 50]
        body = {"model": f"tenora/{name}", "input": [row["text"] for row in part]}
        answers = shipped.http.post("/v1/classify", json=body).json()["data"]
        right += sum(answer["label"] == row["label"] for answer, row in zip(answers, part, strict=True))
    assert right / len(held_out) == pytest.approx(stated, abs=0.015)


def test_instructions_are_followed_as_well_as_the_card_says(shipped: RunningServer) -> None:
    held_out = rows("instructions")
    stated = read_manifest(SHIPPED / "instruct").metrics["exact_match"]
    assert stated > 0.4
    right = 0
    for row in held_out:
        body = {"model": "tenora/instruct", "instruction": row["instruction"], "input": row["input"]}
        answer = shipped.http.post("/v1/instruct", json={**body, "temperature": 0, "max_tokens": 40}).json()
        right += answer["choices"][0]["text"].strip() == row["output"]
    assert right / len(held_out) == pytest.approx(stated, abs=0.015)


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    base, store = resolve_base("embedded"), Store(tmp_path / "store")
    first = publish_shipped(store, base)
    assert [str(version.name) for version in first] == [f"tenora/{name}" for name in sorted(RECIPES)]
    other = write_peft_adapter(base.path, tmp_path / "other")
    own = store.publish(other, AdapterName("tenora", "instruct"), base)
    assert publish_shipped(store, base) == []
    assert store.aliases(own.name)["latest"] == own.digest


def test_one_of_an_older_base_gets_a_new_version(tmp_path: Path) -> None:
    base, store = resolve_base("embedded"), Store(tmp_path / "store")
    older = other_base(tmp_path / "older")
    old = resolve_base(str(older))
    assert old.fingerprint != base.fingerprint
    stale = store.publish(write_peft_adapter(older, tmp_path / "stale"), AdapterName("tenora", "instruct"), old)
    publish_shipped(store, base)
    assert len(store.versions(stale.name)) == 2
    assert store.aliases(stale.name)["latest"] != stale.digest


def test_they_belong_to_the_embedded_base(tmp_path: Path) -> None:
    other = other_base(tmp_path / "tenora-base")
    with pytest.raises(BaseModelError, match="belong to the base tenora-base that they came with"):
        publish_shipped(Store(tmp_path / "store"), resolve_base(str(other)))
    same = tmp_path / "same"
    shutil.copytree(resolve_base("embedded").path, same)
    assert len(publish_shipped(Store(tmp_path / "store"), resolve_base(str(same)))) == 3


def test_a_server_of_another_base_says_so(tmp_path: Path) -> None:
    other = other_base(tmp_path / "other")
    arguments = ("serve", "--examples", "--base", str(other))
    with running(tmp_path / "log", arguments=arguments, wait=False, store=tmp_path / "store") as server:
        assert server.process.wait(60) == 2
        assert "the example adapters belong to the base tenora-base" in server.output()
        assert "Traceback" not in server.output()
