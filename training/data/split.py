"""Dividing rows into those to learn from, those to choose the best epoch by, and those to report on."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from training.data.rows import TextRow
from training.errors import ConfigError

AnyRow = TypeVar("AnyRow")
Order = Literal["shuffled", "sequential"]
_FEWEST_TO_DIVIDE = 3


@dataclass(frozen=True, slots=True)
class Split(Generic[AnyRow]):
    """The three parts. ``test`` may be empty; the report then uses ``validation``."""

    train: list[AnyRow]
    validation: list[AnyRow]
    test: list[AnyRow]

    @property
    def held_out(self) -> list[AnyRow]:
        """The rows of the table before and after."""
        return self.test or self.validation


def divide(
    parts: Mapping[str, Sequence[AnyRow]], *, validation: float, test: float, order: Order, seed: int
) -> Split[AnyRow]:
    """The parts ``data``, ``validation`` and ``test``; one that is not given is taken out of the data.

    Args:
        validation: share of the data to choose the best epoch by, if that part is not given.
        test: share of the data to report on, if that part is not given; may be 0.
        order: shuffled by ``seed`` with every label in equal shares, or in file order.

    Raises:
        ConfigError: no rows are left to train on or to validate on.
    """
    rows = parts["data"]
    validation = 0.0 if "validation" in parts else validation
    test = 0.0 if "test" in parts else test
    if order == "sequential":
        split = sequential(rows, validation, test)
    else:
        split = shuffled(rows, validation, test, seed=seed, group=label_groups(rows))
    split = Split(split.train, list(parts.get("validation", split.validation)), list(parts.get("test", split.test)))
    if not split.train or not split.validation:
        raise ConfigError(
            f"{len(rows)} rows leave {len(split.train)} to train on and {len(split.validation)} to validate "
            "on: add rows, or change --validation-split and --test-split"
        )
    return split


def label_groups(rows: Sequence[AnyRow]) -> Callable[[AnyRow], Hashable]:
    """What rows are divided by: their labels, and nothing for rows without.

    Sets of several labels that are too rare to be divided stand together, or a small data set of many sets would
    have nothing to validate on.
    """
    sets = Counter(row.labels for row in rows if isinstance(row, TextRow))
    if all(len(labels) == 1 for labels in sets):
        return lambda row: row.labels if isinstance(row, TextRow) else None
    common = {labels for labels, count in sets.items() if count >= _FEWEST_TO_DIVIDE}
    return lambda row: row.labels if isinstance(row, TextRow) and row.labels in common else None


def sequential(rows: Sequence[AnyRow], validation: float, test: float) -> Split[AnyRow]:
    """File order: train, test, validation. Train and test are rounded down, validation takes the rest."""
    # Rounded first: 1 - 0.1 - 0.05 may come out just under 0.85 and cost a row.
    train_rows = int(round(1 - validation - test, 9) * len(rows))
    cut = train_rows + int(test * len(rows))
    if not validation:
        return Split(list(rows[:train_rows]), [], list(rows[train_rows:]))
    return Split(list(rows[:train_rows]), list(rows[cut:]), list(rows[train_rows:cut]))


def shuffled(
    rows: Sequence[AnyRow], validation: float, test: float, *, seed: int, group: Callable[[AnyRow], Hashable]
) -> Split[AnyRow]:
    """Seeded; every group (a label) is divided in the same shares. The parts keep the order of the file."""
    groups: dict[Hashable, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(group(row), []).append(index)
    generator = random.Random(seed)
    part_of: dict[int, str] = {}
    for indices in groups.values():
        generator.shuffle(indices)
        for_validation = _share(validation, len(indices))
        for_test = _share(test, len(indices))
        part_of.update(dict.fromkeys(indices[:for_validation], "validation"))
        part_of.update(dict.fromkeys(indices[for_validation : for_validation + for_test], "test"))
    parts: dict[str, list[AnyRow]] = {"train": [], "validation": [], "test": []}
    for index, row in enumerate(rows):
        parts[part_of.get(index, "train")].append(row)
    return Split(**parts)


def _share(share: float, size: int) -> int:
    """Rows of a group of ``size`` for a share: at least one of three or more, so that no label goes unmeasured."""
    return max(1, round(share * size)) if share and size >= _FEWEST_TO_DIVIDE else 0
