"""Whole runs on tiny bases: train, compare, reload, publish."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file

from adapters.adapter import load_adapter
from adapters.base import resolve_base
from adapters.names import AdapterRef
from adapters.store import Store
from tests.support.tiny import peft_model
from tests.training.conftest import INSTRUCTIONS, REVIEWS, write_jsonl
from training import pipeline
from training import publish as publishing
from training.config import TrainConfig, make_config
from training.errors import DataError, PublishError, TrainingError
from training.run import train

Tiny = Callable[[str], Path]
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"rank": 2, "epochs": 2, "batch_size": 8, "lr": 0.02, "device": "cpu"}


def config(task: str, tmp_path: Path, **flags: Any) -> TrainConfig:
    places = {"output": tmp_path / "run", "store": tmp_path / "store", "publish": "acme/mine"}
    return make_config(task, {**SMALL, **places, **flags})


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def command(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has children ignore ^C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_the_command_trains_and_publishes_an_instruction_adapter(
    tiny: Tiny, instructions: Path, tmp_path: Path
) -> None:
    output, store = tmp_path / "run", tmp_path / "store"
    process = command(
        *("instruct", "--data", str(instructions), "--base", str(tiny("gpt2")), "--publish", "acme/cook"),
        *("--output", str(output), "--epochs", "2", "--rank", "2", "--batch-size", "4", "--eval-every", "2"),
        TENORA_STORE=str(store),
        TENORA_LR="0.02",
    )
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr) == (0, "")
    for said in ("18 training rows, 2 validation", "epoch 2/2", "left", "validation loss", "sample: Name the"):
        assert said in stdout
    for said in ("before", "after", "exact match", "best epoch by validation loss", "tenora serve", "tenora ask"):
        assert said in stdout

    results = json.loads((output / "results.json").read_text())
    assert results["after"]["loss"] < results["before"]["loss"]
    assert [point["step"] for point in results["history"]] == [0, 2, 4, 5, 6, 8, 10]
    assert results["logits_difference_after_reload"] < 1e-4
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    with (output / "results.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["step"]) for line in lines] == list(range(11))
    assert lines[0]["train_loss"] == ""
    assert lines[10]["validation_loss"] != ""

    version = Store(store).resolve(AdapterRef.parse("acme/cook"))
    assert version.digest == results["published"]["digest"]
    manifest = version.manifest
    assert (manifest.task, manifest.base.id, manifest.recipe["lr"]) == ("generate", "tiny-gpt2", 0.02)
    assert str(tmp_path) not in manifest.model_dump_json()
    assert manifest.eos is not None
    assert manifest.prompt is not None
    saved = json.loads((version.path / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["fan_in_fan_out"]) == ("tiny-gpt2", True)


def test_the_command_trains_and_publishes_a_classifier(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\n" + "".join(f"{row['text']},{int(row['label'] == 'positive')}\n" for row in REVIEWS))
    process = command(
        *("classify", "--data", str(file), "--base", str(tiny("distilbert")), "--labels", "negative,positive"),
        *("--epochs", "3", "--rank", "2", "--batch-size", "8", "--lr", "0.02", "--output", str(tmp_path / "run")),
        *("--publish", "acme/mood", "--store", str(tmp_path / "store")),
    )
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr) == (0, "")
    for said in ("accuracy", "This one is a pass.", "wrong", "best epoch by validation accuracy", "tenora classify"):
        assert said in stdout
    version = Store(tmp_path / "store").resolve(AdapterRef.parse("acme/mood"))
    assert version.manifest.labels == ("negative", "positive")
    assert version.manifest.truncation_side == "left"
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["after"]["accuracy"] == 1.0
    assert len(results["after"]["sentences"]) == 5


def test_bad_rows_stop_the_command_before_the_base_is_looked_for(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [INSTRUCTIONS[0], {"instruction": "x"}, [1]])
    process = command("instruct", "--data", str(file), "--base", str(tmp_path / "nowhere"))
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stdout) == (2, "")
    assert "line 2: no column 'output' — add it" in stderr
    assert "line 3: a JSON list, not an object" in stderr
    assert "Traceback" not in stderr


def test_an_interrupt_ends_cleanly_and_publishes_nothing(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    process = command(
        *("instruct", "--data", str(instructions), "--base", str(tiny("llama")), "--epochs", "5000"),
        *("--output", str(tmp_path / "run"), "--publish", "acme/cook", "--store", str(tmp_path / "store")),
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if line.startswith("epoch 1:"):
                process.send_signal(signal.SIGINT)
                break
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert stderr.strip() == "tenora: stopped; nothing was published"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "bert", "roberta"])
def test_a_published_classifier_is_the_trained_one(tiny: Tiny, reviews: Path, tmp_path: Path, kind: str) -> None:
    trained = _train_and_keep(config("classify", tmp_path, data=reviews, base=str(tiny(kind))))
    _same_by_peft(trained, tiny(kind), tmp_path, "classify")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_published_writer_is_the_trained_one(tiny: Tiny, instructions: Path, tmp_path: Path, kind: str) -> None:
    settings = {"data": instructions, "base": str(tiny(kind)), "template": "chat", "loss": "all", "answers": 0}
    trained = _train_and_keep(config("instruct", tmp_path, **settings))
    _same_by_peft(trained, tiny(kind), tmp_path, "generate")


def _train_and_keep(run: TrainConfig) -> tuple[Any, Any]:
    """Train; return the task and the model as it was when it was verified."""
    kept: list[tuple[Any, Any]] = []
    verify = publishing.verify

    def keep(task: Any, model: Any, folder: Path) -> float:
        kept.append((task, model))
        return verify(task, model, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "verify", keep)
        train(run, quiet())
    return kept[0]


def _same_by_peft(trained: tuple[Any, Any], base: Path, tmp_path: Path, task_name: str) -> None:
    task, model = trained
    version = Store(tmp_path / "store").resolve(AdapterRef.parse("acme/mine"))
    fresh = peft_model(base, task=task_name)
    fresh.config.pad_token_id = task.pad_id
    loaded = PeftModel.from_pretrained(fresh, version.path)
    torch.testing.assert_close(publishing.probe(task, loaded), publishing.probe(task, model), rtol=1e-4, atol=1e-4)
    plain = publishing.probe(task, task.load_model())
    assert (publishing.probe(task, model) - plain).abs().max() > 1e-2


def test_the_best_epoch_is_published_not_the_last(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    # A rate this high ruins what the first epochs have learned.
    settings = {"lr": 0.3, "epochs": 4, "metric": "loss", "warmup": 0, "schedule": "constant"}
    results = train(config("classify", tmp_path, data=reviews, base=str(tiny("distilbert")), **settings), quiet())
    losses = [point["validation"]["loss"] for point in results["history"][1:]]
    best = results["best"]["epoch"]
    assert results["best"]["loss"] == min(losses)
    published = Store(tmp_path / "store").resolve(AdapterRef.parse("acme/mine")).path
    folders = sorted((tmp_path / "run/checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["epoch-1", "epoch-2", "epoch-3", "epoch-4"]
    same = [_bytes(folder) == _bytes(published) for folder in folders]
    assert same == [epoch == best for epoch in range(1, 5)]


def _bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_lost_head_is_not_published(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    run = config("classify", tmp_path, data=reviews, base=str(tiny("distilbert")))

    verify = publishing.verify

    def spoil(task: Any, model: Any, folder: Path) -> float:
        tensors = load_file(folder / "adapter_model.safetensors")
        name = next(name for name in tensors if name.endswith("classifier.weight"))
        save_file({**tensors, name: torch.zeros_like(tensors[name])}, folder / "adapter_model.safetensors")
        return verify(task, model, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "verify", spoil)
        with pytest.raises(PublishError, match="answers otherwise than the trained model"):
            train(run, quiet())
    assert not (tmp_path / "store").exists()


def test_a_loss_that_is_not_finite_names_the_rows(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    run = config("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")), lr=1e30, clip=0, warmup=0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+, on the rows at \d+, .*: lower --lr"):
        train(run, quiet())


def test_the_same_seed_gives_the_same_adapter(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    losses = []
    for seed in (1, 1, 2):
        run = config("instruct", tmp_path, data=instructions, base=str(tiny("llama")), seed=seed, answers=0)
        losses.append([point["train_loss"] for point in train(run, quiet())["history"]])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_bfloat16_arithmetic_keeps_float32_weights(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    run = config("instruct", tmp_path, data=instructions, base=str(tiny("llama")), dtype="bfloat16", answers=0)
    results = train(run, quiet())
    assert results["after"]["loss"] < results["before"]["loss"]
    tensors = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_without_publish_the_folder_is_ready_for_it(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    run = config("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")), publish=None, answers=0)
    console = quiet()
    results = train(run, console)
    assert results["published"] is None
    assert isinstance(console.file, io.StringIO)
    assert "next: tenora adapters publish" in console.file.getvalue()
    load_adapter(tmp_path / "run/adapter", resolve_base(str(tiny("gpt2"))))


def test_drop_last_may_not_leave_nothing(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    run = config("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")), drop_last=True, batch_size=64)
    with pytest.raises(TrainingError, match="--drop-last leaves no batch of 64 out of 18 rows"):
        train(run, quiet())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"publish": "No Name"}, "tenant/name"),
        ({"base": "no such base"}, "hub id"),
        ({"template": "chat", "base": "minilm-is-missing/"}, "hub id"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    instructions: Path, tmp_path: Path, flags: dict[str, str], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        train(config("instruct", tmp_path, data=instructions, **flags), quiet())


def test_a_missing_extra_is_named(instructions: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "training.pipeline", None)
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ModuleNotFoundError):
            train(config("instruct", tmp_path, data=instructions), quiet())
        patch.delitem(sys.modules, "training.pipeline")
        patch.delitem(sys.modules, "training.fit", raising=False)
        with pytest.raises(TrainingError, match=r"pip install 'tenora\[train\]'"):
            train(config("instruct", tmp_path, data=instructions), quiet())


def test_bad_rows_are_an_error_of_the_run(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 1.5}])
    with pytest.raises(DataError):
        train(config("classify", tmp_path, data=file), quiet())
