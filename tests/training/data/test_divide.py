"""Which rows are learned from, and which are held back."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from training.data.rows import Place, TextRow
from training.data.split import Split, divide, shuffled
from training.errors import ConfigError


def numbers(count: int) -> dict[str, list[int]]:
    return {"data": list(range(count))}


def texts(*labels: tuple[int, ...]) -> list[TextRow]:
    return [TextRow(Place(Path("rows"), "line", number), "a", of_row) for number, of_row in enumerate(labels, start=1)]


def test_1100_rows_in_file_order_as_the_book_divides_them() -> None:
    split = divide(numbers(1100), validation=0.05, test=0.1, order="sequential", seed=0)
    assert split.train == list(range(935))
    assert split.test == list(range(935, 1045))
    assert split.validation == list(range(1045, 1100))


@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.1), (0.1, 0.1), (0.15, 0.0), (0.3, 0.3)])
def test_a_sequential_split_keeps_every_row_in_order(validation: float, test: float) -> None:
    for count in (10, 99, 100, 1100, 1101):
        split = divide(numbers(count), validation=validation, test=test, order="sequential", seed=0)
        assert [*split.train, *split.test, *split.validation] == list(range(count))
        assert len(split.train) == int(round(1 - validation - test, 9) * count)


def test_a_shuffled_split_is_stratified_and_seeded() -> None:
    rows = texts(*((int(number % 10 == 0),) for number in range(500)))

    def parts(seed: int) -> Split[TextRow]:
        return divide({"data": rows}, validation=0.1, test=0.2, order="shuffled", seed=seed)

    split = parts(1)
    assert parts(1) == split
    assert parts(2) != split
    assert sorted((*split.train, *split.validation, *split.test), key=lambda row: row.place.number) == rows
    assert Counter(row.labels for row in split.validation) == {(0,): 45, (1,): 5}
    assert Counter(row.labels for row in split.test) == {(0,): 90, (1,): 10}
    assert split.validation == sorted(split.validation, key=lambda row: row.place.number)
    assert split.validation != rows[: len(split.validation)]


def test_a_seed_divides_as_it_always_has() -> None:
    # A recipe's seed must give the same rows in every version.
    split = shuffled(range(20), 0.2, 0.1, seed=123, group=lambda number: number % 2)
    assert (split.validation, split.test) == ([13, 14, 15, 16], [7, 10])


def test_a_rare_label_is_still_measured() -> None:
    split = divide({"data": texts(*[(0,)] * 50, *[(1,)] * 3)}, validation=0.1, test=0.0, order="shuffled", seed=0)
    assert (1,) in {row.labels for row in split.validation}
    assert (1,) in {row.labels for row in split.train}


def test_a_label_of_two_rows_stays_with_the_training_rows() -> None:
    split = divide({"data": texts(*[(0,)] * 50, *[(1,)] * 2)}, validation=0.5, test=0.0, order="shuffled", seed=0)
    assert sum(row.labels == (1,) for row in split.train) == 2


def test_several_labels_are_divided_by_their_set() -> None:
    rows = texts(*[(0, 1)] * 40, *[(0,)] * 20, *[()] * 10)
    split = divide({"data": rows}, validation=0.1, test=0.0, order="shuffled", seed=0)
    assert Counter(row.labels for row in split.validation) == {(0, 1): 4, (0,): 2, (): 1}


def test_sets_that_are_all_rare_are_divided_together() -> None:
    rows = texts(*((number, number + 1) for number in range(30)))
    split = divide({"data": rows}, validation=0.2, test=0.1, order="shuffled", seed=0)
    assert (len(split.train), len(split.validation), len(split.test)) == (21, 6, 3)


def test_parts_of_their_own_take_nothing_from_the_data() -> None:
    given: dict[str, Any] = {"data": [1, 2, 3], "validation": [4], "test": [5, 6]}
    split = divide(given, validation=0.5, test=0.0, order="shuffled", seed=0)
    assert (split.train, split.validation, split.test, split.held_out) == ([1, 2, 3], [4], [5, 6], [5, 6])
    del given["test"]
    assert divide(given, validation=0.1, test=0.0, order="sequential", seed=0).train == [1, 2, 3]


def test_too_few_rows_are_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match="2 rows leave 2 to train on and 0 to validate on: add rows"):
        divide(numbers(2), validation=0.1, test=0.0, order="shuffled", seed=0)
