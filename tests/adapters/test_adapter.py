"""A whole adapter: its parts have to agree with each other and with the base."""

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from adapters.adapter import infer_manifest, load_adapter
from adapters.base import BaseSource, resolve_base
from adapters.config import HEAD_ONLY
from adapters.errors import AdapterFormatError, AdapterMismatchError, TemplateError
from adapters.manifest import EosSpec, write_manifest
from adapters.templates import PromptInput, PromptTemplate
from tests.adapters.conftest import Break
from tests.support.tiny import peft_model, tiny_base, write_peft_adapter


def with_manifest(folder: Path, base: BaseSource, **options: Any) -> Path:
    write_manifest(folder, infer_manifest(folder, base, **options))
    return folder


def change(folder: Path, **fields: Any) -> Path:
    path = folder / "tenora.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_an_adapter_that_generates(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    alpaca = PromptTemplate.named("alpaca")
    folder = with_manifest(copy_of("gpt2-generate"), bases["gpt2"], template=alpaca)
    adapter = load_adapter(folder, bases["gpt2"], ref="acme/support")
    assert (adapter.ref, adapter.template, adapter.manifest.labels) == ("acme/support", alpaca, None)
    assert adapter.nbytes == adapter.weights.nbytes > 0
    assert re.fullmatch("[0-9a-f]{64}", adapter.digest)
    assert load_adapter(folder, bases["gpt2"], digest=adapter.digest).digest == adapter.digest


