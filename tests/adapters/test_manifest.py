"""tenora.json comes back as it was written, and a wrong one names its field."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import AdapterFormatError
from adapters.manifest import Manifest, read_manifest, utc_now, write_manifest

PROMPT = {"template": "plain", "text": "", "sha256": "0" * 64, "golden": {"instruction": "x", "ids": [1, 2]}}
GENERATE: dict[str, Any] = {
    "format": 1,
    "task": "generate",
    "base": {"id": "tenora-base", "revision": None, "fingerprint": "ab" * 32},
    "prompt": PROMPT,
    "max_length": 256,
    "truncation_side": "left",
    "eos": {"text": "</s>", "id": 2},
    "data_sha256": "cd" * 32,
    "recipe": {"lr": 1e-3, "targets": ["q_proj"], "nested": {"a": None}},
    "metrics": {"loss": 0.5},
    "created": "2026-01-31T12:00:00+00:00",
    "tools": {"peft": "0.21.2"},
}
CLASSIFY: dict[str, Any] = GENERATE | {"task": "classify", "prompt": None, "eos": None, "labels": ["no", "yes"]}
SCORE: dict[str, Any] = GENERATE | {"task": "score"}


def write(folder: Path, raw: object) -> Path:
    (folder / "tenora.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


@pytest.mark.parametrize("raw", [GENERATE, CLASSIFY, CLASSIFY | {"problem_type": "multi_label"}, SCORE])
def test_a_manifest_comes_back(tmp_path: Path, raw: dict[str, Any]) -> None:
    manifest = read_manifest(write(tmp_path, raw))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest.recipe["nested"] == {"a": None}


@given(
    st.lists(st.text(), min_size=1, unique=True),
    st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_labels_and_metrics_survive(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], metrics: dict[str, float]
) -> None:
    manifest = Manifest.model_validate(CLASSIFY | {"labels": labels, "metrics": metrics})
    folder = tmp_path_factory.getbasetemp()
    try:
        "".join(labels).encode()
        "".join(metrics).encode()
    except UnicodeEncodeError:
        return
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": 2}, "format"),
        ({"task": "embed"}, "task"),
        ({"base": {"id": "x", "fingerprint": "short"}}, "base.fingerprint"),
        ({"prompt": PROMPT | {"template": "other"}}, "prompt.template"),
        ({"prompt": PROMPT | {"extra": 1}}, "prompt.extra"),
        ({"prompt": None}, "tenora.json"),
        ({"labels": ["a"]}, "tenora.json"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": "many"}, "max_length"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2026-01-31T12:00:00"}, "created"),
        ({"unheard_of": True}, "unheard_of"),
    ],
)
def test_a_wrong_manifest_names_its_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(AdapterFormatError) as caught:
        read_manifest(write(tmp_path, GENERATE | change))
    assert caught.value.key == field


@pytest.mark.parametrize("labels", [None, [], ["a", "a"]])
def test_a_classifier_needs_its_labels(tmp_path: Path, labels: list[str] | None) -> None:
    with pytest.raises(AdapterFormatError, match="label"):
        read_manifest(write(tmp_path, CLASSIFY | {"labels": labels}))


def test_a_manifest_from_before_there_were_several_labels_keeps_its_bytes(tmp_path: Path) -> None:
    """They are part of the digest."""
    manifest = read_manifest(write(tmp_path, CLASSIFY))
    assert (manifest.problem_type, manifest.multi_label) == ("single_label", False)
    write_manifest(tmp_path, manifest)
    assert "problem_type" not in (tmp_path / "tenora.json").read_text()
    several = manifest.model_copy(update={"problem_type": "multi_label"})
    write_manifest(tmp_path, several)
    assert json.loads((tmp_path / "tenora.json").read_text())["problem_type"] == "multi_label"
    assert read_manifest(tmp_path).multi_label


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (SCORE | {"eos": None}, "an eos"),
        (SCORE | {"prompt": None}, "a prompt"),
        (SCORE | {"labels": ["good"]}, "no labels"),
        (SCORE | {"problem_type": "multi_label"}, "for adapters that classify"),
        (GENERATE | {"problem_type": "multi_label"}, "for adapters that classify"),
        (CLASSIFY | {"problem_type": "regression"}, "problem_type"),
    ],
)
def test_what_a_task_needs_and_has_not(tmp_path: Path, raw: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterFormatError, match=words):
        read_manifest(write(tmp_path, raw))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"format": ' + "[" * 5000])
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "tenora.json").write_text(text)
    with pytest.raises(AdapterFormatError):
        read_manifest(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "tenora.json").write_text(" " * (5 * 2**20))
    with pytest.raises(AdapterFormatError, match="larger than"):
        read_manifest(tmp_path)


def test_a_manifest_cannot_be_changed() -> None:
    manifest = Manifest.model_validate(GENERATE | {"created": utc_now()})
    with pytest.raises(ValueError, match="frozen"):
        manifest.task = "classify"  # type: ignore[misc]
