"""The published recipes with the weights they name, from the hub: a short run of each."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import REVIEWS, write_jsonl
from tests.training.running import quiet
from training.config import make_config
from training.reporting.results import Parameters, Results, Rows
from training.run import train

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.weights, pytest.mark.timeout(1800)]


def run(task: str, recipe: str, tmp_path: Path, **flags: Any) -> Results:
    places = {"output": tmp_path / "run", "store": tmp_path / "store", "publish": "acme/mine"}
    results = train(make_config(task, {**places, **flags}, ROOT / "recipes" / recipe), quiet())
    assert results is not None
    return results


def test_gpt2_medium_learns_to_follow_instructions(tmp_path: Path) -> None:
    lines = (ROOT / "examples/instructions_train.jsonl").read_text().splitlines()[:200]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(lines))
    results = run("instruct", "instruct-gpt2-medium.toml", tmp_path, data=data, epochs=1, answers=5)
    assert results.parameters.trained == 6_291_456
    assert results.rows == Rows(train=170, validation=10, test=20)
    assert results.after.metrics["loss"] < 0.7 * results.before.metrics["loss"]


def test_distilbert_learns_sentiment(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{**row, "label": int(row["label"] == "positive")} for row in REVIEWS])
    results = run("classify", "sentiment-distilbert.toml", tmp_path, data=data, epochs=2)
    assert results.parameters == Parameters(trained=628_994, all=67_584_004)
    assert results.after.metrics["accuracy"] == 1.0
