"""The published recipes as runs: their protocols on random weights, narrow here and in true shape in the slow tests."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from typer.testing import CliRunner

from tests.support.tiny import tiny_tokenizer
from tests.training.conftest import REVIEWS, THINGS, write_jsonl
from training.cli import app
from training.config import make_config
from training.errors import ConfigError
from training.published import read_published
from training.reporting.results import Results, read_results
from training.tasks.instruct import InstructTask

Tiny = Callable[[str], Path]
ROOT = Path(__file__).resolve().parents[2]
DISTILBERT, GPT2 = "sentiment-distilbert", "instruct-gpt2-medium"


def labelled(count: int) -> list[dict[str, Any]]:
    """Rows of text and label, 0 or 1, as the recipe's data have them."""
    rows = (REVIEWS * (-(-count // len(REVIEWS))))[:count]
    texts = (f"{row['text']} {number}" for number, row in enumerate(rows))
    return [{"text": text, "label": int(row["label"] == "positive")} for text, row in zip(texts, rows, strict=True)]


def instructions(count: int) -> list[dict[str, str]]:
    """Rows of instruction, input and output, no two alike."""
    things = (THINGS * (-(-count // len(THINGS))))[:count]
    return [
        {"instruction": f"Name {thing} {number}.", "input": "", "output": f"{thing} {number}"}
        for number, thing in enumerate(things)
    ]


def run(task: str, recipe: str, folder: Path, *flags: str) -> tuple[Results, str]:
    """The command with a recipe by its name: what it left, and what it said."""
    places = ("--output", str(folder / "run"), "--store", str(folder / "store"), "--device", "cpu")
    done = CliRunner().invoke(app, [task, "--recipe", recipe, *places, *flags], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return read_results(folder / "run/results.json"), done.output


def check_instruction_protocol(results: Results, steps: int, output: str) -> None:
    """Every fifth step is measured, counted from the book's zero, and each epoch is: whole, sampled and saved."""
    total = 2 * steps
    between = {step for step in range(1, total, 5) if step % steps}
    assert [point.step for point in results.history] == sorted({0, *between, steps, total})
    assert [point.step for point in results.history if point.whole] == [0, steps, total]
    assert all(step.learning_rate == 5e-5 for step in results.steps)
    assert output.count("  sample: ") == 2
    assert results.best.metric == "loss"
    assert results.best.value == min(point.validation["loss"] for point in results.epochs)
    assert "as published (chapter 7" in output


def check_sentiment_protocol(results: Results, folder: Path, output: str, epochs: int) -> None:
    """Each epoch is measured and saved, and the one of the best accuracy is what was published."""
    assert [point.epoch for point in results.history] == list(range(epochs + 1))
    assert all(point.whole for point in results.history)
    accuracies = [point.validation["accuracy"] for point in results.epochs]
    best = accuracies.index(max(accuracies)) + 1
    assert (results.best.metric, results.best.epoch, results.best.value) == ("accuracy", best, max(accuracies))
    saved = folder / "run/checkpoints"
    assert {path.name for path in saved.iterdir()} == {f"epoch-{number}" for number in range(1, epochs + 1)}
    weights = "adapter_model.safetensors"
    adapter = (folder / "run/adapter" / weights).read_bytes()
    assert adapter == (saved / f"epoch-{best}" / weights).read_bytes()
    # The rate decays linearly to zero: what its last steps lose is what is left.
    rates = [step.learning_rate for step in results.steps]
    assert max(rates) == 1e-3
    assert rates[-2] == pytest.approx(2 * rates[-1], rel=1e-5)
    assert len(results.after.sentences) == 5
    assert output.count("  sample: ") == epochs


def test_the_instruction_recipe_keeps_its_protocol(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    mean_loss = InstructTask.mean_loss

    def counted(self: InstructTask, fast: Any, examples: Any) -> float:
        measured.append(len(examples))
        return mean_loss(self, fast, examples)

    monkeypatch.setattr(InstructTask, "mean_loss", counted)
    data = write_jsonl(tmp_path / "rows.jsonl", instructions(120))
    shares = ("--validation-split", "0.4", "--test-split", "0.05", "--answers", "2")
    results, output = run("instruct", GPT2, tmp_path, "--data", str(data), "--base", str(tiny("gpt2")), *shares)
    # In file order: 66 rows to train on, then 6 to test, then 48 to validate; 8 whole batches an epoch.
    assert (results.rows.train, results.rows.test, results.rows.validation) == (66, 6, 48)
    check_instruction_protocol(results, 8, output)
    # 5 batches of 8 validation rows between epochs; all 48 before, and after an epoch.
    assert measured == [48, 40, 40, 40, 48, 40, 48]
    shown = [line.split("│") for line in output.splitlines() if line.startswith("│")]
    published = {cells[1].strip(): [cell.strip() for cell in cells[2:6]] for cells in shown if len(cells) == 7}
    at = {point.step: point for point in results.history}
    # The five batches of train are those of the steps since the last point; the book's step 5 is our sixth.
    assert at[6].train_loss == pytest.approx(sum(step.loss for step in results.steps[1:6]) / 5)
    assert published["before"] == ["3.826", f"{at[0].train_loss:.3f}", "3.762", f"{at[0].validation['loss']:.3f}"]
    assert published["5"] == ["1.174", f"{at[6].train_loss:.3f}", "1.103", f"{at[6].validation['loss']:.3f}"]
    assert published["200"] == ["0.310", "–", "0.632", "–"]


def test_the_sentiment_recipe_keeps_its_protocol(tiny: Tiny, tmp_path: Path) -> None:
    train, validation = write_jsonl(tmp_path / "t.jsonl", labelled(24)), write_jsonl(tmp_path / "v.jsonl", labelled(20))
    flags = ("--data", str(train), "--validation", str(validation), "--base", str(tiny("distilbert")))
    results, output = run("classify", DISTILBERT, tmp_path, *flags)
    check_sentiment_protocol(results, tmp_path, output, 10)
    assert len(results.steps) == 60
    lines = [line for line in output.splitlines() if line.startswith("│") and "0.899" in line]
    assert lines[0].split("│")[3].strip() == f"{results.epochs[2].validation['accuracy']:.3f}"
    assert any("This one is a pass." in line and "Positive" in line for line in output.splitlines())


def test_the_minilm_recipe_keeps_its_protocol(tiny: Tiny, tmp_path: Path) -> None:
    train, validation = write_jsonl(tmp_path / "t.jsonl", labelled(40)), write_jsonl(tmp_path / "v.jsonl", labelled(20))
    flags = ("--data", str(train), "--validation", str(validation), "--base", str(tiny("bert")))
    results, output = run("classify", "sentiment-minilm", tmp_path, *flags)
    check_sentiment_protocol(results, tmp_path, output, 2)
    targets = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())["target_modules"]
    assert sorted(targets) == ["dense", "key", "query", "value"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gpt2_medium_runs_the_instruction_recipe_in_its_true_shape(tmp_path: Path) -> None:
    shape = {"n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257}
    base = random_base("gpt2", tmp_path / "gpt2-medium", AutoModelForCausalLM, shape)
    data = write_jsonl(tmp_path / "rows.jsonl", instructions(120))
    shares = ("--validation-split", "0.4", "--test-split", "0.05", "--answers", "1")
    results, output = run("instruct", GPT2, tmp_path, "--data", str(data), "--base", str(base), *shares)
    assert results.parameters.trained == 6_291_456
    assert (results.rows.train, results.rows.validation) == (66, 48)
    check_instruction_protocol(results, 8, output)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_distilbert_runs_the_sentiment_recipe_in_its_true_shape(tmp_path: Path) -> None:
    base = random_base("distilbert", tmp_path / "distilbert", AutoModelForMaskedLM, {})
    train, validation = write_jsonl(tmp_path / "t.jsonl", labelled(8)), write_jsonl(tmp_path / "v.jsonl", labelled(8))
    flags = ("--data", str(train), "--validation", str(validation), "--base", str(base))
    results, output = run("classify", DISTILBERT, tmp_path, *flags)
    assert (results.parameters.trained, results.parameters.all) == (628_994, 67_584_004)
    check_sentiment_protocol(results, tmp_path, output, 10)


def random_base(kind: str, folder: Path, auto: Any, shape: dict[str, Any]) -> Path:
    """Random weights of a published shape, with a small tokenizer."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(encoder=kind == "distilbert")
    auto.from_config(AutoConfig.for_model(kind, **shape, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_with(folder: Path, table: Iterable[str]) -> Path:
    file = folder / "mine.toml"
    file.write_text("\n".join(('task = "classify"', "[published]", *table)), encoding="utf-8")
    return file


GOOD = ('source = "us"', 'by = "epoch"', 'columns = ["validation_accuracy"]', "rows = [[1, 0.5]]")


def test_published_figures_are_no_part_of_the_configuration(tmp_path: Path) -> None:
    file = recipe_with(tmp_path, GOOD)
    assert "published" not in make_config("classify", {}, file).as_recipe()
    (published,) = read_published(file)
    assert published.rows == ((1.0, 0.5),)
    assert read_published(Path("demo-sentiment")) == ()


def test_several_tables_of_published_figures() -> None:
    lora, course = read_published(Path(GPT2))
    assert [row[0] for row in lora.rows] == ["before", 230]
    assert course.rows[1] == (0, 2.637, 2.626)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([*GOOD[:3], "rows = [[1, 0.5, 0.6]]"], r"published\.0: rows have 2 numbers"),
        ([*GOOD[:3], 'rows = [["after", 0.5]]'], r"published\.0\.rows\.0\.0\."),
        ([*GOOD[:3], 'rows = [["before", "before"]]'], r"published\.0: what stands behind the epoch are figures"),
        ([*GOOD[:2], 'columns = ["loss"]', GOOD[3]], r"published\.0\.columns: loss: write train_loss"),
        ([*GOOD, "first = 1"], r"published\.0\.first: Extra inputs"),
        ([GOOD[0], 'by = "hour"', *GOOD[2:]], r"published\.0\.by"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_its_key(tmp_path: Path, table: list[str], said: str) -> None:
    file = recipe_with(tmp_path, table)
    with pytest.raises(ConfigError, match=said):
        read_published(file)
