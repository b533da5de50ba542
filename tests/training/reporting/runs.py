"""Results as runs leave them, made without a run: the figures come from the functions that a run uses."""

from typing import Any

import numpy as np

from training.evaluation.metrics import answer_metrics, class_metrics, class_report, multi_label_report
from training.reporting.results import (
    Base,
    Best,
    Comparison,
    Evaluation,
    Judgement,
    Parameters,
    Point,
    Results,
    Rows,
    Sample,
    Seconds,
    Step,
)

DIGEST = "0123456789abcdef" * 4


def history(train: list[float], validation: list[dict[str, float]], steps: int = 40) -> tuple[Point, ...]:
    return tuple(
        Point(step=steps * n, epoch=n, tokens=9_000 * n, train_loss=a, validation=b, evaluation_seconds=1.5)
        for n, (a, b) in enumerate(zip(train, validation, strict=True))
    )


def steps(points: tuple[Point, ...], rate: float = 1e-3) -> tuple[Step, ...]:
    last = points[-1]
    noise = np.random.default_rng(0).normal(0, 0.12, last.step + 1)
    losses = np.interp(range(last.step + 1), [p.step for p in points], [p.train_loss for p in points])
    return tuple(
        Step(
            step=n,
            tokens=last.tokens * n // last.step,
            loss=max(0.01, float(losses[n] * (1 + noise[n]))),
            learning_rate=rate * min(1, n / (0.1 * last.step)) * (1 - n / last.step),
        )
        for n in range(1, last.step + 1)
    )


def classifier(labels: tuple[str, ...], skill: float, rows: int, part: Any = "test") -> Evaluation:
    """A classifier of noise and ``skill``; 0 knows nothing."""
    draw = np.random.default_rng(7)
    expected = np.sort(draw.integers(0, len(labels), rows))
    logits = draw.normal(0, 1, (rows, len(labels)))
    logits[np.arange(rows), expected] += skill
    logits[np.arange(rows), np.minimum(expected + 1, len(labels) - 1)] += skill / 2
    probabilities = np.exp(1.5 * logits) / np.exp(1.5 * logits).sum(1, keepdims=True)
    report = class_report(labels, expected, probabilities)
    loss = float(-np.log(probabilities[np.arange(rows), expected]).mean())
    samples = tuple(
        Sample(
            prompt=f"Review {row}: it was | what it was\nand more",
            answer=labels[said],
            expected=labels[right],
            right=bool(said == right),
        )
        for row, said, right in zip(range(6), probabilities.argmax(1), expected, strict=False)
    )
    sentences = (Sample(prompt="It was good.", answer=labels[0], expected=labels[-1], right=len(labels) == 1),)
    metrics = {"loss": loss, **class_metrics(report)}
    return Evaluation(part=part, rows=rows, metrics=metrics, samples=samples, sentences=sentences, classes=report)


def tagger(labels: tuple[str, ...], skill: float, rows: int) -> Evaluation:
    """A classifier of any number of labels."""
    draw = np.random.default_rng(5)
    expected = (draw.random((rows, len(labels))) < 0.3).astype(int)
    probabilities = 1 / (1 + np.exp(-(draw.normal(-1, 1, expected.shape) + skill * (2 * expected - 1))))
    report = multi_label_report(labels, expected, probabilities, 0.5)
    return Evaluation(part="test", rows=rows, metrics={"loss": 0.5, **class_metrics(report)}, classes=report)


def multi_label(count: int) -> Results:
    """A run whose rows have any number of labels."""
    labels = tuple(f"topic {number}" for number in range(count))
    return results(before=tagger(labels, 0.0, 200), after=tagger(labels, 2.0, 200), baselines={})


