"""Which rows are learned from, and which are held back."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from training.config import make_config
from training.errors import ConfigError
from training.split import divide, shuffled

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def numbers(count: int) -> dict[str, list[int]]:
    return {"data": list(range(count))}


def test_recipe_1_divides_1100_rows_in_file_order() -> None:
    config = make_config("instruct", {}, RECIPES / "instruct-gpt2-medium.toml")
    split = divide(config, numbers(1100))
    assert split.train == list(range(935))
    assert split.test == list(range(935, 1045))
    assert split.validation == list(range(1045, 1100))


@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.1), (0.1, 0.1), (0.15, 0.0), (0.3, 0.3)])
def test_a_sequential_split_keeps_every_row_in_order(validation: float, test: float) -> None:
    flags = {"split": "sequential", "validation_split": validation, "test_split": test}
    for count in (10, 99, 100, 1100, 1101):
        split = divide(make_config("instruct", flags), numbers(count))
        assert [*split.train, *split.test, *split.validation] == list(range(count))
        assert len(split.train) == int(round(1 - validation - test, 9) * count)


def test_a_shuffled_split_is_stratified_and_seeded() -> None:
    rows = [(number, number % 10 == 0) for number in range(500)]

    def parts(seed: int) -> Any:
        return shuffled(rows, 0.1, 0.2, seed=seed, group=lambda row: row[1])

    split = parts(1)
    assert parts(1) == split
    assert parts(2) != split
    assert sorted([*split.train, *split.validation, *split.test]) == rows
    assert Counter(label for _, label in split.validation) == {False: 45, True: 5}
    assert Counter(label for _, label in split.test) == {False: 90, True: 10}
    assert split.validation == sorted(split.validation)
    assert split.validation != rows[: len(split.validation)]


def test_a_rare_label_is_still_measured() -> None:
    rows = ["common"] * 50 + ["rare"] * 3
    split = shuffled(rows, 0.1, 0.0, seed=0, group=lambda row: row)
    assert "rare" in split.validation
    assert "rare" in split.train


def test_files_of_their_own_take_nothing_from_the_data() -> None:
    config = make_config("instruct", {"validation_split": 0.5})
    split = divide(config, {"data": [1, 2, 3], "validation": [4], "test": [5, 6]})
    assert (split.train, split.validation, split.test, split.held_out) == ([1, 2, 3], [4], [5, 6], [5, 6])
    sequential = make_config("instruct", {"split": "sequential"})
    assert divide(sequential, {"data": [1, 2, 3], "validation": [4]}).train == [1, 2, 3]


def test_too_few_rows_are_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match="2 rows leave 2 to train on and 0 to validate on: add rows"):
        divide(make_config("instruct", {}), numbers(2))
