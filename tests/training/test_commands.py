"""Each task from the command to an adapter that the engine serves."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.conftest import INSTRUCTIONS, REVIEWS, write_jsonl
from tests.training.running import ROOT, SMALL, Command, encoded, flags_of
from tests.training.served import assert_served_as_trained, published
from training.reporting.results import read_results

Tiny = Callable[[str], Path]
BESIDE = {"report.json", "README.md", "loss.png"}


def assert_told(folder: Path) -> None:
    """The run's folder and the published version tell of the run."""
    results = read_results(folder / "run/results.json")
    version = published(folder)
    assert results.published is not None
    assert version.digest == results.published.digest
    assert {path.name for path in version.path.iterdir()} >= BESIDE
    assert (version.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    report = read_results(version.path / "report.json")
    assert (report.task, report.after.metrics) == (results.task, results.after.metrics)
    manifest = version.manifest.model_dump_json()
    assert str(folder) not in manifest
    assert str(folder) not in (version.path / "README.md").read_text()
    assert not list((folder / "run/checkpoints").glob("step-*"))


def test_instruct(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    """Once as a user types it, with the environment between flags and defaults."""
    base = tiny("gpt2")
    flags = flags_of(data=instructions, base=base, publish="acme/mine", output=tmp_path / "run", epochs=2, rank=2)
    flags += flags_of(batch_size=4, eval_every=2, answer_tokens=8, device="cpu")
    done = subprocess.run(
        [sys.executable, "-m", "training", "instruct", *flags],
        cwd=ROOT,
        env={**os.environ, "TENORA_STORE": str(tmp_path / "store"), "TENORA_LR": "0.02", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for said in ("18 training rows, 2 validation", "epoch 2/2", "left", "validation loss", "sample: Name the"):
        assert said in done.stdout
    for said in ("before", "after", "exact match", "tenora serve", "tenora ask acme/mine", "tenora report acme/mine"):
        assert said in done.stdout
    results = read_results(tmp_path / "run/results.json")
    assert results.after.metrics["loss"] < results.before.metrics["loss"]
    assert [point.step for point in results.history] == [0, 1, 3, 5, 7, 9, 10]
    with (tmp_path / "run/results.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) >= 10
    version = published(tmp_path)
    manifest = version.manifest
    assert (manifest.task, manifest.base.id, manifest.recipe["lr"]) == ("generate", "tiny-gpt2", 0.02)
    saved = json.loads((version.path / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["fan_in_fan_out"]) == ("tiny-gpt2", True)
    assert_told(tmp_path)
    examples = encoded("instruct", tmp_path, data=instructions, base=str(base)).examples.train
    assert_served_as_trained(base, version.path, [row.ids[: row.prompt_length + 2] for row in examples[:5]])


@pytest.mark.parametrize("task", ["classify", "tags", "text", "reward"])
def test_the_other_tasks(
    tiny: Tiny, reviews: Path, tagged: Path, texts: Path, pairs: Path, tmp_path: Path, task: str
) -> None:
    data = {"classify": reviews, "tags": tagged, "text": texts, "reward": pairs}[task]
    base = tiny({"classify": "distilbert", "tags": "gpt2", "text": "llama", "reward": "llama"}[task])
    name = "classify" if task == "tags" else task
    places = flags_of(output=tmp_path / "run", store=tmp_path / "store", publish="acme/mine")
    given = flags_of(**{**SMALL, "data": data, "base": base, "epochs": 3})
    stdout = Command(tmp_path / "said", name, *given, *places).finish()
    said = {
        "classify": ("accuracy", "This one is a pass.", "tenora classify acme/mine"),
        "tags": ("macro F1", "tenora classify acme/mine"),
        "text": ("perplexity", "tenora ask acme/mine"),
        "reward": ("pair", "over", "tenora score acme/mine"),
    }[task]
    for words in said:
        assert words in stdout
    version = published(tmp_path)
    kinds = {"classify": "classify", "tags": "classify", "text": "generate", "reward": "score"}
    assert version.manifest.task == kinds[task]
    results = read_results(tmp_path / "run/results.json")
    assert results.after.metrics["loss"] < results.before.metrics["loss"]
    assert_told(tmp_path)
    examples = encoded(name, tmp_path, data=data, base=str(base)).examples.train
    labels = {"classify": 2, "tags": 2, "text": 0, "reward": 1}[task]
    means = {"classify": "softmax", "tags": "sigmoid", "text": "", "reward": "number"}[task]
    rows = [row.ids[:-1] for row in examples[:5]]
    assert_served_as_trained(base, version.path, rows, labels=labels, means=means)
    if task == "classify":
        assert version.manifest.labels == ("negative", "positive")
        assert results.after.metrics["accuracy"] == 1.0
        assert len(results.after.sentences) == 5


def test_bad_rows_stop_the_command_before_the_base_is_looked_for(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [INSTRUCTIONS[0], {"instruction": "x"}, [1]])
    process = Command(tmp_path, "instruct", *flags_of(data=file, base=tmp_path / "nowhere"))
    assert (process.wait(), process.stdout) == (2, "")
    assert "line 2: " in process.stderr
    assert "'output'" in process.stderr
    assert "line 3: a JSON list, not an object" in process.stderr
    assert "Traceback" not in process.stderr


def test_numbers_as_labels_and_names_for_them(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\n" + "".join(f"{row['text']},{int(row['label'] == 'positive')}\n" for row in REVIEWS))
    task = encoded("classify", tmp_path, data=file, base=str(tiny("bert")), labels="negative,positive")
    assert task.manifest_fields()["labels"] == ("negative", "positive")
    assert {row.labels for row in task.rows.train if row.text.startswith("good")} == {(1,)}