def results(**changes: Any) -> Results:
    """A run of the DistilBERT recipe's kind, which overfits after its first epoch."""
    points = history(
        [0.70, 0.41, 0.30, 0.21, 0.09, 0.04],
        [
            {"loss": a, "accuracy": b}
            for a, b in zip(
                [0.70, 0.423, 0.52, 0.61, 0.85, 1.03], [0.5, 0.876, 0.878, 0.899, 0.894, 0.891], strict=True
            )
        ],
    )
    labels = ("Negative", "Positive")
    fields: dict[str, Any] = {
        "task": "classify",
        "update": "lora",
        "base": Base(
            id="distilbert-base-uncased", revision="12040accade4e8a0f71eabdb258fecc2e7e948be", fingerprint=DIGEST
        ),
        "recipe": {
            "task": "classify",
            "base": "/home/somebody/models/distilbert-base-uncased",
            "data": "train.jsonl",
            "rank": 4,
            "alpha": 32.0,
            "dropout": 0.01,
            "targets": ["q_lin"],
            "epochs": 5,
            "lr": 1e-3,
            "batch_size": 4,
            "schedule": "linear",
            "seed": 123,
            "max_length": 512,
        },
        "rows": Rows(train=1000, validation=1000, test=300),
        "notes": ("12 texts of more than 512 tokens lose their left end",),
        "findings": ("3 of the held-out rows stand among the training rows too",),
        "data_sha256": DIGEST[::-1],
        "parameters": Parameters(trained=628_994, all=67_584_004),
        "best": Best(metric="accuracy", epoch=3, step=120, value=0.899),
        "before": classifier(labels, 0.0, 300),
        "after": classifier(labels, 1.8, 300),
        "baselines": {
            "majority class": {"accuracy": 0.5, "macro_f1": 0.333},
            "TF-IDF + logistic regression": {"accuracy": 0.773, "macro_f1": 0.772},
        },
        "history": points,
        "steps": steps(points),
        "seconds": Seconds(total=312.4, training=280.1, evaluation=20.5),
        "tokens_per_second": 1_606.2,
        "stopped": "finished",
        "precision": "bfloat16",
        "device": "cpu",
        "threads": 2,
        "tools": {"tenora": "0.1.0", "torch": "2.13.0", "peft": "0.21.2"},
        "created": "2026-01-31T12:00:00+00:00",
        "adapter": "adapter",
    }
    return Results(**{**fields, **changes})


def many_labels(count: int, **changes: Any) -> Results:
    labels = tuple(f"intent_{number}_of_customer" for number in range(count))
    return results(before=classifier(labels, 0.0, 900), after=classifier(labels, 2.5, 900), baselines={}, **changes)


def answers(words: tuple[str, ...], loss: float, score: float) -> Evaluation:
    samples = tuple(
        Sample(
            prompt=f"Rewrite the sentence in the passive voice.\n\nThe chef cooks meal {number} every day.",
            answer=word,
            expected="The meal is cooked every day.",
            right=word == "The meal is cooked every day.",
            score=score,
        )
        for number, word in enumerate(words)
    )
    right = [sample.right is True for sample in samples]
    judged = Judgement(model="llama-3-8b", scored=4, mean=score, unparsable=1, problems=("question 5: the reply 'ok'",))
    metrics = answer_metrics(loss, right, round(500 * np.exp(-loss / 2)), 500)
    return Evaluation(part="validation", rows=55, metrics=metrics, samples=samples, judged=judged)


def instruct_results(**changes: Any) -> Results:
    """A run of the book's kind: GPT-2 medium on instructions."""
    points = history([2.64, 0.52, 0.30], [{"loss": 2.63}, {"loss": 0.67}, {"loss": 0.657}], steps=115)
    fields: dict[str, Any] = {
        "task": "instruct",
        "base": Base(id="gpt2-medium", fingerprint=DIGEST),
        "rows": Rows(train=935, validation=55, test=0),
        "best": Best(metric="loss", epoch=2, step=230, value=0.657),
        "before": answers(("The chef cooks the meal every day.",) * 5, 2.63, 12.5),
        "after": answers(("The meal is cooked every day.",) * 2 + ("The meal cooks.",) * 3, 0.657, 50.23),
        "baselines": {},
        "comparison": Comparison(model="llama-3-8b", wins=3, ties=1, losses=1),
        "history": points,
        "steps": steps(points, 5e-5),
    }
    return results(**{**fields, **changes})
