"""In which order rows are learned. It follows from the seed alone, so a run that goes on finds its place again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from training.errors import ConfigError

AnyExample = TypeVar("AnyExample")


@dataclass(frozen=True)
class Order(Generic[AnyExample]):
    """Steps of ``rows`` examples each, shuffled anew every epoch.

    Args:
        examples: What is learned.
        rows: Examples in a step.
        drop_last: Leave out an epoch's last step if it has fewer.
        seed: Of the shuffling.

    Raises:
        ConfigError: there is no step.
    """

    examples: Sequence[AnyExample]
    rows: int
    drop_last: bool
    seed: int

    def __post_init__(self) -> None:
        if not self.steps_in_epoch:
            raise ConfigError(
                f"--drop-last leaves no step of {self.rows} out of {len(self.examples)} rows: lower --batch-size"
            )

    @property
    def steps_in_epoch(self) -> int:
        """Steps in a pass over the examples."""
        whole = len(self.examples) // self.rows
        return whole if self.drop_last else -(-len(self.examples) // self.rows)

    def step(self, number: int) -> list[AnyExample]:
        """The examples of the step with this number, from 0."""
        epoch, place = divmod(number, self.steps_in_epoch)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        shuffled = torch.randperm(len(self.examples), generator=generator)
        chosen = shuffled[place * self.rows : (place + 1) * self.rows].tolist()
        return [self.examples[index] for index in chosen]


def shares(examples: Sequence[AnyExample], batch: int, index: int, count: int) -> list[list[AnyExample]]:
    """The batches of a step for process ``index`` of ``count``: every ``count``-th example, ``batch`` at once."""
    own = examples[index::count]
    return [list(own[start : start + batch]) for start in range(0, len(own), batch)]


def looks_after(step: int, every: int) -> bool:
    """Whether losses between epochs are measured after so many steps: the first, and every ``every`` from there."""
    return every > 0 and (step - 1) % every == 0


def rate_at(step: int, total: int, warmup: int, schedule: str) -> float:
    """The share of the highest learning rate at a step (from 0) of ``total``: it rises over ``warmup``, then falls."""
    if step < warmup:
        return (step + 1) / (warmup + 1)  # a step at rate zero would learn nothing
    if schedule == "constant":
        return 1.0
    left = (total - step) / max(1, total - warmup)
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
