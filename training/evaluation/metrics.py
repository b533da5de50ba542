"""Figures on held-out rows, from what a model answered. scikit-learn has most of them; nothing here knows a model."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from training.reporting.results import Bin, Calibration, ClassReport, Confusion, Decisions, LabelScore

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_BINS = 10
_MATRIX_LABELS = 100  # beyond, a matrix is mostly zeros and fills the file
_CONFUSIONS = 30
_LARGEST_EXPONENT = 100.0  # e^100: no reader takes it for a measurement, and it fits every float


def class_report(labels: Sequence[str], expected: Sequence[int] | Ints, probabilities: Floats) -> ClassReport:
    """The report of a classifier of one label a row.

    Args:
        labels: names of the labels in order.
        expected: the right label of each row, as an index into ``labels`` [rows].
        probabilities: softmax over the labels [rows, labels].
    """
    if not len(expected) or probabilities.shape != (len(expected), len(labels)):
        raise ValueError(f"{len(expected)} rows of {len(labels)} labels do not fit {probabilities.shape}")
    right = np.asarray(expected)
    answered = probabilities.argmax(1)
    matrix = confusion_matrix(right, answered, labels=range(len(labels)))
    return ClassReport(
        multi_label=False,
        accuracy=float(accuracy_score(right, answered)),
        macro_f1=_f1(right, answered, "macro"),
        micro_f1=_f1(right, answered, "micro"),
        labels=_label_scores(labels, right, answered),
        matrix=tuple(tuple(map(int, row)) for row in matrix) if len(labels) <= _MATRIX_LABELS else None,
        confusions=_confusions(labels, matrix),
        calibration=_calibration(right, probabilities),
    )


def multi_label_report(labels: Sequence[str], expected: Ints, probabilities: Floats, threshold: float) -> ClassReport:
    """The report of a classifier of any number of labels a row.

    Args:
        labels: names of the labels in order.
        expected: 1 where a row has a label, else 0 [rows, labels].
        probabilities: that a row has a label [rows, labels].
        threshold: from which probability it is given.

    Raises:
        ValueError: shapes that do not fit, or no rows.
    """
    if not len(expected) or expected.shape != probabilities.shape or expected.shape[1] != len(labels):
        raise ValueError(f"{len(labels)} labels do not fit {expected.shape} and {probabilities.shape}")
    answered = (probabilities >= threshold).astype(int)
    decisions = _decisions(labels, expected, answered)
    return ClassReport(
        multi_label=True,
        accuracy=float((expected == answered).all(1).mean()),
        macro_f1=_macro_f1_of(decisions),
        micro_f1=_micro_f1_of(decisions),
        labels=tuple(map(_score, decisions)),
        decisions=decisions,
        calibration=_calibration_of_labels(expected, probabilities),
    )


def label_metrics(expected: Ints, answered: Ints) -> dict[str, float]:
    """The figures that need no probabilities, of label indices [rows] or of indicators [rows, labels]."""
    if expected.ndim == 1:
        return {
            "accuracy": float(accuracy_score(expected, answered)),
            "macro_f1": _f1(expected, answered, "macro"),
        }
    decisions = _decisions([""] * expected.shape[1], expected, answered)
    return {
        "exact_match": float((expected == answered).all(1).mean()),
        "micro_f1": _micro_f1_of(decisions),
        "macro_f1": _macro_f1_of(decisions),
    }


def class_metrics(report: ClassReport) -> dict[str, float]:
    """The figures of a report that stand in the table before and after."""
    if report.multi_label:
        metrics = {"exact_match": report.accuracy, "micro_f1": report.micro_f1, "macro_f1": report.macro_f1}
    else:
        metrics = {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
    if report.calibration is not None:
        metrics |= {"calibration_error": report.calibration.error, "brier": report.calibration.brier}
    return metrics


def answer_metrics(loss: float, right: Sequence[bool], tokens_right: int, tokens: int) -> dict[str, float]:
    """Figures of a language model on held-out rows.

    Args:
        loss: cross-entropy per target token, in nats.
        right: for each row that was answered, whether its answer is the expected one; empty if none was.
        tokens_right: how many target tokens were the model's first choice.
        tokens: how many target tokens there are; 0 if they were not counted.
    """
    metrics = {"loss": loss, "perplexity": perplexity(loss)}
    if tokens:
        metrics["token_accuracy"] = tokens_right / tokens
    if right:
        metrics["exact_match"] = sum(right) / len(right)
    return metrics


def perplexity(loss: float) -> float:
    """e to the loss; what no float holds ends at e to 100."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


