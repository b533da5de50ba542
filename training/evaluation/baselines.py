"""What a classifier must beat to be worth its training: the commonest label, and a model of word counts.

Labels are given as the rows hold them: indices into the run's label names, exactly one a row unless ``multi_label``.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from training.evaluation.metrics import Ints, label_metrics

MAJORITY, WORD_COUNTS = "majority class", "TF-IDF + logistic regression"

Labels = Sequence[Sequence[int]]
_WORD = r"(?u)\b\w+\b"  # single characters too: some languages have no longer words
_FEATURES = 50_000
_ITERATIONS = 300


def majority_baseline(train_labels: Labels, test_labels: Labels, *, multi_label: bool = False) -> dict[str, float]:
    """Figures of answering every test row with the training rows' commonest label (or set of labels)."""
    [(commonest, _)] = Counter(tuple(sorted(labels)) for labels in train_labels).most_common(1)
    expected, answered = _arrays(multi_label, test_labels, [commonest] * len(test_labels))
    return label_metrics(expected, answered)


def text_baseline(
    train_texts: Sequence[str],
    train_labels: Labels,
    test_texts: Sequence[str],
    test_labels: Labels,
    *,
    multi_label: bool = False,
) -> dict[str, float]:
    """Figures of logistic regression on TF-IDF of words and pairs of words; some seconds for ten thousand texts.

    Empty where it cannot be trained: the texts hold no words, or only one label occurs.
    """
    train, test = _arrays(multi_label, train_labels, test_labels)
    if len(np.unique(train, axis=0)) < 2 or not any(character.isalnum() for text in train_texts for character in text):
        return {}
    regression: Any = LogisticRegression(max_iter=_ITERATIONS)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES, token_pattern=_WORD),
        OneVsRestClassifier(regression) if multi_label else regression,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A label that all rows have, or none, is answered as such.
        warnings.filterwarnings("ignore", message="Label .* is present in|Label not .* is present in")
        model.fit(train_texts, train)
        return label_metrics(test, model.predict(test_texts).reshape(test.shape))  # of one label it returns no column


def _arrays(multi_label: bool, *parts: Labels) -> tuple[Ints, ...]:
    """Label indices [rows] for each part, or indicators [rows, labels] of one width."""
    if not multi_label:
        return tuple(np.array([labels[0] for labels in part]) for part in parts)
    width = 1 + max((label for part in parts for labels in part for label in labels), default=0)
    indicators = tuple(np.zeros((len(part), width), int) for part in parts)
    for array, part in zip(indicators, parts, strict=True):
        for row, labels in enumerate(part):
            array[row, list(labels)] = 1
    return indicators
