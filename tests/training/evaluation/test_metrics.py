import math

import numpy as np
import pytest

from training.evaluation.metrics import (
    answer_metrics,
    class_metrics,
    class_report,
    label_metrics,
    multi_label_report,
    perplexity,
    preference_metrics,
)

LABELS = ("bad", "fair", "good")
# Rows of "bad" twice, "fair" twice, "good" twice; the model takes a "good" for "fair" and a "fair" for "good".
EXPECTED = [0, 0, 1, 1, 2, 2]
PROBABILITIES = np.array(
    [[0.85, 0.1, 0.05], [0.65, 0.2, 0.15], [0.1, 0.85, 0.05], [0.1, 0.25, 0.65], [0.1, 0.65, 0.25], [0.05, 0.1, 0.85]],
    np.float32,
)


def test_a_class_report_counts_by_hand() -> None:
    report = class_report(LABELS, EXPECTED, PROBABILITIES)
    assert report.matrix == ((2, 0, 0), (0, 1, 1), (0, 1, 1))
    assert report.accuracy == report.micro_f1 == pytest.approx(4 / 6, abs=1e-6)
    assert report.macro_f1 == pytest.approx((1 + 0.5 + 0.5) / 3, abs=1e-6)
    fair = report.labels[1]
    assert (fair.label, fair.precision, fair.recall, fair.f1, fair.support) == ("fair", 0.5, 0.5, 0.5, 2)
    assert [(one.expected, one.answered, one.count) for one in report.confusions] == [
        ("fair", "good", 1),
        ("good", "fair", 1),
    ]


def test_calibration_counts_by_hand() -> None:
    calibration = class_report(LABELS, EXPECTED, PROBABILITIES).calibration
    assert calibration is not None
    assert len(calibration.bins) == 10
    filled = {one.low: (one.count, one.confidence, one.accuracy) for one in calibration.bins if one.count}
    assert filled == {0.6: (3, pytest.approx(0.65), pytest.approx(1 / 3)), 0.8: (3, pytest.approx(0.85), 1.0)}
    assert calibration.bins[0].confidence is None
    # Three rows are 0.15 less sure than right, three 0.65 - 1/3 surer.
    assert calibration.error == pytest.approx((0.15 + 0.65 - 1 / 3) / 2, abs=1e-6)
    truth = np.eye(3)[EXPECTED]
    assert calibration.brier == pytest.approx(((PROBABILITIES - truth) ** 2).sum(1).mean() / 2, abs=1e-6)


def test_a_confidence_of_one_falls_into_the_last_bin() -> None:
    calibration = class_report(("a", "b"), [0, 1], np.eye(2)).calibration
    assert calibration is not None
    assert calibration.bins[-1].count == 2
    assert calibration.error == calibration.brier == 0


def test_a_label_that_does_not_occur_is_listed_and_not_averaged() -> None:
    report = class_report(("a", "b", "never"), [0, 1], np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]))
    assert report.macro_f1 == 1
    assert report.labels[2].support == 0
    assert len(report.matrix or ()) == 3


def test_a_matrix_of_many_labels_is_left_out_and_its_confusions_stay() -> None:
    names = [f"intent {number}" for number in range(150)]
    probabilities = np.eye(150)[[1, *range(1, 150)]]
    report = class_report(names, range(150), probabilities)
    assert report.matrix is None
    assert [(one.expected, one.answered) for one in report.confusions] == [("intent 0", "intent 1")]


def test_multi_label_counts_by_hand() -> None:
    expected = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    probabilities = np.array([[0.9, 0.2, 0.4], [0.1, 0.5, 0.3], [0.2, 0.8, 0.1]])
    answered = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    report = multi_label_report(LABELS, expected, probabilities, 0.5)
    assert report.multi_label
    assert report.accuracy == pytest.approx(1 / 3, abs=1e-6)
    assert report.micro_f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1), abs=1e-6)
    assert report.macro_f1 == pytest.approx((1 + 2 / 3 + 0) / 3, abs=1e-6)
    assert [one.support for one in report.labels] == [1, 1, 1]
    assert report.matrix is None
    assert [
        (one.label, one.true_positives, one.false_negatives, one.false_positives, one.true_negatives)
        for one in report.decisions
    ] == [(LABELS[0], 1, 0, 0, 2), (LABELS[1], 1, 0, 1, 1), (LABELS[2], 0, 1, 0, 2)]
    metrics = class_metrics(report)
    calibration = report.calibration
    assert calibration is not None
    assert metrics.pop("brier") == pytest.approx(np.mean((probabilities - expected) ** 2), abs=1e-6)
    assert metrics.pop("calibration_error") == calibration.error
    assert metrics == pytest.approx(label_metrics(expected, answered), abs=1e-6)
    # In tenths, a border counting below it: of two probabilities at 0.1, 0.2, and one each of six others.
    filled = {round(one.high, 1): (one.count, one.accuracy) for one in calibration.bins if one.count}
    assert filled == {0.1: (2, 0), 0.2: (2, 0), 0.3: (1, 0), 0.4: (1, 1), 0.5: (1, 1), 0.8: (1, 0), 0.9: (1, 1)}
    assert calibration.error == pytest.approx((0.2 + 0.4 + 0.3 + 0.6 + 0.5 + 0.8 + 0.1) / 9, abs=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rows of 3 labels do not fit"):
        class_report(LABELS, EXPECTED[:5], PROBABILITIES)
    with pytest.raises(ValueError, match="3 labels do not fit"):
        multi_label_report(LABELS, np.zeros((2, 2)), np.zeros((2, 2)), 0.5)
    with pytest.raises(ValueError, match="make no pairs"):
        preference_metrics([1.0], [])


def test_the_table_s_figures_are_the_report_s() -> None:
    report = class_report(LABELS, EXPECTED, PROBABILITIES)
    metrics = class_metrics(report)
    assert set(metrics) == {"accuracy", "macro_f1", "calibration_error", "brier"}
    right, answered = np.array(EXPECTED), PROBABILITIES.argmax(1)
    assert label_metrics(right, answered) == pytest.approx(
        {name: metrics[name] for name in ("accuracy", "macro_f1")}, abs=1e-6
    )


def test_figures_of_answers() -> None:
    metrics = answer_metrics(math.log(8), [True, False, False, True], 30, 40)
    assert metrics == pytest.approx({"loss": math.log(8), "perplexity": 8, "token_accuracy": 0.75, "exact_match": 0.5})
    assert set(answer_metrics(1.0, [], 0, 0)) == {"loss", "perplexity"}


def test_perplexity_stays_finite() -> None:
    assert perplexity(0) == 1
    assert math.isfinite(perplexity(1e6))


def test_pairs_that_the_model_cannot_tell_count_half() -> None:
    metrics = preference_metrics([2.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0])
    assert metrics == {"pair_accuracy": 0.625, "margin": 0.5}
