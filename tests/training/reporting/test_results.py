import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.training.reporting.runs import answers, history, instruct_results, many_labels, results, steps
from training.errors import TrainingError
from training.reporting.results import (
    Point,
    ReportError,
    Results,
    abridged,
    read_results,
    write_report,
    write_results,
)


@pytest.mark.parametrize("made", [results(), instruct_results(), many_labels(12)], ids=["two", "answers", "twelve"])
def test_what_is_written_is_what_is_read(tmp_path: Path, made: Results) -> None:
    file = write_results(tmp_path, made)
    assert file.name == "results.json"
    assert read_results(file) == made


def test_a_small_run_travels_whole(tmp_path: Path) -> None:
    made = results()
    file = write_report(tmp_path, made)
    assert file.name == "report.json"
    assert read_results(file) == made


EPOCH = 2_000  # steps


def long_run() -> Results:
    loss = {"loss": 0.5, "accuracy": 0.5}
    points = history([0.5] * 4, [loss] * 4, steps=EPOCH)
    few = tuple(
        Point(step=n, epoch=n / EPOCH, tokens=n, train_loss=0.5, validation=loss, whole=False)
        for n in range(5, 3 * EPOCH, 5)
        if n % EPOCH
    )
    answer = answers(("long " * 1_000,) * 300, 1.0, 1.0)
    sorted_points = tuple(sorted((*points, *few), key=lambda point: point.step))
    return results(history=sorted_points, steps=steps(points), before=answer, after=answer)


def test_a_long_run_is_cut_to_travel(tmp_path: Path) -> None:
    made = long_run()
    file = write_report(tmp_path, made)
    assert file.stat().st_size < 1_000_000
    carried = read_results(file)
    assert len(carried.steps) <= 1_000
    assert carried.steps[-1] == made.steps[-1]
    assert [point.step for point in carried.epochs] == [EPOCH, 2 * EPOCH, 3 * EPOCH]
    assert len(carried.after.samples) == 20
    assert len(carried.after.samples[0].answer) == 2_000
    assert carried.after.metrics == made.after.metrics


def test_the_best_point_is_never_thinned_out() -> None:
    made = long_run()
    best = made.best.model_copy(update={"step": 2 * EPOCH})
    carried = abridged(made.model_copy(update={"best": best}))
    assert carried.best_point is not None
    assert carried.best_point.step == 2 * EPOCH


def test_epochs_are_whole_measurements_after_the_start() -> None:
    assert [point.step for point in results().epochs] == [40, 80, 120, 160, 200]


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        Results.model_validate({**results().model_dump(), "surprise": 1})


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Point(step=1, epoch=1, tokens=1, train_loss=float("nan"), validation={"loss": 1})


def test_seven_digits_are_kept_of_large_and_small_values() -> None:
    point = Point(step=1, epoch=1, tokens=1, train_loss=1 / 3 * 1e-6, validation={"loss": 12345678.9})
    assert point.train_loss == 3.333333e-07
    assert point.validation["loss"] == 12345680.0


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"none\.json: No such file"):
        read_results(tmp_path / "none.json")
    file = write_results(tmp_path, results())
    content = json.loads(file.read_text())
    content["best"]["epoch"] = "third"
    file.write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=r"results\.json: best\.epoch: .*train again"):
        read_results(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ReportError, match="not UTF-8"):
        read_results(file)
