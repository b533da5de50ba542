"""What the two tasks have in common, as the run sees them.

A task is made from its configuration, which reads and checks the rows; then it is given the base. Everything that
differs between answering and classifying stays behind this face.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from adapters.base import BaseSource
from training.batches import Batch, Example, by_length
from training.config import TrainConfig
from training.errors import ConfigError
from training.split import Split

AnyExample = TypeVar("AnyExample", bound=Example)
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the model said to one input, beside what would be right."""

    prompt: str
    answer: str
    expected: str | None

    @property
    def right(self) -> bool | None:
        """Whether the answer is the expected one; None if nothing is expected."""
        return None if self.expected is None else self.answer == self.expected


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on held-out rows: figures, some answers, and answers to the sentences of the recipe."""

    metrics: Metrics
    samples: tuple[Sampled, ...]
    sentences: tuple[Sampled, ...] = ()


class Task(ABC, Generic[AnyExample]):
    """One of the two things an adapter can learn. Made from rows that have been checked.

    After ``encode``: ``base``, ``tokenizer``, ``pad_id`` and ``split`` are there.
    """

    config: TrainConfig
    base: BaseSource
    tokenizer: Any
    pad_id: int
    split: Split[AnyExample]
    data_sha256: str
    notes: list[str]

    @abstractmethod
    def encode(self, base: BaseSource) -> None:
        """Turn the rows into token ids for ``base``; ``notes`` says what was cut or dropped."""

    @abstractmethod
    def load_model(self) -> Any:
        """The base as this task's model, without an adapter."""

    @abstractmethod
    def collate(self, examples: Sequence[AnyExample]) -> Batch:
        """A padded batch on the CPU with ``input_ids``, ``attention_mask``, ``targets`` and ``numbers``."""

    @abstractmethod
    def logits(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] for everything in the batch that has a target, and the targets [n]."""

    @abstractmethod
    def validate(self, model: Any, examples: Sequence[AnyExample]) -> Metrics:
        """The figures after an epoch: ``loss`` always, and the chosen metric."""

    @abstractmethod
    def measure(self, model: Any) -> Measured:
        """Everything for the table before and after, on the held-out rows."""

    @abstractmethod
    def sample(self, model: Any) -> Sampled:
        """The model's answer to the first validation row."""

    @abstractmethod
    def manifest_fields(self) -> dict[str, Any]:
        """What the manifest says of this task: prompt, labels, truncation side, eos."""

    @property
    def max_length(self) -> int:
        """Most tokens in a row: what was asked for, and no more than the base's context."""
        return min(self.config.max_length, self.base.max_length)

    @property
    def batch_size(self) -> int:
        """Rows in a batch of an evaluation."""
        return self.config.eval_batch_size

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        """Summed cross-entropy over the batch's targets, and how many there are."""
        logits, targets = self.logits(model, batch)
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"), targets.numel()

    @torch.inference_mode()
    def mean_loss(self, model: Any, examples: Sequence[AnyExample]) -> float:
        """Cross-entropy per target over all of ``examples``."""
        model.eval()
        total, targets = 0.0, 0
        for chosen in by_length([example.ids for example in examples], self.batch_size):
            batch = self.collate([examples[index] for index in chosen])
            loss, count = self.loss(model, to_device(batch, model.device))
            total, targets = total + loss.item(), targets + count
        return total / targets

    def use(self, base: BaseSource) -> None:
        """Take ``base``'s tokenizer, and note if rows must be shorter than was asked for."""
        self.base = base
        self.tokenizer = base.tokenizer()
        eos = self.tokenizer.eos_token_id
        # Some tokenizers have no padding token; the vocabulary is never resized for one.
        self.pad_id = eos if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        if self.pad_id is None:
            raise ConfigError(f"--base {base.id}: its tokenizer has neither a padding nor an end-of-sequence token")
        if self.max_length < self.config.max_length:
            self.notes.append(f"rows may have {self.max_length} tokens: the context of {base.id} is no longer")


def note_shared(notes: list[str], train: Iterable[str], held_out: Iterable[str]) -> None:
    """Say how many held-out rows stand among the training rows too: they make the figures look better."""
    seen = set(train)
    shared = sum(text in seen for text in held_out)
    if shared:
        notes.append(f"{shared} of the held-out rows stand among the training rows too")


def given_files(config: TrainConfig) -> list[tuple[str, Path]]:
    """The files of rows with the part that each is, the data first."""
    files = [("data", config.data), ("validation", config.validation), ("test", config.test)]
    return [(part, path) for part, path in files if path is not None]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on ``device``."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
