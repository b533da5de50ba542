"""Encoded rows and the batches made of them.

Padding is told from text by LENGTH, never by value: where a tokenizer pads with its end-of-sequence token, that one
token at the end of each row is still learned.

    ids           p  p  p  a  a  E          one row: prompt, answer, end of sequence
    input_ids     p  p  p  a  a  .  .       all but the last token, padded
    targets       -  -  a  a  E  -  -       the next token of each; - is not learned
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOT_LEARNED = -100

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Example:
    """A row as token ids; ``number`` is its 1-based place in its file."""

    number: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerExample(Example):
    """An instruction and its answer in one row.

    The first ``prompt_length`` ids are the prompt; ids from index ``learned_from`` on are learned. ``text`` and
    ``expected`` are the same in words.
    """

    prompt_length: int
    learned_from: int
    text: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True)
class ClassExample(Example):
    """A text and the index of its label."""

    label: int
    text: str = ""


def collate_answers(examples: Sequence[AnswerExample], pad_id: int) -> Batch:
    """Inputs, mask and already shifted targets, each [rows, longest - 1]; ``numbers`` [rows] are the rows' places."""
    batch = _pad([example.ids[:-1] for example in examples], pad_id)
    targets = torch.full_like(batch["input_ids"], NOT_LEARNED)
    for row, example in enumerate(examples):
        first = max(example.learned_from, 1)  # the first token follows nothing
        targets[row, first - 1 : len(example.ids) - 1] = torch.tensor(example.ids[first:])
    return {**batch, "targets": targets, "numbers": _numbers(examples)}


def collate_texts(examples: Sequence[ClassExample], pad_id: int) -> Batch:
    """Inputs and mask [rows, longest]; ``targets`` [rows] are label indices."""
    batch = _pad([example.ids for example in examples], pad_id)
    targets = torch.tensor([example.label for example in examples])
    return {**batch, "targets": targets, "numbers": _numbers(examples)}


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Prompts [rows, longest] that all end at the last column, where generation goes on."""
    batch = _pad([tuple(reversed(row)) for row in rows], pad_id)
    return {name: tensor.flip(1) for name, tensor in batch.items()}


def by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Batches of rows of like length, as their indices: for evaluation, where the order does not matter."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _pad(rows: Sequence[Sequence[int]], pad_id: int) -> Batch:
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _numbers(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([example.number for example in examples])
