"""Whether a run went on learning its rows by heart after it had stopped learning the task."""

from collections.abc import Sequence

from training.reporting.results import Point

_RISE = 0.10
"""A validation loss that rises by less than this share of its lowest is taken for noise."""


def overfitting(history: Sequence[Point], rise: float = _RISE) -> str | None:
    """One sentence if the validation loss ends more than ``rise`` (a share) above its lowest while the train loss fell.

    Only measurements of the whole validation part after the first step count.
    """
    epochs = [point for point in history if point.whole and point.step]
    if len(epochs) < 2:
        return None
    lowest, last = min(epochs, key=lambda point: point.validation["loss"]), epochs[-1]
    low, high = lowest.validation["loss"], last.validation["loss"]
    if high <= low * (1 + rise) or last.train_loss >= lowest.train_loss:
        return None
    return (
        f"The run overfits after epoch {lowest.epoch:.3g}: validation loss rose from {low:.3f} to {high:.3f} "
        f"(epoch {last.epoch:.3g}) while train loss fell from {lowest.train_loss:.3f} to {last.train_loss:.3f}."
    )
