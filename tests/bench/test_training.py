"""The training benchmark over tiny models: systems that compute the same, and what the results look like."""

import json
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import training
from bench.trainers import rivals, sections
from bench.trainers.findings import LESS_IS_BETTER, RATIOS, Findings
from bench.trainers.ours import FastSteps, answers_loss, labels_loss
from bench.trainers.pages import draw, render
from bench.trainers.turns import ratios, take_turns
from bench.trainers.work import (
    BATCH,
    LONGEST,
    TEXTS,
    batches,
    classifier,
    instruction_rows,
    language_model,
    review_texts,
    trained,
    twin,
)
from training.fast.levers import Levers
from training.fast.precision import Precision

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 0},
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64},
}
# transformers and TRL ask for names that newer versions of each other have changed.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
MACHINE = {
    "cpu": "a CPU", "instructions": [], "cores": 2, "threads": 2, "memory_gib": 8, "system": "Linux", "load_before": 0,
    "tenora": "1", "trl": None,
}  # fmt: skip


def ours(model: Any, levers: Levers, loss: Any = answers_loss) -> FastSteps:
    return FastSteps(twin(model), loss, levers, Precision(torch.float32), 1)


def test_rows_are_the_shipped_examples() -> None:
    rows = instruction_rows("train", 20)
    assert rows == instruction_rows("train", 20)
    assert rows != instruction_rows("train", 20, seed=1)
    for row in rows:
        assert row.labels.count(-100) == row.prompt
        assert [target.token for target in row.targets] == list(row.ids[row.prompt :])
        assert row.targets[0].position == row.prompt - 1


def test_texts_are_as_long_as_film_reviews() -> None:
    lengths = sorted(len(text.ids) for text in review_texts(500))
    assert 220 < lengths[250] < 280
    assert 0.05 < lengths.count(LONGEST) / 500 < 0.15
    assert lengths[0] >= 8


def test_twins_share_what_is_frozen() -> None:
    model = language_model(SHAPES["gpt2"])
    other = twin(model)
    frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
    assert all(dict(other.named_parameters())[name] is value for name, value in frozen.items())
    for name, value in trained(model).items():
        assert trained(other)[name] is not value
        assert torch.equal(trained(other)[name], value)


def test_all_language_systems_take_the_same_steps() -> None:
    """The same losses and, after some steps, the same weights: what is timed is the same work."""
    model, rows = language_model(SHAPES["gpt2"]), instruction_rows("train", 3 * BATCH)
    systems = {
        "trainer": rivals.plain_trainer(twin(model), rows, BATCH, bf16=False),
        "ours": ours(model, Levers()),
        "none": ours(model, Levers.none()),
    }
    for batch in batches(rows, BATCH):
        losses = {key: step(batch) for key, step in systems.items()}
        assert losses["ours"] == pytest.approx(losses["trainer"], rel=1e-5)
        assert losses["none"] == pytest.approx(losses["trainer"], rel=1e-5)
    start = trained(model)
    for name, value in trained(systems["trainer"].model).items():
        moved = (value - start[name]).norm()
        assert moved > 0
        assert (value - trained(systems["ours"].model)[name]).norm() < 0.05 * moved


def test_trainer_in_bfloat16_is_near() -> None:
    model, rows = language_model(SHAPES["gpt2"]), instruction_rows("train", BATCH)
    rounded = rivals.plain_trainer(twin(model), rows, BATCH, bf16=True)(rows)
    assert rounded != ours(model, Levers())(rows)
    assert rounded == pytest.approx(ours(model, Levers())(rows), rel=1e-3)


def test_both_classifiers_take_the_same_steps() -> None:
    still = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    model, texts = classifier({**SHAPES["distilbert"], **still}), review_texts(2 * TEXTS)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = rivals.plain_trainer(twin(model), texts, TEXTS, bf16=False)
    own = ours(model, Levers(), labels_loss)
    for batch in batches(texts, TEXTS):
        assert own(batch) == pytest.approx(trainer(batch), rel=1e-5)


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_trl_learns_the_same_tokens() -> None:
    model, rows = language_model(SHAPES["gpt2"]), instruction_rows("train", 2 * BATCH)
    trl = rivals.trl_trainer(twin(model), rows, BATCH)
    own = ours(model, Levers())
    for batch in batches(rows, BATCH):
        assert trl(batch) == pytest.approx(own(batch), rel=1e-3)


