import pytest

from training.evaluation.overfitting import overfitting
from training.reporting.results import Point


def points(train: list[float], validation: list[float], *, whole: bool = True) -> list[Point]:
    figures = zip(train, validation, strict=True)
    return [
        Point(step=10 * n, epoch=n, tokens=n, train_loss=a, validation={"loss": b}, whole=whole)
        for n, (a, b) in enumerate(figures)
    ]


def test_a_validation_loss_that_rises_while_the_train_loss_falls() -> None:
    """The published DistilBERT run: the best loss after the first epoch, the best accuracy after the third."""
    history = points([0.7, 0.41, 0.30, 0.21, 0.09, 0.04], [0.7, 0.423, 0.52, 0.61, 0.85, 1.03])
    assert overfitting(history) == (
        "The run overfits after epoch 1: validation loss rose from 0.423 to 1.030 (epoch 5) "
        "while train loss fell from 0.410 to 0.040."
    )


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ([0.7, 0.5, 0.3, 0.2], [0.7, 0.5, 0.45, 0.40]),
        ([0.7, 0.5, 0.3, 0.2], [0.7, 0.5, 0.45, 0.49]),  # a rise within the noise
        ([0.7, 0.5, 0.6, 0.8], [0.7, 0.5, 0.65, 0.90]),  # both rise: too high a rate, another illness
        ([0.7, 0.5], [0.1, 0.9]),  # what was before the first step says nothing of the run
        ([], []),
    ],
    ids=["falling", "noise", "diverging", "one-epoch", "empty"],
)
def test_no_verdict_without_its_signs(train: list[float], validation: list[float]) -> None:
    assert overfitting(points(train, validation)) is None


def test_the_bound_is_the_caller_s() -> None:
    history = points([0.7, 0.5, 0.3, 0.2], [0.7, 0.5, 0.45, 0.49])
    assert overfitting(history, rise=0.05) is not None


def test_measurements_of_a_few_batches_do_not_count() -> None:
    assert overfitting(points([0.7, 0.5, 0.3], [0.7, 0.4, 0.9], whole=False)) is None
