"""Every metric before and after, with what the baselines reach."""

from pathlib import Path
from typing import Any

from training.reporting.plots.canvas import BLUE, DARK, GREY, SMALL, canvas
from training.reporting.results import Results
from training.reporting.words import AFTER, BEFORE, compared, is_share, lower_is_better, metric_name
from training.reporting.words import figure as written

_NEAR = 0.35  # of the width; words of marks that stand nearer would run into each other


def draw_metrics(results: Results, file: Path) -> Path:
    """Draw two bars a metric, each metric on a scale of its own, for a loss and a share have none in common."""
    rows = compared(results)
    with canvas(file, 0.5 + 0.72 * len(rows)) as paper:
        panels = paper.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, (metric, before, after) in zip(panels, rows, strict=True):
            marks = {name: figures[metric] for name, figures in results.baselines.items() if metric in figures}
            _draw_metric(axes, metric, {AFTER: after, BEFORE: before}, marks)
        panels[0].set_title(f"{results.after.rows:,} held-out rows ({results.after.part})", pad=12)
    return file


def _draw_metric(axes: Any, metric: str, values: dict[str, float | None], marks: dict[str, float]) -> None:
    shown = {name: value for name, value in values.items() if value is not None}
    reach = [0.0, *shown.values(), *marks.values()]
    high = 1.0 if is_share(metric) else max(reach) or 1.0
    axes.set_xlim(min(reach), high * 1.12)
    axes.barh(list(shown), list(shown.values()), color=[BLUE if name == AFTER else GREY for name in shown], height=0.7)
    for place, value in enumerate(shown.values()):
        axes.annotate(
            written(value),
            (max(value, 0), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
    for line, (name, value) in enumerate(marks.items()):
        alone = all(abs(value - other) > _NEAR * high for other in marks.values() if other != value)
        _draw_mark(axes, f"{name} {written(value)}", value / high, value, 0 if alone else line)
    note = "\n(less is better)" if lower_is_better(metric) else ""
    axes.set_ylabel(f"{metric_name(metric)}{note}", rotation=0, ha="right", va="center", fontsize=SMALL)
    axes.tick_params(axis="y", length=0, labelsize=SMALL)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _draw_mark(axes: Any, text: str, share: float, value: float, line: int) -> None:
    """A dashed line with its words above the bars, on ``line`` counted from below."""
    axes.axvline(value, color=DARK, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.annotate(
        text,
        (value, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 1 + 8 * line),
        textcoords="offset points",
        ha="left" if share < 0.2 else "right" if share > 0.8 else "center",
        fontsize=6.5,
        annotation_clip=False,
    )
