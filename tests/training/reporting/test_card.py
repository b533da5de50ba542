import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.training.reporting.runs import instruct_results, many_labels, multi_label, results
from training.reporting.card import model_card, write_card
from training.reporting.files import write_beside
from training.reporting.plots.draw import draw_all
from training.reporting.results import Evaluation, Sample


def front_matter(card: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return loaded


def test_a_hub_can_read_the_front_matter() -> None:
    card = ModelCard(model_card(results(), "acme/sentiment"))
    assert card.data.base_model == "distilbert-base-uncased"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-classification"
    assert set(card.data.tags or ()) == {"tenora", "classify", "lora"}
    measured = {one.metric_type: one.metric_value for one in card.data.eval_results or ()}
    assert measured == results().after.metrics


def test_the_license_is_left_to_the_user() -> None:
    card = model_card(results())
    assert "license" not in front_matter(card)
    assert "It states no license" in card


def test_the_card_tells_what_the_run_measured() -> None:
    card = model_card(results(), "acme/sentiment", ["loss.png"])
    assert "# acme/sentiment" in card
    assert "628,994 of 67,584,004 parameters (0.93%)" in card
    assert "| accuracy | 0.533 | **0.857** | 0.500 | 0.773 |" in card
    assert "| Negative | 0.990 | 0.698 | 0.819 | 139 |" in card
    assert "Commonest mistakes: Negative taken for Positive (42)" in card
    assert "![loss](loss.png)" in card
    assert "- 3 of the held-out rows stand among the training rows too." in card
    assert "The run overfits after epoch 1" in card
    assert "weights are those after epoch 3, the best by validation accuracy (0.899)" in card
    assert f"SHA-256 `{results().data_sha256}`" in card
    assert "| batch size | 4 |" in card
    assert "peft 0.21.2" in card


def test_of_several_labels_the_card_says_what_was_missed() -> None:
    made = multi_label(3)
    report = made.after.classes
    assert report is not None
    card = model_card(made)
    assert "| label | precision | recall | F1 | rows | missed | wrongly given |" in card
    for one in report.decisions:
        assert f"| {one.false_negatives} | {one.false_positives} |" in card


def test_the_judge_stands_in_the_card() -> None:
    card = model_card(instruct_results())
    assert "| judge score | 12.5 | **50.2** |" in card
    assert "llama-3-8b prefers the answers after training in 3 rows and those before in 1" in card
    assert "win rate 70%" in card
    assert "The meal cooks. ✗ (50.23)" in card


def test_no_place_of_this_machine_gets_into_the_card() -> None:
    recipe = {**results().recipe, "template": "/home/somebody/mine.jinja", "data": "C:\\Users\\me\\rows.jsonl"}
    card = model_card(results(recipe=recipe))
    assert "somebody" not in card
    assert "| template | mine.jinja |" in card
    assert "| data | rows.jsonl |" in card
    assert not re.search(r"(^|[\s`(|])/(home|root|usr|tmp)/", card)


def test_words_of_the_data_are_no_markup() -> None:
    nasty = Sample(prompt="a | b\n<script> *x* [y](z) `c`", answer="# no | heading", expected="_e_", right=False)
    made = Evaluation(part="test", rows=1, metrics={"loss": 1.0}, samples=(nasty,))
    card = model_card(instruct_results(before=made, after=made, comparison=None))
    [row] = [line for line in card.splitlines() if "script" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5  # four cells
    assert "<script>" not in row.replace(r"\<script\>", "")
    assert r"\[y\](z)" in row


@pytest.mark.parametrize(
    ("task", "route"),
    [
        ("instruct", "/v1/instruct"),
        ("text", "/v1/completions"),
        ("dpo", "/v1/chat/completions"),
        ("classify", "/v1/classify"),
        ("reward", "/v1/score"),
    ],
)
def test_every_task_is_served_by_its_route(task: str, route: str) -> None:
    card = model_card(instruct_results(task=task), "acme/x")
    assert f"localhost:8000{route} " in card
    assert '"model": "acme/x"' in card
    assert front_matter(card)["tags"][1] == task


def test_a_whole_model_is_served_as_a_base() -> None:
    card = model_card(instruct_results(update="full"))
    assert "tenora serve --base FOLDER" in card
    assert "--store" not in card
    assert front_matter(card)["library_name"] == "transformers"


def test_a_published_run_knows_its_name() -> None:
    published = {"name": "acme/known", "digest": "ab" * 32, "store": "/home/somebody/store"}
    card = model_card(results(published=published))
    assert "# acme/known" in card
    assert "somebody" not in card


def test_an_early_stop_is_told() -> None:
    assert "stopped early" in model_card(results(stopped="early"))
    assert "stopped early" not in model_card(results())


def test_the_card_lies_beside_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    beside = tmp_path / "adapter"
    beside.mkdir()
    written = write_beside(beside, results(), "acme/x", draw_all(results(), tmp_path / "run"))
    assert [file.name for file in written] == [
        "report.json", "README.md", "loss.png", "metrics.png", "confusion.png", "calibration.png",
    ]  # fmt: skip
    pictures = re.findall(r"!\[\w+\]\((.+)\)", (beside / "README.md").read_text())
    assert len(pictures) == 4
    assert all((beside / picture).stat().st_size < 1_000_000 for picture in pictures)


def test_a_card_of_many_labels_lists_them_all(tmp_path: Path) -> None:
    text = write_card(tmp_path, many_labels(77)).read_text()
    assert sum(line.startswith("| intent\\_") for line in text.splitlines()) >= 77
