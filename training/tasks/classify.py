"""The task of sorting texts into classes: one label a text, or any number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from adapters.templates import encode_text
from training.config import ClassifyConfig
from training.data.findings import Finding, counted
from training.data.lengthy import too_long
from training.data.rows import Place, TextRow
from training.errors import ConfigError
from training.evaluation.baselines import MAJORITY, WORD_COUNTS, majority_baseline, text_baseline
from training.evaluation.metrics import class_metrics, class_report, multi_label_report
from training.fast.model import FastModel, Rows, Target
from training.model import load_classifier
from training.reporting.results import ClassReport, Evaluation, Sample
from training.tasks.examples import TextExample
from training.tasks.task import Metrics, Task

_NO_LIMIT = 1 << 30
_THRESHOLD = 0.5
"""Probability from which a text has a label, where it may have several."""
# Shown where the second of two labels is the good one, unless the recipe brings sentences of its own.
_GOOD = ("positive", "pos", "good")
_SENTENCES = (
    ("It was good.", 1),
    ("Not a fan, don't recommend.", 0),
    ("Better than the first one.", 1),
    ("This is not worth watching even once.", 0),
    ("This one is a pass.", 0),
)


class ClassifyTask(Task[TextRow, TextExample]):
    """Rows of text and label; cross-entropy over the labels, or of each label where there may be several."""

    config: ClassifyConfig
    labels: tuple[str, ...]

    def __init__(self, config: ClassifyConfig) -> None:
        self._cut: list[Place] = []
        super().__init__(config)
        self.labels, self.multi_label = self.dataset.labels, self.dataset.multi_label
        if self.multi_label and config.metric == "accuracy":
            self.notes.append("a row counts as right for accuracy if all of its labels are")
        self._weights = self._label_weights()
        self._sentences = self._read_sentences()

    def encode_row(self, row: TextRow) -> Sequence[TextExample]:
        """Token ids, cut to the limit."""
        ids = encode_text(self.tokenizer, row.text, _NO_LIMIT, self.config.truncation_side)
        if len(ids) > self.max_length:
            self._cut.append(row.place)
            ids = encode_text(self.tokenizer, row.text, self.max_length, self.config.truncation_side)
        return [TextExample(row.place, tuple(ids), row.labels, row.text)]

    def finish(self) -> None:
        """Say which texts were cut."""
        if self._cut:
            texts, are = counted(len(self._cut), "text"), "is" if len(self._cut) == 1 else "are"
            message = (
                f"{texts} of more than {self.max_length} tokens {are} cut at the {self.config.truncation_side} end"
            )
            mend = too_long(self.max_length, self.base.max_length)
            self.findings.append(Finding("over-long", "warning", message, mend, tuple(self._cut)))

    def load_model(self) -> Any:
        """The base with a new head, drawn at random."""
        return load_classifier(self.base, self.labels, self.pad_id)

    def weight(self, examples: Sequence[TextExample]) -> float:
        """Texts, by the weights of their labels."""
        if self.multi_label:
            return float(len(examples))
        return float(self._weights[[example.labels[0] for example in examples]].sum())

    def loss(self, fast: FastModel, examples: Sequence[TextExample]) -> Tensor:
        """Summed cross-entropy; of several labels its mean over the labels, each by the weights of its two answers."""
        return self._loss(fast.label_logits([example.ids for example in examples]), examples)

    def validate(self, fast: FastModel, examples: Sequence[TextExample]) -> Metrics:
        """Loss per text, accuracy and F1."""
        metrics, _ = self._figures(self._logits(fast, examples), examples)
        return {name: metrics[name] for name in ("loss", "accuracy", "macro_f1")}

    def measure(self, fast: FastModel) -> Evaluation:
        """Everything on the held-out rows; the sentences with their labels."""
        examples = self.examples.held_out
        sentences = [example for row in self._sentences for example in self.encode_row(row)]
        logits = self._logits(fast, examples)
        metrics, report = self._figures(logits, examples)
        return Evaluation(
            part=self.part,
            rows=len(examples),
            metrics=metrics,
            samples=tuple(self._samples(examples, logits)),
            sentences=tuple(self._samples(sentences, self._logits(fast, sentences))) if sentences else (),
            classes=report,
        )

    def probe(self) -> tuple[Rows, Sequence[Sequence[Target]] | None]:
        """Short training rows."""
        return [row.ids for row in self.short()], None

    def sample(self, fast: FastModel) -> Sample:
        """The label of the first validation row."""
        first = self.examples.validation[:1]
        return self._samples(first, self._logits(fast, first))[0]

    def baselines(self) -> dict[str, dict[str, float]]:
        """The commonest label, and a model of word counts."""
        train, test = self.examples.train, self.examples.held_out
        labels, held_out = [row.labels for row in train], [row.labels for row in test]
        figures = {
            MAJORITY: majority_baseline(labels, held_out, multi_label=self.multi_label),
            WORD_COUNTS: text_baseline(
                [row.text for row in train],
                labels,
                [row.text for row in test],
                held_out,
                multi_label=self.multi_label,
            ),
        }
        return {name: found for name, found in figures.items() if found}

    def manifest_fields(self) -> dict[str, Any]:
        """The labels in order, whether several may apply, and the end that a long text loses."""
        return {
            "task": "classify",
            "labels": self.labels,
            "truncation_side": self.config.truncation_side,
            "problem_type": "multi_label" if self.multi_label else "single_label",
        }

    def _label_weights(self) -> Tensor:
        """What a row of each label counts: all the same, or so that all labels together do.

        Returns:
            ``[labels]``, or ``[2, labels]`` where a text may have several: of rows without and with each label.
        """
        counts = torch.bincount(
            torch.tensor([label for row in self.rows.train for label in row.labels], dtype=torch.long),
            minlength=len(self.labels),
        )
        rows, answers = len(self.rows.train), len(self.labels)
        if self.multi_label:
            counts, answers = torch.stack((rows - counts, counts)), 2
        if self.config.class_weights == "none":
            return torch.ones(counts.shape)
        return rows / (answers * counts.clamp(min=1).float())

    def _loss(self, logits: Tensor, examples: Sequence[TextExample]) -> Tensor:
        if self.multi_label:
            wanted, (without, having) = self._many(examples).to(logits.device), self._weights.to(logits.device)
            weights = torch.where(wanted > 0, having, without)
            return binary_cross_entropy_with_logits(logits, wanted, weights, reduction="none").mean(-1).sum()
        wanted = torch.tensor([example.labels[0] for example in examples], device=logits.device)
        return cross_entropy(logits, wanted, weight=self._weights.to(logits.device), reduction="sum")

    def _figures(self, logits: Tensor, examples: Sequence[TextExample]) -> tuple[Metrics, ClassReport]:
        loss = float(self._loss(logits, examples)) / self.weight(examples)
        if self.multi_label:
            wanted = self._many(examples).long().numpy()
            report = multi_label_report(self.labels, wanted, logits.sigmoid().numpy(), _THRESHOLD)
        else:
            shares = logits.softmax(-1).numpy().astype(np.float64)
            report = class_report(self.labels, [example.labels[0] for example in examples], shares)
        return {"loss": loss, "accuracy": report.accuracy, **class_metrics(report)}, report

    @torch.no_grad()
    def _logits(self, fast: FastModel, examples: Sequence[TextExample]) -> Tensor:
        """``[examples, labels]`` on the CPU."""
        fast.model.eval()
        logits = torch.empty(len(examples), len(self.labels))
        order = sorted(range(len(examples)), key=lambda index: examples[index].tokens)
        for start in range(0, len(order), self.config.eval_batch_size):
            chosen = order[start : start + self.config.eval_batch_size]
            logits[chosen] = fast.label_logits([examples[index].ids for index in chosen]).cpu()
        return logits

    def _many(self, examples: Sequence[TextExample]) -> Tensor:
        """``[examples, labels]``: 1 where a text has a label."""
        wanted = torch.zeros(len(examples), len(self.labels))
        for row, example in enumerate(examples):
            wanted[row, list(example.labels)] = 1
        return wanted

    def _samples(self, examples: Sequence[TextExample], logits: Tensor) -> list[Sample]:
        said = [self._spoken(row) for row in self._answered(logits)]
        # A sentence whose label nobody stated has -1.
        right = [None if -1 in example.labels else self._spoken(example.labels) for example in examples]
        return [
            Sample(
                prompt=example.text, answer=answer, expected=wanted, right=None if wanted is None else answer == wanted
            )
            for example, answer, wanted in zip(examples, said, right, strict=True)
        ]

    def _answered(self, logits: Tensor) -> list[list[int]]:
        if self.multi_label:
            return [row.nonzero()[:, 0].tolist() for row in logits.sigmoid() >= _THRESHOLD]
        return [[label] for label in logits.argmax(-1).tolist()]

    def _spoken(self, labels: Sequence[int]) -> str:
        return ", ".join(self.labels[label] for label in labels) or "none"

    def _read_sentences(self) -> tuple[TextRow, ...]:
        """The sentences of the configuration, with their labels (-1: none stated)."""
        config = self.config
        if config.sentences:
            stated = [self._label_index(name) for name in config.sentence_labels] or [-1] * len(config.sentences)
            return self._rows_of(zip(config.sentences, stated, strict=True))
        if self.multi_label:
            return ()
        if len(self.labels) == 2 and self.labels[1].lower() in _GOOD:
            return self._rows_of(_SENTENCES)
        if self.labels == ("0", "1"):  # sentiment or not, nobody knows: shown without a verdict
            return self._rows_of((text, -1) for text, _ in _SENTENCES)
        return ()

    def _rows_of(self, sentences: Any) -> tuple[TextRow, ...]:
        place = self.rows.train[0].place
        return tuple(TextRow(place, text, (label,)) for text, label in sentences)

    def _label_index(self, name: str) -> int:
        if name not in self.labels:
            raise ConfigError(f"sentence_labels: unknown label {name!r}; the labels are {', '.join(self.labels)}")
        return self.labels.index(name)
