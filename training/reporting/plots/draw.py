"""All pictures of a run at once."""

from pathlib import Path

from training.reporting.plots.bars import draw_metrics
from training.reporting.plots.classes import draw_calibration, draw_confusion
from training.reporting.plots.losses import draw_losses
from training.reporting.results import Results

LOSSES, METRICS, CONFUSION, CALIBRATION = "loss.png", "metrics.png", "confusion.png", "calibration.png"


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw what there is to see into ``folder``; returns the files, the losses first."""
    drawn = [
        draw_losses(results, folder / LOSSES),
        draw_metrics(results, folder / METRICS),
        draw_confusion(results, folder / CONFUSION),
        draw_calibration(results, folder / CALIBRATION),
    ]
    return [file for file in drawn if file is not None]
