"""`results.csv`: a run step by step, for spreadsheets and plots of one's own."""

import csv
from collections.abc import Sequence
from pathlib import Path

from training.reporting.results import Point, Results, Step

CSV_FILE = "results.csv"


def write_steps(folder: Path, results: Results) -> Path:
    """One line a step; validation columns are filled where it was measured. Returns the file."""
    measured = {point.step: point for point in results.history}
    steps = {step.step: step for step in results.steps}
    names = sorted({name for point in results.history for name in point.validation})
    file = folder / CSV_FILE
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", "tokens", "train_loss", "learning_rate", *(f"validation_{name}" for name in names)])
        for number in sorted(measured.keys() | steps.keys()):
            step, point = steps.get(number), measured.get(number)
            writer.writerow([number, *_taken(step, point), *_validated(point, names)])
    return file


def _taken(step: Step | None, point: Point | None) -> tuple[float | str, ...]:
    """Tokens, loss and rate of a step; before the first there is none."""
    if step is not None:
        return (step.tokens, step.loss, step.learning_rate)
    return (point.tokens if point is not None else "", "", "")


def _validated(point: Point | None, names: Sequence[str]) -> list[float | str]:
    return [point.validation.get(name, "") if point is not None else "" for name in names]