def test_without_trl_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise ImportError("No module named 'trl'")

    monkeypatch.setattr(sections, "trl_trainer", absent)
    findings = measured(["instructions"])
    assert findings.document["ratios"]["bf16_vs_trl"] is None
    assert "pip install trl" in findings.document["reasons"]["bf16_vs_trl"]
    assert findings.document["ratios"]["fp32_vs_trainer"] > 0


def test_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every section leaves its figures, which the page and the pictures show."""
    monkeypatch.setattr(sections, "RUN", 2)
    monkeypatch.setattr(sections, "VALIDATED", 1)
    monkeypatch.setattr(sections, "COMPARED", 1)
    monkeypatch.setattr(sections, "LOOKS", 3)
    file = tmp_path / "results.json"
    findings = measured(["exact", "reviews", "evaluation", "levers", "run"], file)
    document = json.loads(file.read_text())
    assert document == findings.document
    assert document["ratios"].keys() == RATIOS.keys() >= LESS_IS_BETTER
    for key in ("distilbert_fp32", "distilbert_bf16", "eval_share"):
        assert document["ratios"][key] > 0
    assert 0 <= document["ratios"]["loss_diff_fp32"] < 1e-5
    assert 0 < document["ratios"]["grad_diff_fp32"] < 1e-5
    assert 1e-5 < document["ratios"]["grad_diff_bf16"] < 5e-2
    assert document["reasons"].keys() == {
        key for key, value in document["ratios"].items() if value is None
    }  # instructions were not measured
    shown = {key.removeprefix("levers, "): systems for key, systems in document["steps"].items() if "levers" in key}
    assert {key: len(systems) for key, systems in shown.items()} == {"fp32": 16, "bf16": 16, "evaluation": 4}
    for lever in fields(Levers):  # none, each alone, each missing, all
        assert any(f"all but {lever.name}" in systems for systems in shown.values()), lever.name
    losses = document["figures"]["run"]
    after = [losses[f"held-out loss after 2 steps, {name}"] for name in ("Trainer, float32", "Tenora, float32")]
    assert after[1] == pytest.approx(after[0], rel=1e-3)
    assert after[0] != pytest.approx(losses["held-out loss before"], rel=1e-5)
    page = render(document)
    for text in ("`distilbert_fp32`", "Trainer, float32", "all but fused", "narrow", "not measured in this run"):
        assert text in page
    assert {path.name for path in draw(document, tmp_path)} == {
        "training_reviews.png", "training_levers_fp32.png", "training_levers_bf16.png",
        "training_levers_evaluation.png",
    }  # fmt: skip


def test_a_section_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Any) -> None:
        raise ValueError("it broke")

    monkeypatch.setitem(sections.SECTIONS, "reviews", (broken, True))  # type: ignore[arg-type]
    findings = Findings(None, MACHINE, {"rounds": 1})
    assert training.measure(findings, ["reviews", "exact"], 1, SHAPES) == ["reviews"]
    assert "it broke" in findings.document["reasons"]["reviews"]
    assert findings.document["ratios"]["grad_diff_fp32"] is not None
    assert "ValueError" in capsys.readouterr().err


def test_turns() -> None:
    """A B A B, and the first batch only warms."""
    said: list[tuple[str, Any]] = []
    systems = {name: lambda batch, name=name: said.append((name, batch)) or 0.0 for name in ("a", "b")}
    taken = take_turns(systems, [[1], [2], [3]])
    assert said == [("a", [1]), ("b", [1]), ("a", [2]), ("b", [2]), ("a", [3]), ("b", [3])]
    assert {key: len(seconds) for key, seconds in taken.items()} == {"a": 2, "b": 2}
    assert ratios([4.0, 9.0], [2.0, 3.0]) == [2, 3]


def test_command_line() -> None:
    quick = training.parse(["--quick"])
    assert quick.sections == ["instructions", "exact", "reviews", "evaluation"]
    assert quick.rounds < training.parse([]).rounds
    assert training.parse(["--only", "run,levers", "--rounds", "2"]).sections == ["run", "levers"]


@pytest.mark.parametrize("bad", [["--only", "everything"], ["--rounds", "-1"]])
def test_command_line_refuses(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.parse(bad)
    assert capsys.readouterr().err


def measured(names: list[str], file: Path | None = None) -> Findings:
    findings = Findings(file, MACHINE, {"rounds": 1})
    assert training.measure(findings, names, 1, SHAPES) == []
    return findings
