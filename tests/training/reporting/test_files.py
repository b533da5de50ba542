import csv
from pathlib import Path

from tests.training.reporting.runs import results
from training.reporting.files import write_run
from training.reporting.results import read_results


def test_a_run_leaves_results_and_steps(tmp_path: Path) -> None:
    written = write_run(tmp_path, results())
    assert {file.name for file in written} == {file.name for file in tmp_path.iterdir()}
    assert read_results(tmp_path / "results.json") == results()


def test_the_steps_as_a_table(tmp_path: Path) -> None:
    made = results()
    write_run(tmp_path, made)
    with (tmp_path / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "step", "tokens", "train_loss", "learning_rate", "validation_accuracy", "validation_loss",
    ]  # fmt: skip
    assert [int(row["step"]) for row in rows] == list(range(201))
    assert rows[0]["train_loss"] == "" and float(rows[0]["validation_loss"]) == 0.7
    assert float(rows[40]["train_loss"]) == made.steps[39].loss
    assert float(rows[40]["learning_rate"]) == made.steps[39].learning_rate
    assert float(rows[40]["validation_accuracy"]) == 0.876
    assert rows[41]["validation_accuracy"] == ""
