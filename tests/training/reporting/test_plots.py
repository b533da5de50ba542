"""The pictures: that they are there, have the stated size, and say what the results say."""

from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.training.reporting.runs import history, instruct_results, many_labels, multi_label, results, steps
from training.reporting.plots.bars import draw_metrics
from training.reporting.plots.canvas import spread
from training.reporting.plots.classes import draw_calibration, draw_confusion
from training.reporting.plots.draw import draw_all
from training.reporting.plots.losses import draw_losses
from training.reporting.results import Results


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text of the pictures drawn, which are laid out but not painted: that takes the time."""
    found: list[str] = []

    def listening(figure: Figure, *_: object) -> None:
        figure.draw_without_rendering()
        found.extend(text.get_text() for text in figure.findobj(Text) if text.get_text())

    monkeypatch.setattr(Figure, "savefig", listening)
    return found


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (results(), ["loss.png", "metrics.png", "confusion.png", "calibration.png"]),
        (multi_label(30), ["loss.png", "metrics.png", "confusion.png", "calibration.png"]),
        (instruct_results(), ["loss.png", "metrics.png"]),
    ],
    ids=["classify", "several labels", "instruct"],
)
def test_all_there_is_to_see_is_drawn(tmp_path: Path, made: Results, names: list[str]) -> None:
    drawn = draw_all(made, tmp_path)
    assert [file.name for file in drawn] == names
    for file in drawn:
        height, width, _ = matplotlib.image.imread(file).shape
        assert width == 1400  # twice 700, for sharp letters
        assert height <= width


def test_the_losses_say_what_was_best(tmp_path: Path, words: list[str]) -> None:
    draw_losses(results(), tmp_path / "x.png")
    assert {"train", "validation", "epochs", "tokens seen", "loss"} <= set(words)
    assert "best: validation accuracy 0.899" in words
    assert "learning rate, at most 0.0009" in words
    assert "40k" in words


def test_a_run_of_one_epoch_with_a_constant_rate(tmp_path: Path, words: list[str]) -> None:
    points = history([0.7, 0.5], [{"loss": 0.7}, {"loss": 0.5}], steps=1)
    one = results(
        history=points, steps=steps(points, 0.0), best={"metric": "loss", "epoch": 1, "step": 1, "value": 0.5}
    )
    draw_losses(one, tmp_path / "x.png")
    assert "best: validation loss 0.500" in words
    assert not any("learning rate" in word for word in words)


def test_bars_say_every_value_and_its_baselines(tmp_path: Path, words: list[str]) -> None:
    draw_metrics(results(), tmp_path / "x.png")
    assert {"0.533", "0.857", "majority class 0.500", "TF-IDF + logistic regression 0.773"} <= set(words)
    assert "loss\n(less is better)" in words
    assert "macro F1" in words


def test_bars_reach_below_zero(tmp_path: Path, words: list[str]) -> None:
    made = instruct_results()
    before = made.before.model_copy(update={"metrics": {"margin": -0.4}, "judged": None})
    after = made.after.model_copy(update={"metrics": {"margin": 1.5}, "judged": None})
    draw_metrics(made.model_copy(update={"before": before, "after": after}), tmp_path / "x.png")
    assert {"-0.400", "1.500"} <= set(words)


def test_a_matrix_of_few_labels_has_counts_and_shares(tmp_path: Path, words: list[str]) -> None:
    draw_confusion(results(), tmp_path / "x.png")
    assert {"97\n70%", "42\n30%", "1\n1%", "160\n99%", "Negative", "Positive"} <= set(words)


def test_a_matrix_of_thirty_labels_has_counts(tmp_path: Path, words: list[str]) -> None:
    draw_confusion(many_labels(30), tmp_path / "x.png")
    assert "intent_29_of_customer" in words
    assert not any("%" in word for word in words)


def test_of_more_labels_the_confusions_are_drawn(tmp_path: Path, words: list[str]) -> None:
    draw_confusion(many_labels(77), tmp_path / "x.png")
    assert "intent_45_of_customer → intent_46_of_customer" in words
    assert "3 of 14" in words


def test_every_label_of_several_has_its_four_cells(tmp_path: Path, words: list[str]) -> None:
    made = multi_label(4)
    report = made.after.classes
    assert report is not None
    draw_confusion(made, tmp_path / "x.png")
    assert {"there, given", "there, missed", "not there, given", "not there, not given", "topic 3"} <= set(words)
    for one in report.decisions:
        cells = (one.true_positives, one.false_negatives, one.false_positives, one.true_negatives)
        assert sum(cells) == 200
        assert {str(count) for count in cells} <= set(words)
    draw_calibration(made, tmp_path / "x.png")
    assert {"labels that are there", "probability of a label; bars: how many had it"} <= set(words)


def test_of_very_many_labels_those_with_most_mistakes_are_drawn(tmp_path: Path, words: list[str]) -> None:
    made = multi_label(50)
    report = made.after.classes
    assert report is not None
    draw_confusion(made, tmp_path / "x.png")
    assert any(word.endswith("; 30 of 50 labels") for word in words)
    wrong = {one.label: one.false_negatives + one.false_positives for one in report.decisions}
    drawn = {word for word in words if word.startswith("topic ")}
    assert len(drawn) == 30
    assert min(wrong[name] for name in drawn) >= max(wrong[name] for name in wrong.keys() - drawn)


def test_calibration_says_both_errors(tmp_path: Path, words: list[str]) -> None:
    draw_calibration(results(), tmp_path / "x.png")
    assert "calibration error 0.056 (before: 0.242)" in words
    assert {"before", "after", "200"} <= set(words)


def test_labels_with_dollars_are_no_formulas(tmp_path: Path, words: list[str]) -> None:
    report = results().after.classes
    assert report is not None
    named = [one.model_copy(update={"label": f"$x_{n}$"}) for n, one in enumerate(report.labels)]
    after = results().after.model_copy(update={"classes": report.model_copy(update={"labels": tuple(named)})})
    draw_confusion(results(after=after), tmp_path / "x.png")
    assert "$x_0$" in words


def test_labels_at_line_ends_do_not_cover_each_other() -> None:
    assert spread({"a": 1.0, "b": 1.01, "c": 5.0}, 0.5) == {"a": 1.0, "b": 1.5, "c": 5.0}