def preference_metrics(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float]:
    """Figures over pairs of scores, one for the better answer and one for the worse.

    ``pair_accuracy`` is the share of pairs where the better answer has the higher score; equal scores, as from a model
    that cannot tell, count half. ``margin`` is the mean of better minus worse.
    """
    if not chosen or len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected scores make no pairs")
    margins = np.asarray(chosen, float) - np.asarray(rejected, float)
    accuracy = (margins > 0).mean() + (margins == 0).mean() / 2
    return {"pair_accuracy": float(accuracy), "margin": float(margins.mean())}


def _f1(expected: Ints, answered: Ints, average: str) -> float:
    """Averaged over the labels that occur; one that no row has and nobody answered says nothing of the model."""
    return float(np.nan_to_num(f1_score(expected, answered, average=average, zero_division=np.nan)))


def _label_scores(labels: Sequence[str], expected: Ints, answered: Ints) -> tuple[LabelScore, ...]:
    """Per label; one that was never answered has precision 0, one without rows recall 0."""
    columns = precision_recall_fscore_support(expected, answered, labels=range(len(labels)), zero_division=0)
    return tuple(
        LabelScore(label=label, precision=float(precision), recall=float(recall), f1=float(f1), support=int(support))
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    )


def _confusions(labels: Sequence[str], matrix: Ints) -> tuple[Confusion, ...]:
    """The largest cells off the diagonal, in the labels' order where they are equal."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = [(int(cell) // len(labels), int(cell) % len(labels)) for cell in order]
    return tuple(
        Confusion(expected=labels[row], answered=labels[column], count=int(wrong[row, column]))
        for row, column in cells
        if wrong[row, column]
    )


def _decisions(labels: Sequence[str], expected: Ints, answered: Ints) -> tuple[Decisions, ...]:
    """Counted here: scikit-learn takes a single label for two classes."""
    there, given = expected == 1, answered == 1
    cells = ((there & given).sum(0), (there & ~given).sum(0), (~there & given).sum(0), (~there & ~given).sum(0))
    return tuple(
        Decisions(
            label=label, true_positives=found, false_negatives=missed, false_positives=wrong, true_negatives=absent
        )
        for label, found, missed, wrong, absent in zip(labels, *(cell.tolist() for cell in cells), strict=True)
    )


def _score(one: Decisions) -> LabelScore:
    """One that was never given has precision 0, one without rows recall 0."""
    found, missed, wrong = one.true_positives, one.false_negatives, one.false_positives
    return LabelScore(
        label=one.label,
        precision=found / max(1, found + wrong),
        recall=found / max(1, found + missed),
        f1=2 * found / max(1, 2 * found + missed + wrong),
        support=found + missed,
    )


def _macro_f1_of(decisions: Sequence[Decisions]) -> float:
    """Over the labels that occur; one that no row has and nobody gave says nothing of the model."""
    occur = [one for one in decisions if one.true_positives + one.false_negatives + one.false_positives]
    return sum(_score(one).f1 for one in occur) / max(1, len(occur))


def _micro_f1_of(decisions: Sequence[Decisions]) -> float:
    found = 2 * sum(one.true_positives for one in decisions)
    return found / max(1, found + sum(one.false_negatives + one.false_positives for one in decisions))


def _calibration(expected: Ints, probabilities: Floats) -> Calibration:
    # Softmax in float32 sums to 1 within rounding only, which scikit-learn does not accept.
    exact = np.asarray(probabilities, float)
    exact = exact / exact.sum(1, keepdims=True)
    brier = brier_score_loss(expected, exact, labels=range(exact.shape[1]), scale_by_half=True)
    bins = _bins(exact.max(1), exact.argmax(1) == expected)
    return Calibration(bins=bins, error=_error(bins), brier=float(brier))


def _calibration_of_labels(expected: Ints, probabilities: Floats) -> Calibration:
    """Over every label of every row."""
    exact, there = np.asarray(probabilities, float).ravel(), np.asarray(expected).ravel() == 1
    bins = _bins(exact, there)
    return Calibration(bins=bins, error=_error(bins), brier=float(np.mean((exact - there) ** 2)))


def _error(bins: Sequence[Bin]) -> float:
    """The expected calibration error."""
    gaps = [
        abs(one.confidence - one.accuracy) * one.count
        for one in bins
        if one.confidence is not None and one.accuracy is not None
    ]
    return sum(gaps) / sum(one.count for one in bins)


def _bins(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Equal widths; a confidence on a border counts below it."""
    places = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    return tuple(_bin(place, confidence[places == place], right[places == place]) for place in range(_BINS))


def _bin(place: int, confidence: Floats, right: NDArray[np.bool_]) -> Bin:
    count = len(confidence)
    return Bin(
        low=place / _BINS,
        high=(place + 1) / _BINS,
        count=count,
        confidence=float(confidence.mean()) if count else None,
        accuracy=float(right.mean()) if count else None,
    )
