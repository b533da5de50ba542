"""What was measured on the way, and which epoch was best."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_LOWER_IS_BETTER = ("loss",)


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a run after ``step`` steps.

    ``train_loss`` is the mean of the epoch's steps, or the loss on a few batches where points lie closer than that;
    ``validation`` is of the whole validation part if ``whole``, else of a few batches. ``tokens`` counts what the
    model has read so far, without padding.
    """

    step: int
    epoch: float
    tokens: int
    train_loss: float
    validation: Mapping[str, float]
    whole: bool = True


@dataclass(slots=True)
class History:
    """Points of a run in order. ``steps`` are (step, tokens, loss of its batch)."""

    metric: str
    points: list[Point] = field(default_factory=list)
    steps: list[tuple[int, int, float]] = field(default_factory=list)

    @property
    def epochs(self) -> list[Point]:
        """Points after whole epochs, on the whole validation part."""
        return [point for point in self.points if point.whole and point.step]

    @property
    def best(self) -> Point:
        """The first of the best epochs by the chosen metric."""
        return min(self.epochs, key=lambda point: _badness(self.metric, point.validation[self.metric]))

    def write_csv(self, file: Path) -> None:
        """One line a step; validation columns are filled where it was measured."""
        names = sorted({name for point in self.points for name in point.validation})
        measured = {point.step: point for point in self.points}
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["step", "tokens", "train_loss", *(f"validation_{name}" for name in names)])
            for step, tokens, loss in [(0, 0, None), *self.steps] if 0 in measured else self.steps:
                figures = measured[step].validation if step in measured else {}
                writer.writerow([step, tokens, _figure(loss), *(_figure(figures.get(name)) for name in names)])


def _badness(metric: str, value: float) -> float:
    return value if metric in _LOWER_IS_BETTER else -value


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
