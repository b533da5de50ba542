"""How a classifier errs: which label for which, and how sure it was."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import PercentFormatter

from training.reporting.plots.canvas import BLUE, DARK, GREY, PALE, SMALL, WIDTH, canvas, end_labels
from training.reporting.results import Calibration, ClassReport, Results
from training.reporting.words import figure as written
from training.reporting.words import one_line

MATRIX_LABELS = 30
"""Beyond, no cell can be read, and the commonest confusions are drawn instead."""

_SHARES_LABELS = 12  # beyond, a cell has room for its count only
_CONFUSIONS = 15
_NAME = 22  # characters of a label


def draw_confusion(results: Results, file: Path) -> Path | None:
    """Draw the confusion matrix, each label's own where a row has any number, or the commonest confusions of many.

    Returns:
        None if there is nothing of that.
    """
    report = results.after.classes
    if report is not None and report.decisions:
        return _draw_decisions(report, file)
    if report is not None and report.matrix is not None and len(report.labels) <= MATRIX_LABELS:
        return _draw_matrix(report, report.matrix, file)
    if report is not None and report.confusions:
        return _draw_confusions(report, file)
    return None


def draw_calibration(results: Results, file: Path) -> Path | None:
    """Draw how often answers of a confidence are right, before and after; None if it was not measured."""
    before, after = (_calibration(report) for report in (results.before.classes, results.after.classes))
    if after is None or results.after.classes is None:
        return None
    of_labels = results.after.classes.multi_label
    with canvas(file, 4.4) as paper:
        axes, counts = paper.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot((0, 1), (0, 1), color=PALE, linewidth=1.2, zorder=0)
        axes.annotate("as sure as right", (0.015, 0.19), color=GREY, fontsize=SMALL)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="labels that are there" if of_labels else "answers that are right")
        axes.set_title(_calibration_title(before, after))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        if before is not None:
            _draw_curve(axes, before, "before", GREY)
        _draw_curve(axes, after, "after", BLUE)
        _draw_counts(counts, after)
        answer = "probability of a label" if of_labels else "confidence of the answer"
        counts.set_xlabel(f"{answer}; bars: how many had it")
    return file


def _draw_matrix(report: ClassReport, matrix: tuple[tuple[int, ...], ...], file: Path) -> Path:
    size = len(report.labels)
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    names = [one_line(one.label, _NAME) for one in report.labels]
    with canvas(file, max(3.0, min(WIDTH, 1.6 + 0.75 * size))) as paper:
        axes = paper.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        small = SMALL if size <= _SHARES_LABELS else 6
        axes.set_xticks(range(size), names, fontsize=small, rotation=0 if _fits_flat(names) else 90)
        axes.set_yticks(range(size), names, fontsize=small)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set(xlabel="answered", ylabel="expected")
        axes.set_title(f"{_rows(report):,} held-out rows, accuracy {written(report.accuracy)}")
        for row in range(size):
            for column in range(size):
                if matrix[row][column]:
                    _write_cell(axes, (column, row), matrix[row][column], shares[row][column], size)
    return file


def _draw_decisions(report: ClassReport, file: Path) -> Path:
    """A line for each label, of very many for those with most mistakes; cells are shaded by their share of the rows."""
    shown = report.decisions
    if len(shown) > MATRIX_LABELS:
        shown = tuple(sorted(shown, key=lambda one: -(one.false_negatives + one.false_positives))[:MATRIX_LABELS])
    cells = [(one.true_positives, one.false_negatives, one.false_positives, one.true_negatives) for one in shown]
    shares = [[count / sum(row) for count in row] for row in cells]
    with canvas(file, min(WIDTH, 1.7 + 0.36 * len(shown))) as paper:
        axes = paper.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(4), ["there, given", "there, missed", "not there, given", "not there, not given"])
        axes.set_yticks(range(len(shown)), [one_line(one.label, _NAME) for one in shown], fontsize=SMALL)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        of = "" if len(shown) == len(report.decisions) else f"; {len(shown)} of {len(report.decisions)} labels"
        axes.set_title(f"{sum(cells[0]):,} held-out rows, all labels right in {written(report.accuracy)}{of}")
        for row, counts in enumerate(cells):
            for column, count in enumerate(counts):
                colour = "white" if shares[row][column] > 0.55 else DARK
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=SMALL)
    return file


def _rows(report: ClassReport) -> int:
    """How many rows a report of one label a row is about."""
    return sum(one.support for one in report.labels)


def _write_cell(axes: Any, place: tuple[int, int], count: int, share: float, size: int) -> None:
    text = f"{count:,}\n{share:.0%}" if size <= _SHARES_LABELS else f"{count}"
    colour = "white" if share > 0.55 else DARK
    axes.text(*place, text, ha="center", va="center", color=colour, fontsize=SMALL if size <= _SHARES_LABELS else 6.5)


def _fits_flat(names: list[str]) -> bool:
    """Whether the labels fit side by side: about a hundred letters to the width."""
    return max(map(len, names)) * len(names) <= 80


def _draw_confusions(report: ClassReport, file: Path) -> Path:
    shown = report.confusions[:_CONFUSIONS]
    supports = {one.label: one.support for one in report.labels}
    with canvas(file, 1.1 + 0.3 * len(shown)) as paper:
        axes = paper.subplots()
        places = range(len(shown))
        axes.barh(places, [one.count for one in shown], color=BLUE, height=0.62)
        names = [f"{one_line(one.expected, _NAME)} → {one_line(one.answered, _NAME)}" for one in shown]
        axes.set_yticks(places, names, fontsize=SMALL)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        for place, one in enumerate(shown):
            text = f"{one.count} of {supports[one.expected]}"
            axes.annotate(
                text, (one.count, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL
            )
        axes.margins(x=0.12)
        axes.set_title(f"commonest confusions of {len(report.labels)} labels")
    return file


def _calibration(report: ClassReport | None) -> Calibration | None:
    return report.calibration if report is not None else None


def _calibration_title(before: Calibration | None, after: Calibration) -> str:
    title = f"calibration error {written(after.error)}"
    return title if before is None else f"{title} (before: {written(before.error)})"


def _draw_curve(axes: Any, calibration: Calibration, name: str, colour: str) -> None:
    filled = [
        (one.confidence, one.accuracy)
        for one in calibration.bins
        if one.confidence is not None and one.accuracy is not None
    ]
    axes.plot(*zip(*filled, strict=True), color=colour, marker="o", markersize=4, linewidth=1.6, clip_on=False)
    end_labels(axes, filled[-1][0], {name: filled[-1][1]}, {name: colour})


def _draw_counts(axes: Any, calibration: Calibration) -> None:
    """How many answers stand behind each point."""
    middles = [(one.low + one.high) / 2 for one in calibration.bins]
    axes.bar(middles, [one.count for one in calibration.bins], width=0.09, color=PALE)
    for middle, one in zip(middles, calibration.bins, strict=True):
        if one.count:
            axes.annotate(
                f"{one.count:,}",
                (middle, one.count),
                xytext=(0, 1),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=GREY,
                annotation_clip=False,
            )
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.margins(y=0.3)
