import pytest

from tests.training.reporting.runs import classifier, history, instruct_results, results
from training.reporting.limits import limits


def test_findings_notes_and_overfitting_are_limits() -> None:
    found = limits(results())
    assert "3 of the held-out rows stand among the training rows too." in found
    assert "12 texts of more than 512 tokens lose their left end." in found
    assert any(line.startswith("The run overfits after epoch 1: validation loss rose from 0.423") for line in found)


def test_a_clean_run_has_only_its_uncertainty() -> None:
    points = history([0.7, 0.5, 0.3], [{"loss": 0.7}, {"loss": 0.5}, {"loss": 0.4}])
    found = limits(results(history=points, notes=(), findings=()))
    assert found == ["Shares measured on 300 rows are uncertain by up to ±0.057 (95%)."]


def test_validation_rows_that_chose_the_epoch_are_told() -> None:
    assert any("which also chose the epoch" in line for line in limits(instruct_results()))
    assert not any("which also chose the epoch" in line for line in limits(results()))


def test_training_that_made_it_worse_is_told() -> None:
    made = results(before=classifier(("a", "b"), 1.8, 300), after=classifier(("a", "b"), 0.0, 300))
    [line] = [line for line in limits(made) if "did not improve" in line]
    assert line == "Training did not improve accuracy: 0.857 before, 0.533 after."


def test_a_baseline_that_is_as_good_is_told() -> None:
    made = results(baselines={"majority class": {"accuracy": 0.5}, "word counts": {"accuracy": 0.9, "macro_f1": 0.1}})
    assert [line for line in limits(made) if "no better" in line] == [
        "Word counts reaches accuracy 0.900; the trained model has 0.857, which is no better."
    ]


@pytest.mark.parametrize("when", ["before", "after"])
def test_answers_that_were_not_judged_are_told(when: str) -> None:
    line = f"The judge's mean {when} is over 4 answers: 1 of its replies were no score, 0 requests failed."
    assert line in limits(instruct_results())
