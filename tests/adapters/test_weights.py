"""Exact loading: what PEFT writes is read to the last bit, and each way of being wrong has its own clear error."""

import functools
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.base import BaseSource
from adapters.config import HEAD_ONLY, read_lora_config
from adapters.errors import AdapterFormatError, AdapterMismatchError, AdapterUnsupportedError
from adapters.weights import AdapterWeights, load_weights
from tests.adapters.conftest import TARGETS, Break
from tests.support.tiny import peft_model, write_peft_adapter

FILE = "adapter_model.safetensors"
ROOT = "base_model.model."
HEAD_ALONE: dict[str, Any] = {"task": "classify", "targets": HEAD_ONLY, "exclude_modules": None}
Q0 = ROOT + "model.layers.0.self_attn.q_proj"


def load(folder: Path, base: BaseSource) -> AdapterWeights:
    return load_weights(folder, read_lora_config(folder), base)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    return folder


def edit_config(folder: Path, **fields: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.mark.parametrize(
    ("kind", "task", "options"),
    [
        ("gpt2", "generate", {"r": 3, "alpha": 5, "rank_pattern": {"c_attn": 6}}),
        ("llama", "generate", {"r": 4, "use_rslora": True, "alpha_pattern": {"q_proj": 3}}),
        ("qwen3", "classify", {"r": 2, "alpha": 9}),
        ("gpt2", "classify", {"r": 2}),
        ("distilbert", "classify", {"r": 4, "alpha": 32}),
        ("bert", "classify", {"rank_pattern": {"pooler.dense": 7}}),
        ("roberta", "classify", {"r": 1}),
    ],
)
def test_every_delta_and_head_tensor_is_pefts(
    bases: dict[str, BaseSource], tmp_path: Path, kind: str, task: str, options: dict[str, Any]
) -> None:
    base = bases[kind]
    if kind in TARGETS:
        options = {**options, "targets": TARGETS[kind]}
    folder = write_peft_adapter(base.path, tmp_path / "adapter", task=task, num_labels=4, **options)
    weights = load(folder, base)
    model = PeftModel.from_pretrained(peft_model(base.path, task=task, num_labels=4), folder)
    inner = model.base_model.model
    layers = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    assert {base.architecture().peft_name(module) for module in weights.pairs} == set(layers)
    for module, pair in weights.pairs.items():
        delta = layers[base.architecture().peft_name(module)].get_delta_weight("default")
        ours = pair.scaling * pair.b @ pair.a
        torch.testing.assert_close(ours, delta.T if kind == "gpt2" else delta)
        assert base.linear_shapes()[module] == (pair.a.shape[1], pair.b.shape[0])
    state = inner.state_dict()
    for name, tensor in weights.head.items():
        module, _, leaf = name.rpartition(".")
        holder = module.split(".")[0]
        rest = f".{module.partition('.')[2]}" if "." in module else ""
        torch.testing.assert_close(tensor, state[f"{holder}.modules_to_save.default{rest}.{leaf}"])
    assert weights.num_labels == (4 if task == "classify" else None)
    assert set(weights.head) == (set(base.head_shapes(4)) if task == "classify" else set())


def test_sizes(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    options = {"r": 2, "rank_pattern": {"q_proj": 5}, "targets": ["q_proj", "v_proj"]}
    weights = load(write_peft_adapter(bases["llama"].path, tmp_path / "a", **options), bases["llama"])
    assert weights.max_rank == 5
    assert weights.nbytes == 4 * 2 * (5 * (32 + 32) + 2 * (32 + 16))


def test_lora_on_the_output_head(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    for kind in ("llama", "gpt2"):  # gpt2's output head is tied to its embeddings
        base = bases[kind]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT tells that it saves the head's own weight too
            folder = write_peft_adapter(base.path, tmp_path / kind, targets=["lm_head"])
        key = ROOT + "lm_head.base_layer.weight"
        assert key in load_file(folder / FILE)
        pair = load(folder, base).pairs["lm_head"]
        assert pair.b.shape == (320, 4)
        assert pair.b.untyped_storage().nbytes() == pair.b.nbytes, "the copy stays in memory"
        changed = {key: torch.zeros(320, 32)}
        edit(folder, functools.partial(_update, changed))
        with pytest.raises(AdapterUnsupportedError, match="differs from the base's output head"):
            load(folder, base)


def _update(changed: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    tensors.update(changed)


def test_head_keys_of_older_versions(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors[ROOT + "score.modules_to_save.default.weight"] = tensors.pop(ROOT + "score.weight")

    assert set(load(edit(copy_of("llama-classify"), rename), bases["llama"]).head) == {"score.weight"}


def test_a_head_does_not_keep_the_pairs_in_memory(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    for tensor in load(copy_of("llama-classify"), bases["llama"]).head.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_other_float_types_are_kept(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = edit(copy_of("llama-generate"), lambda t: t.update({k: v.to(torch.bfloat16) for k, v in t.items()}))
    assert load(folder, bases["llama"]).pairs["layers.0.self_attn.q_proj"].a.dtype == torch.bfloat16


def test_the_tensors_outlive_the_file(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = copy_of("llama-generate")
    weights = load(folder, bases["llama"])
    before = {module: pair.a.clone() for module, pair in weights.pairs.items()}
    size = (folder / FILE).stat().st_size
    (folder / FILE).write_bytes(b"\xff" * size)
    for module, pair in weights.pairs.items():
        assert torch.equal(pair.a, before[module])


# Wrong base


def test_an_adapter_of_another_architecture_matches_nothing(
    peft_folders: dict[str, Path], bases: dict[str, BaseSource]
) -> None:
    with pytest.raises(AdapterMismatchError, match="no key of the adapter matches") as caught:
        load(peft_folders["gpt2-generate"], bases["llama"])
    assert "transformer.h.0" in str(caught.value)
    assert "model.layers.0" in str(caught.value)


def test_an_adapter_that_generates_on_an_encoder(bases: dict[str, BaseSource], copy_of: Break) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "classifier" in name]:
            del tensors[name]

    folder = edit_config(edit(copy_of("bert-classify"), drop), task_type="CAUSAL_LM", modules_to_save=None)
    with pytest.raises(AdapterMismatchError, match="only classifies"):
        load(folder, bases["bert"])


# Wrong shapes


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (f"{Q0}.lora_A.weight", (4, 33)),
        (f"{Q0}.lora_A.weight", (5, 32)),
        (f"{Q0}.lora_B.weight", (4, 32)),
        (f"{Q0}.lora_B.weight", (32,)),
        (f"{Q0}.lora_B.weight", (32, 4, 1)),
        (f"{Q0}.lora_B.weight", (0, 4)),
    ],
)
def test_wrong_shapes_name_key_and_both_shapes(
    copy_of: Break, bases: dict[str, BaseSource], key: str, shape: tuple[int, ...]
) -> None:
    folder = edit(copy_of("llama-generate"), lambda tensors: tensors.update({key: torch.zeros(shape)}))
    with pytest.raises(AdapterMismatchError, match="shapes differ") as caught:
        load(folder, bases["llama"])
    assert caught.value.key == key
    assert str(list(shape)) in str(caught.value)


def test_a_rank_that_the_config_does_not_state(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    with pytest.raises(AdapterMismatchError, match=r"\+25 more") as caught:
        load(edit_config(copy_of("llama-generate"), r=8), bases["llama"])
    assert "not [8, 32]" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "name", "shape"),
    [
        ("llama-classify", "score.weight", (3, 31)),
        ("llama-classify", "score.weight", (32,)),
        ("llama-classify", "score.weight", ()),
        ("bert-classify", "classifier.bias", (4,)),
        ("distilbert-classify", "pre_classifier.weight", (32, 31)),
        ("roberta-classify", "classifier.out_proj.weight", (0, 32)),
    ],
)
def test_wrong_head_shapes(
    copy_of: Break, bases: dict[str, BaseSource], key: str, name: str, shape: tuple[int, ...]
) -> None:
    folder = edit(copy_of(key), lambda tensors: tensors.update({ROOT + name: torch.zeros(shape)}))
    with pytest.raises(AdapterMismatchError, match="shapes of the head differ"):
        load(folder, bases[key.split("-", maxsplit=1)[0]])


# Missing and unknown keys


def test_half_a_pair(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = edit(copy_of("llama-generate"), lambda tensors: tensors.pop(f"{Q0}.lora_B.weight"))
    with pytest.raises(AdapterMismatchError, match="halves of pairs are missing") as caught:
        load(folder, bases["llama"])
    assert caught.value.key == f"{Q0}.lora_B.weight"


def test_a_targeted_module_without_tensors(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for half in ("A", "B"):
            del tensors[f"{Q0}.lora_{half}.weight"]

    with pytest.raises(AdapterMismatchError, match="target_modules names linears") as caught:
        load(edit(copy_of("llama-generate"), drop), bases["llama"])
    assert caught.value.key == f"{Q0}.lora_A.weight"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("llama-classify", "score.weight"),
        ("distilbert-classify", "pre_classifier.bias"),
        ("roberta-classify", "classifier.dense.weight"),
    ],
)
def test_a_missing_head_tensor(copy_of: Break, bases: dict[str, BaseSource], key: str, name: str) -> None:
    folder = edit(copy_of(key), lambda tensors: tensors.pop(ROOT + name))
    with pytest.raises(AdapterMismatchError, match="head are missing") as caught:
        load(folder, bases[key.split("-", maxsplit=1)[0]])
    assert caught.value.key == name


def test_a_module_that_the_base_does_not_have(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors[ROOT + "model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)
        tensors[ROOT + "model.layers.7.self_attn.q_proj.lora_B.weight"] = torch.zeros(32, 4)

    with pytest.raises(AdapterMismatchError, match=r"no linear of these names: .*layers\.7"):
        load(edit(copy_of("llama-generate"), add), bases["llama"])


@pytest.mark.parametrize(
    "key", ["q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.weight", f"{Q0}.lora_A.default.weight"]
)
def test_keys_that_peft_does_not_write(copy_of: Break, bases: dict[str, BaseSource], key: str) -> None:
    folder = edit(copy_of("llama-generate"), lambda tensors: tensors.update({key: torch.zeros(4, 32)}))
    with pytest.raises(AdapterMismatchError, match="does not write") as caught:
        load(folder, bases["llama"])
    assert caught.value.key == key


def test_no_tensors_at_all(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    with pytest.raises(AdapterMismatchError, match="no tensors"):
        load(edit(copy_of("llama-generate"), lambda tensors: tensors.clear()), bases["llama"])


def test_a_head_without_lora_changes_nothing_else(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "lora_" in name]:
            del tensors[name]

    with pytest.raises(AdapterMismatchError, match="no LoRA tensors"):
        load(edit(copy_of("llama-classify"), drop), bases["llama"])


# A head alone


@pytest.mark.parametrize("kind", ["gpt2", "llama", "distilbert", "bert", "roberta"])
def test_a_head_alone_is_read_as_peft_reads_it(bases: dict[str, BaseSource], tmp_path: Path, kind: str) -> None:
    base = bases[kind]
    folder = write_peft_adapter(base.path, tmp_path / "a", num_labels=3, **HEAD_ALONE)
    assert HEAD_ONLY == DUMMY_TARGET_MODULES
    weights = load(folder, base)
    assert (weights.pairs, weights.max_rank, weights.num_labels) == ({}, 0, 3)
    assert set(weights.head) == set(base.head_shapes(3))
    assert weights.nbytes == sum(tensor.nbytes for tensor in weights.head.values()) > 0
    model = PeftModel.from_pretrained(peft_model(base.path, task="classify", num_labels=3), folder)
    state = model.base_model.model.state_dict()
    for name, tensor in weights.head.items():
        holder, _, rest = name.partition(".")
        torch.testing.assert_close(tensor, state[f"{holder}.modules_to_save.default.{rest}"])


def test_a_head_alone_with_lora_tensors_is_refused(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    """PEFT would not load them, so the adapter would not be what was trained."""
    folder = edit_config(copy_of("llama-classify"), target_modules=HEAD_ONLY)
    with pytest.raises(AdapterMismatchError, match="PEFT would leave these LoRA tensors out") as caught:
        load(folder, bases["llama"])
    assert caught.value.key == ROOT + "model.layers.0.mlp.down_proj"


def test_neither_pairs_nor_a_head(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells that it saves the head's own weight too
        folder = write_peft_adapter(bases["llama"].path, tmp_path / "a", targets=["lm_head"])
    edit_config(folder, target_modules=HEAD_ONLY)

    def drop(tensors: dict[str, Tensor]) -> None:  # what is left is the base's own output head
        for name in [name for name in tensors if "lora_" in name]:
            del tensors[name]

    with pytest.raises(AdapterMismatchError, match="neither LoRA tensors nor a head"):
        load(edit(folder, drop), bases["llama"])


# Not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [f"{Q0}.lora_B.weight", ROOT + "score.weight"])
def test_values_that_are_not_finite(copy_of: Break, bases: dict[str, BaseSource], value: float, name: str) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name][-1, -1] = value

    with pytest.raises(AdapterFormatError, match="not finite") as caught:
        load(edit(copy_of("llama-classify"), spoil), bases["llama"])
    assert caught.value.key == name


def test_integers_are_no_weights(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    key = f"{Q0}.lora_A.weight"
    folder = edit(
        copy_of("llama-generate"), lambda tensors: tensors.update({key: torch.zeros(4, 32, dtype=torch.int8)})
    )
    with pytest.raises(AdapterFormatError, match="not float32"):
        load(folder, bases["llama"])


# Pickles and broken files


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("the-pickle-was-opened",)


def test_a_pickle_is_refused_and_never_opened(
    copy_of: Break, bases: dict[str, BaseSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy_of("llama-generate")
    (folder / FILE).rename(folder / "adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(AdapterFormatError, match="pickle and is never opened"):
        load(folder, bases["llama"])
    (folder / "adapter_model.bin").rename(folder / FILE)
    with pytest.raises(AdapterFormatError, match="a pickle under another name"):
        load(folder, bases["llama"])
    torch.save({"x": torch.zeros(1)}, folder / FILE)
    with pytest.raises(AdapterFormatError, match="a pickle under another name"):
        load(folder, bases["llama"])
    assert not (tmp_path / "the-pickle-was-opened").exists()


def test_a_pickle_beside_the_safetensors_is_refused(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = copy_of("llama-generate")
    (folder / "adapter_model.bin").symlink_to("/no/such/file")
    with pytest.raises(AdapterFormatError, match="pickle"):
        load(folder, bases["llama"])


def test_a_cut_file_and_a_missing_file(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = copy_of("llama-generate")
    whole = (folder / FILE).read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / FILE).write_bytes(whole[:length])
        with pytest.raises(AdapterFormatError, match="no safetensors file"):
            load(folder, bases["llama"])
    (folder / FILE).unlink()
    with pytest.raises(AdapterFormatError, match="is missing"):
        load(folder, bases["llama"])


# What is not served


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (ROOT + "model.embed_tokens.lora_embedding_A", "LoRA on embeddings"),
        (f"{Q0}.lora_magnitude_vector", "DoRA"),
        (f"{Q0}.lora_B.bias", "a bias on lora_B"),
        (f"{Q0}.lora_diag", "KaSA"),
        (ROOT + "model.embed_tokens.token_adapter.trainable_tokens_delta", "trained token embeddings"),
    ],
)
def test_tensors_of_other_kinds_of_adapter_are_refused_by_name(
    copy_of: Break, bases: dict[str, BaseSource], key: str, what: str
) -> None:
    folder = edit(copy_of("llama-generate"), lambda tensors: tensors.update({key: torch.zeros(4)}))
    with pytest.raises(AdapterUnsupportedError, match=what) as caught:
        load(folder, bases["llama"])
    assert caught.value.key == key


def test_whole_modules_other_than_the_head_are_refused_by_name(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    base = bases["llama"]
    generate = write_peft_adapter(base.path, tmp_path / "g", targets=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(AdapterUnsupportedError, match="modules_to_save: lm_head"):
        load(generate, base)
    classify = write_peft_adapter(
        base.path, tmp_path / "c", task="classify", targets=["q_proj"], modules_to_save=["norm"]
    )
    with pytest.raises(
        AdapterUnsupportedError, match=r"modules_to_save: model\.layers\.0\.input_layernorm|model\.norm"
    ):
        load(classify, base)


def test_a_listed_module_without_tensors_is_refused_too(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    for key, fields in (("llama-classify", ["score", "embed_tokens"]), ("llama-generate", ["embed_tokens"])):
        with pytest.raises(AdapterUnsupportedError, match="modules_to_save: embed_tokens"):
            load(edit_config(copy_of(key), modules_to_save=fields), bases["llama"])


def test_a_resized_vocabulary_is_refused(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    key = ROOT + "model.embed_tokens.weight"
    folder = edit(copy_of("llama-generate"), lambda tensors: tensors.update({key: torch.zeros(330, 32)}))
    with pytest.raises(AdapterUnsupportedError, match="a resized vocabulary"):
        load(folder, bases["llama"])


def test_the_head_may_be_listed_by_any_of_its_modules(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    for listed in (["classifier", "pre_classifier"], ["classifier"], None):
        folder = copy_of("distilbert-classify")
        assert load(edit_config(folder, modules_to_save=listed), bases["distilbert"]).num_labels == 3
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