def test_an_adapter_that_classifies(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    labels = ("bad", "so-so", "good")
    folder = with_manifest(copy_of("distilbert-classify"), bases["distilbert"], labels=labels)
    adapter = load_adapter(folder, bases["distilbert"])
    assert (adapter.manifest.task, adapter.manifest.labels, adapter.template) == ("classify", labels, None)


def test_peft_still_loads_the_folder(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = with_manifest(copy_of("llama-classify"), bases["llama"])
    assert PeftModel.from_pretrained(peft_model(bases["llama"].path, task="classify", num_labels=3), folder)


def test_another_base_of_the_same_shape_is_refused_with_both_names(
    copy_of: Break, bases: dict[str, BaseSource], tmp_path: Path
) -> None:
    folder = with_manifest(copy_of("gpt2-generate"), bases["gpt2"])
    other = resolve_base(str(tiny_base("gpt2", tmp_path / "sister", seed=7)))
    with pytest.raises(AdapterMismatchError, match=r"'gpt2'.*'sister'") as caught:
        load_adapter(folder, other)
    assert caught.value.key == "base.fingerprint"
    assert bases["gpt2"].fingerprint[:12] in str(caught.value)
    assert other.fingerprint[:12] in str(caught.value)


def test_altered_bytes_are_noticed(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = with_manifest(copy_of("gpt2-generate"), bases["gpt2"])
    digest = load_adapter(folder, bases["gpt2"]).digest
    change(folder, metrics={"loss": 0.0})
    with pytest.raises(AdapterFormatError, match="not those that were published"):
        load_adapter(folder, bases["gpt2"], digest=digest)


def test_altered_weights_are_noticed(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = with_manifest(copy_of("gpt2-generate"), bases["gpt2"])
    digest = load_adapter(folder, bases["gpt2"]).digest
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-4] ^= 1  # the lowest bit of a number: nothing else is wrong with it
    (folder / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(AdapterFormatError, match="not those that were published"):
        load_adapter(folder, bases["gpt2"], digest=digest)


def test_labels_have_to_be_as_many_as_the_heads(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = with_manifest(copy_of("bert-classify"), bases["bert"], labels=("a", "b"))
    with pytest.raises(AdapterMismatchError, match="names 2 labels, but the head has 3"):
        load_adapter(folder, bases["bert"])


def test_the_manifests_task_has_to_be_the_weights_own(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    generate = with_manifest(copy_of("llama-generate"), bases["llama"])
    classify = with_manifest(copy_of("llama-classify"), bases["llama"])
    texts = [(folder / "tenora.json").read_text() for folder in (generate, classify)]
    for folder, text, there in (
        (generate, texts[1], "no classification head"),
        (classify, texts[0], "a classification"),
    ):
        (folder / "tenora.json").write_text(text)
        with pytest.raises(AdapterMismatchError, match=there) as caught:
            load_adapter(folder, bases["llama"])
        assert caught.value.key == "task"


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"max_length": 257}, "max_length"),
        ({"eos": {"text": "<|endoftext|>", "id": 5}}, "eos"),
        ({"eos": {"text": "</s>", "id": 2}}, "eos"),
    ],
)
def test_what_the_base_does_not_have(
    copy_of: Break, bases: dict[str, BaseSource], fields: dict[str, Any], key: str
) -> None:
    folder = change(with_manifest(copy_of("gpt2-generate"), bases["gpt2"]), **fields)
    with pytest.raises(AdapterMismatchError) as caught:
        load_adapter(folder, bases["gpt2"])
    assert caught.value.key == key


def test_a_changed_chat_template_is_noticed_even_where_no_golden_prompt_sees_it(
    copy_of: Break, bases: dict[str, BaseSource], tmp_path: Path
) -> None:
    chatty = tiny_base("gpt2", tmp_path / "chatty")
    before = resolve_base(str(chatty))
    folder = with_manifest(copy_of("gpt2-generate"), before, template=PromptTemplate.named("chat"))
    load_adapter(folder, before)
    (template,) = chatty.glob("*.jinja")
    template.write_text(template.read_text() + "{% if messages[0].role == 'system' %}!{% endif %}")
    moved = Path(chatty.rename(tmp_path / "chatty-2"))
    with pytest.raises(TemplateError, match="chat template"):
        load_adapter(folder, resolve_base(str(moved)))


def test_altered_golden_ids_and_hashes_are_refused(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = with_manifest(copy_of("gpt2-generate"), bases["gpt2"])
    prompt = json.loads((folder / "tenora.json").read_text())["prompt"]
    change(folder, prompt=prompt | {"golden": prompt["golden"] | {"ids": [1, 2, 3]}})
    with pytest.raises(TemplateError, match="golden prompt"):
        load_adapter(folder, bases["gpt2"])
    change(folder, prompt=prompt | {"sha256": "0" * 64})
    with pytest.raises(TemplateError, match="sha256"):
        load_adapter(folder, bases["gpt2"])


def test_a_template_that_loops_is_refused_when_it_is_loaded(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    loops = "{% for a in instruction %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match="steps"):
        infer_manifest(copy_of("gpt2-generate"), bases["gpt2"], template=PromptTemplate.from_text(loops))


def test_a_missing_manifest_is_named(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    with pytest.raises(AdapterFormatError, match=r"tenora\.json is missing"):
        load_adapter(copy_of("gpt2-generate"), bases["gpt2"])


# What a plain PEFT folder does not say


def test_what_is_inferred_is_recorded(peft_folders: dict[str, Path], bases: dict[str, BaseSource]) -> None:
    generate = infer_manifest(peft_folders["gpt2-generate"], bases["gpt2"])
    assert generate.prompt is not None
    assert (generate.task, generate.prompt.template, generate.max_length) == ("generate", "chat", 256)
    assert generate.recipe == {"inferred": ["max_length", "prompt"]}
    assert generate.eos is not None
    assert generate.eos.id == 0
    classify = infer_manifest(peft_folders["roberta-classify"], bases["roberta"])
    assert (classify.task, classify.labels) == ("classify", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert classify.recipe == {"inferred": ["max_length", "labels"]}
    assert classify.tools["peft"]


def test_the_same_folder_has_the_same_manifest(peft_folders: dict[str, Path], bases: dict[str, BaseSource]) -> None:
    first, second = (infer_manifest(peft_folders["gpt2-generate"], bases["gpt2"]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("key", "task"), [("llama-generate", "generate"), ("llama-classify", "classify")])
def test_the_task_is_seen_by_the_head(copy_of: Break, bases: dict[str, BaseSource], key: str, task: str) -> None:
    folder = copy_of(key)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": None}))
    manifest = infer_manifest(folder, bases["llama"])
    assert manifest.task == task
    assert "task" in json.dumps(manifest.recipe["inferred"])


def test_what_does_not_fit_the_task_is_refused(peft_folders: dict[str, Path], bases: dict[str, BaseSource]) -> None:
    with pytest.raises(AdapterMismatchError, match="this one generates"):
        infer_manifest(peft_folders["gpt2-generate"], bases["gpt2"], labels=("a", "b"))
    with pytest.raises(AdapterMismatchError, match="this one classifies"):
        infer_manifest(peft_folders["gpt2-classify"], bases["gpt2"], template=PromptTemplate.named("plain"))


# Heads whose numbers mean something else


@pytest.fixture(scope="module")
def reward(bases: dict[str, BaseSource], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters with a head of one number, by base."""
    root = tmp_path_factory.mktemp("reward")
    options: dict[str, dict[str, Any]] = {"llama": {}, "bert": {"targets": HEAD_ONLY, "exclude_modules": None}}
    return {
        kind: write_peft_adapter(bases[kind].path, root / kind, task="classify", num_labels=1, **more)
        for kind, more in options.items()
    }


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_head_of_one_number_scores_if_it_is_said_so(
    reward: dict[str, Path], bases: dict[str, BaseSource], tmp_path: Path, kind: str
) -> None:
    folder, alpaca = Path(shutil.copytree(reward[kind], tmp_path / "a")), PromptTemplate.named("alpaca")
    assert infer_manifest(folder, bases[kind]).task == "classify"
    adapter = load_adapter(with_manifest(folder, bases[kind], score=True, template=alpaca), bases[kind])
    assert (adapter.manifest.task, adapter.manifest.labels, adapter.template) == ("score", None, alpaca)
    assert adapter.manifest.eos == EosSpec(text="<|endoftext|>", id=0)
    assert adapter.manifest.max_length == bases[kind].max_length
    (folder / "tenora.json").unlink()
    inferred = infer_manifest(folder, bases[kind], score=True)
    assert inferred.prompt is not None
    assert inferred.prompt.template == ("chat" if kind == "llama" else "plain")
    change(with_manifest(folder, bases[kind], score=True), eos={"text": "<|pad|>", "id": 1})
    with pytest.raises(AdapterMismatchError, match="what is scored ends in") as caught:
        load_adapter(folder, bases[kind])
    assert caught.value.key == "eos"


def test_a_score_is_one_number(copy_of: Break, bases: dict[str, BaseSource], reward: dict[str, Path]) -> None:
    three = with_manifest(copy_of("llama-classify"), bases["llama"])
    said = infer_manifest(reward["llama"], bases["llama"], score=True)
    write_manifest(three, said)
    with pytest.raises(AdapterMismatchError, match="one number, but the head has 3") as caught:
        load_adapter(three, bases["llama"])
    assert caught.value.key == "task"
    generates = copy_of("llama-generate")
    write_manifest(generates, said)
    with pytest.raises(AdapterMismatchError, match="says score, but the weights have no classification head"):
        load_adapter(generates, bases["llama"])


def test_several_labels_at_once(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = with_manifest(copy_of("llama-classify"), bases["llama"], labels=("a", "b", "c"), multi_label=True)
    manifest = load_adapter(folder, bases["llama"]).manifest
    assert (manifest.task, manifest.problem_type) == ("classify", "multi_label")


@pytest.mark.parametrize(
    ("key", "said", "at"),
    [
        ("gpt2-generate", {"score": True}, "score"),
        ("gpt2-generate", {"multi_label": True}, "multi_label"),
        ("gpt2-classify", {"score": True, "labels": ("a",)}, "labels"),
        ("gpt2-classify", {"score": True, "multi_label": True}, "multi_label"),
        ("gpt2-classify", {"multi_label": True, "template": PromptTemplate.named("plain")}, "template"),
    ],
)
def test_what_is_said_has_to_fit(
    peft_folders: dict[str, Path], bases: dict[str, BaseSource], key: str, said: dict[str, Any], at: str
) -> None:
    with pytest.raises(AdapterMismatchError) as caught:
        infer_manifest(peft_folders[key], bases["gpt2"], **said)
    assert caught.value.key == at


def test_an_adapter_is_a_value(copy_of: Break, bases: dict[str, BaseSource]) -> None:
    adapter = load_adapter(with_manifest(copy_of("gpt2-generate"), bases["gpt2"]), bases["gpt2"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        adapter.ref = "x"  # type: ignore[misc]
    assert adapter.template is not None
    assert adapter.template.encode(bases["gpt2"].tokenizer(), PromptInput.from_instruction("x"))


def test_lora_on_the_output_head_is_no_classifier(bases: dict[str, BaseSource], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells that it saves the head's own weight too
        folder = write_peft_adapter(bases["llama"].path, tmp_path / "a", targets=["lm_head"])
    assert infer_manifest(folder, bases["llama"]).task == "generate"
