"""The two published recipes, and the parameter counts of their models in true shape, without weights."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from adapters.base import BaseSource
from tests.training.conftest import INSTRUCTIONS, write_jsonl
from training.config import CONFIGS, make_config
from training.run import make_task
from training.updates import make_update, parameter_counts

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 1024, "n_layer": 24, "n_head": 16},  # GPT-2 medium
    "distilbert": {},  # the defaults are distilbert-base-uncased
}


def published(task: str, name: str) -> Any:
    return make_config(task, {}, RECIPES / name)


def test_the_instruction_recipe_holds_every_published_figure() -> None:
    config = published("instruct", "instruct-gpt2-medium.toml")
    assert (config.base, config.template, config.loss, config.split) == ("gpt2-medium", "alpaca", "all", "sequential")
    assert (config.lr, config.weight_decay, config.batch_size, config.epochs, config.seed) == (5e-5, 0.1, 8, 2, 123)
    assert (config.drop_last, config.schedule, config.warmup, config.clip) == (True, "constant", 0, 0)
    assert (config.eval_every, config.eval_batches, config.answer_tokens) == (5, 5, 50)
    assert (config.rank, config.alpha, config.targets) == (16, 256, ("c_attn", "c_proj", "c_fc"))
    assert (config.dropout, config.base_dropout) == (0, 0)


def test_the_instruction_recipe_divides_1100_rows_as_the_book_does(tmp_path: Path) -> None:
    rows = [{**INSTRUCTIONS[0], "output": str(number)} for number in range(1100)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = make_task(make_config("instruct", {"data": data}, RECIPES / "instruct-gpt2-medium.toml"))
    numbers = [[row.place.number for row in part] for part in (task.rows.train, task.rows.test, task.rows.validation)]
    assert numbers == [list(range(1, 936)), list(range(936, 1046)), list(range(1046, 1101))]


def test_the_sentiment_recipe_holds_every_published_figure() -> None:
    config = published("classify", "sentiment-distilbert.toml")
    assert (config.base, config.labels) == ("distilbert-base-uncased", ("Negative", "Positive"))
    assert (config.rank, config.alpha, config.dropout, config.targets) == (4, 32, 0.01, ("q_lin",))
    assert (config.truncation_side, config.max_length, config.eval_every) == ("left", 512, 0)
    assert (config.lr, config.batch_size, config.epochs, config.weight_decay) == (1e-3, 4, 10, 0.01)
    assert (config.schedule, config.warmup, config.metric) == ("linear", 0, "accuracy")
    assert len(config.sentences) == 5


def true_shape(kind: str, config: Any, folder: Path) -> Any:
    """PEFT around a model of true shape on the meta device: sizes without weights."""
    shape = AutoConfig.for_model(kind, **SHAPES[kind])
    shape.save_pretrained(folder)
    base = BaseSource(kind, folder, None, "decoder" if kind == "gpt2" else "encoder", "0" * 64)
    auto = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return make_update(base, config).prepare(auto.from_config(shape))


def test_gpt2_medium_trains_6291456_parameters(tmp_path: Path) -> None:
    model = true_shape("gpt2", published("instruct", "instruct-gpt2-medium.toml"), tmp_path)
    assert parameter_counts(model)[0] == 6_291_456
    lora = next(module for name, module in model.named_modules() if name.endswith("h.0.mlp.c_fc"))
    assert lora.fan_in_fan_out
    assert lora.scaling["default"] == 16  # alpha / r: the book's own factor


def test_distilbert_trains_628994_of_67584004_parameters(tmp_path: Path) -> None:
    model = true_shape("distilbert", published("classify", "sentiment-distilbert.toml"), tmp_path)
    assert parameter_counts(model) == (628_994, 67_584_004)
    trained = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}
    assert sum(size for name, size in trained.items() if "lora_" in name) == 36_864
    assert sum(size for name, size in trained.items() if "lora_" not in name) == 592_130


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_recipe_is_whole_and_says_how_to_run_it(file: Path) -> None:
    task = tomllib.loads(file.read_text())["task"]
    config = make_config(task, {}, file)
    assert f"tenora train {task} --recipe {file.stem}" in file.read_text()
    if config.base == "embedded":
        assert config.data is not None
        assert config.data.is_file()
        assert config.test is not None
        assert config.test.is_file()


def test_what_a_published_recipe_says_nothing_of_does_not_change_its_figures() -> None:
    """Whatever shapes the training is written down; the rest is where files lie, what is shown, and how fast."""
    groups = {"Data", "Model and adapter", "Optimiser", "Evaluation"}
    free = {"data", "validation", "test", "file_kind", "columns", "ignore_columns", "device", "update", "rslora"}
    free |= {"rank_pattern", "alpha_pattern", "lora_plus", "accumulate", "patience", "train_curve", "class_weights"}
    free |= {"judge", "judge_model", "judge_key", "base_dropout", "test_split"}
    for task, name in (("instruct", "instruct-gpt2-medium.toml"), ("classify", "sentiment-distilbert.toml")):
        config, fields = published(task, name), CONFIGS[task].model_fields
        shaping = {key for key, field in fields.items() if field.json_schema_extra["group"] in groups}  # type: ignore
        assert shaping - free <= config.model_fields_set
        # What stays free is off, or the base's own.
        assert (config.update, config.accumulate, config.patience, config.lora_plus) == ("lora", 1, 0, 1)
        assert not (config.rslora or config.rank_pattern or config.alpha_pattern)


def test_a_recipe_goes_by_its_name() -> None:
    assert make_config("instruct", {}, Path("demo-instruct")).base == "embedded"
