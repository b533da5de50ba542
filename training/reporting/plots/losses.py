"""Both losses over epochs, tokens seen as the second axis, the learning rate as a shadow."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import EngFormatter, MaxNLocator

from training.reporting.plots.canvas import BLUE, DARK, GREY, ORANGE, PALE, SMALL, canvas, end_labels
from training.reporting.results import Point, Results
from training.reporting.words import figure as written
from training.reporting.words import metric_name

_SHADOW = 0.16  # of the height
_TRAIN, _VALIDATION = "train", "validation"


def draw_losses(results: Results, file: Path) -> Path:
    """Draw the losses into a PNG; the best epoch is ringed."""
    with canvas(file, 4.2) as paper:
        axes = paper.subplots()
        points = results.history
        end = max(point.epoch for point in points)
        axes.set(xlabel="epochs", ylabel="loss", xlim=(0, end), ylim=(0, _top(results)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(f"{results.base.id}, {results.task}", pad=10)
        _draw_steps(axes, results)
        _draw_points(axes, points)
        _ring(axes, results)
        _draw_rate(axes, results)
        _add_tokens(axes, points[-1])
    return file


def _top(results: Results) -> float:
    """Single steps may jump out of the picture; measured points may not."""
    return 1.08 * max(max(point.train_loss, point.validation["loss"]) for point in results.history)


def _epoch(results: Results, step: int) -> float:
    last = results.history[-1]
    return step * last.epoch / last.step if last.step else 0.0


def _draw_steps(axes: Any, results: Results) -> None:
    places = [_epoch(results, step.step) for step in results.steps]
    axes.plot(places, [step.loss for step in results.steps], color=BLUE, alpha=0.18, linewidth=0.7, zorder=1)


def _draw_points(axes: Any, points: tuple[Point, ...]) -> None:
    epochs = [point.epoch for point in points]
    lines = {
        _TRAIN: [point.train_loss for point in points],
        _VALIDATION: [point.validation["loss"] for point in points],
    }
    colours = {_TRAIN: BLUE, _VALIDATION: ORANGE}
    for name, values in lines.items():
        axes.plot(epochs, values, color=colours[name], linewidth=1.8, marker="o", markersize=3.5, clip_on=False)
    end_labels(axes, epochs[-1], {name: values[-1] for name, values in lines.items()}, colours)


def _ring(axes: Any, results: Results) -> None:
    best, point = results.best, results.best_point
    if point is None:
        return
    place = (point.epoch, point.validation["loss"])
    axes.plot(*place, "o", markersize=11, fillstyle="none", markeredgewidth=1.2, color=DARK, clip_on=False, zorder=5)
    late = point.epoch > 0.6 * axes.get_xlim()[1]
    after = next((later.validation["loss"] for later in results.history if later.step > point.step), 0.0)
    above = late or after <= place[1]  # where the line goes on upwards, the words stand below it
    axes.annotate(
        f"best: validation {metric_name(best.metric)} {written(best.value)}",
        place,
        xytext=(-8 if late else 8, 12 if above else -18),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=SMALL,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        zorder=6,
    )


def _draw_rate(axes: Any, results: Results) -> None:
    """A shadow at the foot: its shape is what matters, its height is stated."""
    rates = [step.learning_rate for step in results.steps]
    if not rates or not max(rates):
        return
    places = [_epoch(results, step.step) for step in results.steps]
    height = _SHADOW * axes.get_ylim()[1]
    heights = [rate / max(rates) * height for rate in rates]
    axes.fill_between(places, heights, color=PALE, alpha=0.7, linewidth=0, zorder=0)
    axes.annotate(
        f"learning rate, at most {max(rates):.2g}",
        (0, 0),
        xytext=(5, 4),
        textcoords="offset points",
        fontsize=SMALL,
        color=GREY,
    )


def _add_tokens(axes: Any, last: Point) -> None:
    """Tokens an epoch are nearly constant, so a linear second axis is right to within a batch."""
    if not last.tokens:
        return
    ratio = last.tokens / last.epoch
    tokens = axes.secondary_xaxis("top", functions=(lambda epoch: epoch * ratio, lambda seen: seen / ratio))
    tokens.set_xlabel("tokens seen")
    tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
    tokens.spines["top"].set_visible(True)
