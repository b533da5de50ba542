"""The task of sorting texts into classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSource
from adapters.templates import encode_text
from training.batches import Batch, ClassExample, by_length, collate_texts
from training.config import ClassifyConfig
from training.errors import ConfigError
from training.model import load_classifier
from training.rows import TextRow, read_classify
from training.split import Split, divide
from training.task import Measured, Metrics, Sampled, Task, given_files, note_shared, to_device

_NO_LIMIT = 1 << 30
# Shown where the second of two labels is the good one, unless the recipe brings sentences of its own.
_GOOD = ("positive", "pos", "good")
_SENTENCES = (
    ("It was good.", 1),
    ("Not a fan, don't recommend.", 0),
    ("Better than the first one.", 1),
    ("This is not worth watching even once.", 0),
    ("This one is a pass.", 0),
)


class ClassifyTask(Task[ClassExample]):
    """Rows of text and label; cross-entropy over the labels, accuracy."""

    config: ClassifyConfig
    labels: tuple[str, ...]

    def __init__(self, config: ClassifyConfig) -> None:
        """Read the rows.

        Raises:
            DataError: with every bad row.
        """
        self.config = config
        self.notes = []
        files = given_files(config)
        parts, self.labels, hashes = read_classify([path for _, path in files], config.ignore_columns, config.labels)
        self.data_sha256 = hashes[0]
        rows = dict(zip([part for part, _ in files], parts, strict=True))
        self._rows = divide(config, rows, lambda row: row.label)
        note_shared(self.notes, (row.text for row in self._rows.train), (row.text for row in self._rows.held_out))
        self._sentences = self._read_sentences()

    def encode(self, base: BaseSource) -> None:
        """Tokenise; texts longer than the limit lose one end."""
        self.use(base)
        self._cut = 0
        rows = self._rows
        self.split = Split(*(self._examples(part) for part in (rows.train, rows.validation, rows.test)))
        if self._cut:
            side = self.config.truncation_side
            self.notes.append(f"{self._cut} texts of more than {self.max_length} tokens lose their {side} end")

    def load_model(self) -> Any:
        """The base with a new head, drawn at random."""
        return load_classifier(self.base, self.labels, self.pad_id)

    def collate(self, examples: Sequence[ClassExample]) -> Batch:
        """Inputs and label indices."""
        return collate_texts(examples, self.pad_id)

    def logits(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [rows, labels] and label indices."""
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return output.logits, batch["targets"]

    def validate(self, model: Any, examples: Sequence[ClassExample]) -> Metrics:
        """Loss per text and accuracy."""
        return _metrics(examples, self._all_logits(model, examples))

    def measure(self, model: Any) -> Measured:
        """Loss and accuracy on the held-out rows; the sentences with their labels."""
        examples, sentences = self.split.held_out, self._examples(self._sentences)
        logits = self._all_logits(model, examples)
        return Measured(
            _metrics(examples, logits),
            self._sampled(examples, logits),
            self._sampled(sentences, self._all_logits(model, sentences)),
        )

    def sample(self, model: Any) -> Sampled:
        """The label of the first validation row."""
        first = self.split.validation[:1]
        return self._sampled(first, self._all_logits(model, first))[0]

    def manifest_fields(self) -> dict[str, Any]:
        """The labels in order, and the end that a long text loses."""
        return {"task": "classify", "labels": self.labels, "truncation_side": self.config.truncation_side}

    def _examples(self, rows: Sequence[TextRow]) -> list[ClassExample]:
        return [ClassExample(row.number, self._ids(row.text), row.label, row.text) for row in rows]

    def _ids(self, text: str) -> tuple[int, ...]:
        """Token ids, cut to the limit."""
        ids = encode_text(self.tokenizer, text, _NO_LIMIT, self.config.truncation_side)
        if len(ids) > self.max_length:
            self._cut += 1
            ids = encode_text(self.tokenizer, text, self.max_length, self.config.truncation_side)
        return tuple(ids)

    @torch.inference_mode()
    def _all_logits(self, model: Any, examples: Sequence[ClassExample]) -> Tensor:
        """Logits [examples, labels] on the CPU."""
        model.eval()
        logits = torch.empty(len(examples), len(self.labels))
        for chosen in by_length([example.ids for example in examples], self.batch_size):
            batch = self.collate([examples[index] for index in chosen])
            logits[chosen] = self.logits(model, to_device(batch, model.device))[0].float().cpu()
        return logits

    def _sampled(self, examples: Sequence[ClassExample], logits: Tensor) -> tuple[Sampled, ...]:
        said = [self.labels[label] for label in logits.argmax(-1).tolist()]
        right = [self.labels[example.label] if example.label >= 0 else None for example in examples]
        return tuple(
            Sampled(example.text, answer, expected)
            for example, answer, expected in zip(examples, said, right, strict=True)
        )

    def _read_sentences(self) -> tuple[TextRow, ...]:
        """The sentences of the configuration, with their labels (-1: none stated)."""
        config = self.config
        if config.sentences:
            stated = [self._label_index(name) for name in config.sentence_labels] or [-1] * len(config.sentences)
            return tuple(TextRow(0, text, label) for text, label in zip(config.sentences, stated, strict=True))
        if len(self.labels) == 2 and self.labels[1].lower() in _GOOD:
            return tuple(TextRow(0, text, label) for text, label in _SENTENCES)
        if self.labels == ("0", "1"):  # sentiment or not, nobody knows: shown without a verdict
            return tuple(TextRow(0, text, -1) for text, _ in _SENTENCES)
        return ()

    def _label_index(self, name: str) -> int:
        if name not in self.labels:
            raise ConfigError(f"sentence_labels: unknown label {name!r}; the labels are {', '.join(self.labels)}")
        return self.labels.index(name)


def _metrics(examples: Sequence[ClassExample], logits: Tensor) -> Metrics:
    labels = torch.tensor([example.label for example in examples])
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    return {"loss": loss, "accuracy": (logits.argmax(-1) == labels).float().mean().item()}
