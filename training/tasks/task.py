"""What the tasks have in common, as a run sees them.

A task is made from its configuration, which reads and checks the rows; then it is given the base. Everything that
differs between answering, classifying, reading and scoring stays behind this face.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor

from adapters.base import BaseSource, resolve_base
from adapters.errors import AdapterError
from training.config import TrainConfig
from training.data.dataset import Dataset, Row, read_rows
from training.data.findings import Finding, FindingKind, counted
from training.data.inspection import inspect
from training.data.lengthy import too_long
from training.data.split import Split, divide
from training.data.unfit import UNFIT, problem_of
from training.errors import ConfigError, DataError, Problem
from training.fast.model import FastModel, Rows, Target
from training.reporting.results import Evaluation, Sample
from training.tasks.examples import Example

AnyRow = TypeVar("AnyRow", bound=Row)
AnyExample = TypeVar("AnyExample", bound=Example)
Metrics = dict[str, float]
_PROBES = 4


class Task(ABC, Generic[AnyRow, AnyExample]):
    """One of the things an adapter can learn. Made from rows that have been checked.

    After ``encode``: ``base``, ``tokenizer``, ``pad_id`` and ``examples`` are there.
    """

    config: TrainConfig
    base: BaseSource
    tokenizer: Any
    pad_id: int
    dataset: Dataset[Any]
    rows: Split[AnyRow]
    examples: Split[AnyExample]
    notes: list[str]
    findings: list[Finding]

    def __init__(self, config: TrainConfig) -> None:
        """Read the rows.

        Raises:
            DataError: with every bad row.
            ConfigError: too few rows for the parts that are wanted.
        """
        self.config = config
        self.notes, self.findings = [], []
        self.dataset, problems = read_rows(
            config.data_kind,
            given_files(config),
            columns=config.columns,
            ignore=config.ignore_columns,
            labels=getattr(config, "labels", ()),
            file_kind=config.file_kind,
        )
        if problems:
            raise DataError([*problems, *self._refused()])
        parts = cast(Mapping[str, Sequence[AnyRow]], self.dataset.parts)
        self.rows = divide(
            parts,
            validation=config.validation_split,
            test=config.test_split,
            order=config.split,
            seed=config.seed,
        )
        self.findings = inspect(
            {"train": self.rows.train, "validation": self.rows.validation, "test": self.rows.test},
            labels=self.dataset.labels,
            multi_label=self.dataset.multi_label,
            passed_over=self.dataset.passed_over,
        )

    @abstractmethod
    def encode_row(self, row: AnyRow) -> Sequence[AnyExample]:
        """A row as token ids for the base.

        Raises:
            TemplateError, EndTokenError: it cannot be rendered, or holds what ends an answer.
        """

    @abstractmethod
    def load_model(self) -> Any:
        """The base as this task's model, without an adapter, float32, in evaluation mode."""

    @abstractmethod
    def weight(self, examples: Sequence[AnyExample]) -> float:
        """What the summed loss of these examples is divided by."""

    @abstractmethod
    def loss(self, fast: FastModel, examples: Sequence[AnyExample]) -> Tensor:
        """The summed loss of these examples, from which gradients flow."""

    @abstractmethod
    def validate(self, fast: FastModel, examples: Sequence[AnyExample]) -> Metrics:
        """The figures after an epoch: ``loss`` always, and the chosen metric."""

    @abstractmethod
    def measure(self, fast: FastModel) -> Evaluation:
        """Everything for the table before and after, on the held-out rows."""

    @abstractmethod
    def sample(self, fast: FastModel) -> Sample:
        """What the model says to the first validation row."""

    @abstractmethod
    def manifest_fields(self) -> dict[str, Any]:
        """What the manifest says of this task: prompt, labels, truncation side, eos."""

    @abstractmethod
    def probe(self) -> tuple[Rows, Sequence[Sequence[Target]] | None]:
        """A few short rows of different lengths, and what they predict (None: labels), to try the levers on."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Figures on the held-out rows that any adapter should beat, by name."""
        return {}

    @property
    def max_length(self) -> int:
        """Most tokens in a row: what was asked for, and no more than the base's context."""
        return min(self.config.max_length, self.base.max_length)

    @property
    def part(self) -> Literal["test", "validation"]:
        """The part that is reported on."""
        return "test" if self.examples.test else "validation"

    @torch.no_grad()
    def mean_loss(self, fast: FastModel, examples: Sequence[AnyExample]) -> float:
        """The loss of ``examples``, as training counts it."""
        fast.model.eval()
        total = sum(float(self.loss(fast, batch)) for batch in self.batches(examples))
        return total / (self.weight(examples) or 1.0)

    @torch.no_grad()
    def culprits(self, fast: FastModel, examples: Sequence[AnyExample]) -> list[str]:
        """Where the rows stand whose loss, each alone, is no number; where all of them stand if none is."""
        alone = [row for row in examples if not math.isfinite(float(self.loss(fast, [row])))]
        return sorted({str(row.place) for row in alone or examples})

    def batches(self, examples: Sequence[AnyExample]) -> Iterator[list[AnyExample]]:
        """Examples that are best computed together, for evaluation, where the order does not matter.

        Those that begin alike, where what they begin with is computed once; else those of like length, to pad less.
        """
        if self.config.packing and self.config.share_prefix:
            ordered = sorted(examples, key=lambda example: example.ids)
        else:
            ordered = sorted(examples, key=lambda example: example.tokens)
        size = self.config.eval_batch_size
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def encode(self, base: BaseSource) -> None:
        """Take ``base``'s tokenizer and turn the rows into token ids; ``findings`` says what was cut or left out.

        Raises:
            DataError: with every row that the template or the tokenizer refuses.
            ConfigError: the base has not the tokens that it takes, or nothing is left to learn.
        """
        self._take(base)
        if self.max_length < self.config.max_length:
            self.notes.append(f"rows may have {self.max_length} tokens: the context of {base.id} is no longer")
        parts = (self.rows.train, self.rows.validation, self.rows.test)
        problems: list[Problem] = []
        self.examples = Split(*(self._encoded(part, problems) for part in parts))
        if problems:
            raise DataError(problems)
        self.finish()
        for part, examples in (("training", self.examples.train), ("validation", self.examples.validation)):
            if not examples:
                raise ConfigError(f"no {part} row has anything to learn: give some answers a weight above 0")

    def short(self) -> list[AnyExample]:
        """Training examples from the shortest to the median."""
        ordered = sorted(self.examples.train, key=lambda example: example.tokens)
        half = ordered[: len(ordered) // 2 + 1]
        return half[:: -(-len(half) // _PROBES)]

    def finish(self) -> None:
        """Look over the encoded rows; a task that leaves out what is too long does it here."""

    def keep_short(self, tokens: Callable[[AnyExample], int]) -> None:
        """Leave out the examples of more tokens than may be.

        Raises:
            ConfigError: none are left.
        """
        mend = too_long(self.max_length, self.base.max_length)
        which = f"of more than {self.max_length} tokens"
        self.keep(lambda example: tokens(example) <= self.max_length, "over-long", "row", which, mend)

    def keep(self, fits: Callable[[AnyExample], bool], kind: FindingKind, noun: str, which: str, mend: str) -> None:
        """Leave out the examples that do not fit; a finding of ``kind`` names their rows and says the mend.

        Args:
            noun: what a row is here.
            which: those that do not fit, in words that follow the noun.

        Raises:
            ConfigError: none are left.
        """
        parts = (self.examples.train, self.examples.validation, self.examples.test)
        places = dict.fromkeys(example.place for part in parts for example in part if not fits(example))
        if not places:
            return
        message = f"{counted(len(places), noun)} {which} {'is' if len(places) == 1 else 'are'} left out"
        if any(example.place in places for part in parts for example in part if fits(example)):
            message += " (of a conversation the exchanges that are too long)"
        self.findings.append(Finding(kind, "warning", message, mend, tuple(places)))
        self.examples = Split(*([example for example in part if fits(example)] for part in parts))
        if not self.examples.train or not self.examples.validation:
            raise ConfigError(f"{message}, and none are left to train on or to validate on: add rows, or {mend}")

    def _take(self, base: BaseSource) -> None:
        """Take the tokenizer of a base that has the tokens that are needed."""
        self.base = base
        self.tokenizer = base.tokenizer()
        eos = self.tokenizer.eos_token_id
        # Some tokenizers have no padding token; the vocabulary is never resized for one.
        self.pad_id = eos if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        if self.pad_id is None:
            raise ConfigError(f"--base {base.id}: its tokenizer has neither a padding nor an end-of-sequence token")
        if eos is None and not self.config.has_head:
            raise ConfigError(f"--base {base.id}: its tokenizer has no end-of-sequence token: answers would not end")

    def _refused(self) -> list[Problem]:
        """What the template and the tokenizer refuse of the rows that can be read; nothing where the base is not here.

        Others are to be mended anyway, so nothing is fetched for it.
        """
        problems: list[Problem] = []
        try:
            self._take(resolve_base(self.config.base, fetch=False))
        except (AdapterError, ConfigError):
            return problems
        for rows in self.dataset.parts.values():
            self._encoded(rows, problems)
        return problems

    def _encoded(self, rows: Sequence[AnyRow], problems: list[Problem]) -> list[AnyExample]:
        """Rows as token ids; those that the template or the tokenizer refuses become problems."""
        examples: list[AnyExample] = []
        for row in rows:
            try:
                examples += self.encode_row(row)
            except UNFIT as error:
                problems.append(problem_of(row.place, error))
        return examples


def given_files(config: TrainConfig) -> Mapping[str, Any]:
    """The files of rows by the part that each is, the data first."""
    files = {"data": config.data, "validation": config.validation, "test": config.test}
    return {part: path for part, path in files.items() if path is not None}
