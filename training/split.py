"""Dividing rows into those to learn from, those to choose the best epoch by, and those to report on."""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from training.config import TrainConfig
from training.errors import ConfigError

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Split(Generic[Row]):
    """The three parts. ``test`` may be empty; the report then uses ``validation``."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]

    @property
    def held_out(self) -> list[Row]:
        """The rows of the table before and after."""
        return self.test or self.validation


def divide(
    config: TrainConfig, files: Mapping[str, Sequence[Row]], group: Callable[[Row], Hashable] = lambda _: None
) -> Split[Row]:
    """The parts as the configuration asks; a part with a file of its own takes nothing from the data.

    Raises:
        ConfigError: no rows are left to train on or to validate on.
    """
    validation = 0.0 if "validation" in files else config.validation_split
    test = 0.0 if "test" in files else config.test_split
    if config.split == "sequential":
        split = sequential(files["data"], validation, test)
    else:
        split = shuffled(files["data"], validation, test, seed=config.seed, group=group)
    split = Split(split.train, list(files.get("validation", split.validation)), list(files.get("test", split.test)))
    if not split.train or not split.validation:
        raise ConfigError(
            f"{len(files['data'])} rows leave {len(split.train)} to train on and {len(split.validation)} to validate "
            "on: add rows, or change --validation-split and --test-split"
        )
    return split


def sequential(rows: Sequence[Row], validation: float, test: float) -> Split[Row]:
    """File order: train, test, validation. Train and test are rounded down, validation takes the rest."""
    # Rounded first: 1 - 0.1 - 0.05 may come out just under 0.85 and cost a row.
    train_rows = int(round(1 - validation - test, 9) * len(rows))
    cut = train_rows + int(test * len(rows))
    if not validation:
        return Split(list(rows[:train_rows]), [], list(rows[train_rows:]))
    return Split(list(rows[:train_rows]), list(rows[cut:]), list(rows[train_rows:cut]))


def shuffled(
    rows: Sequence[Row], validation: float, test: float, *, seed: int, group: Callable[[Row], Hashable]
) -> Split[Row]:
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
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for index, row in enumerate(rows):
        parts[part_of.get(index, "train")].append(row)
    return Split(**parts)


def _share(share: float, size: int) -> int:
    """Rows of a group of ``size`` for a share: at least one of three or more, so that no label goes unmeasured."""
    return max(1, round(share * size)) if share and size >= 3 else 0
