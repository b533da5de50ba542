"""Texts with one label or several, and the names of the labels."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.data.conftest import problems, read, rows_of, write_jsonl
from training.data.dataset import read_dataset
from training.errors import DataError


def labelled(folder: Path, labels: list[Any], column: str = "label") -> Path:
    return write_jsonl(folder / "rows.jsonl", [{"text": "a", column: label} for label in labels])


@pytest.mark.parametrize(
    ("labels", "given", "names", "numbers"),
    [
        (["b", "a", "b"], (), ("a", "b"), [1, 0, 1]),
        ([1, 0, 1], (), ("0", "1"), [1, 0, 1]),
        ([10, 2, -1], (), ("-1", "2", "10"), [2, 1, 0]),
        ([1, 0, 1], ("no", "yes"), ("no", "yes"), [1, 0, 1]),
        (["1", "0", "yes"], ("no", "yes"), ("no", "yes"), [1, 0, 1]),
        ([" yes", "no", "yes "], ("yes", "no", "maybe"), ("yes", "no", "maybe"), [0, 1, 0]),
    ],
)
def test_names_and_indices(
    tmp_path: Path, labels: list[Any], given: tuple[str, ...], names: tuple[str, ...], numbers: list[int]
) -> None:
    dataset = read("classify", labelled(tmp_path, labels), labels=given)
    assert dataset.labels == names
    assert [row.labels for row in dataset.parts["data"]] == [(number,) for number in numbers]
    assert not dataset.multi_label


@pytest.mark.parametrize("column", ["label", "labels"])
def test_lists_are_several_labels(tmp_path: Path, column: str) -> None:
    dataset = read("classify", labelled(tmp_path, [["red", "big"], [], ["big"]], column))
    assert dataset.multi_label
    assert dataset.labels == ("big", "red")
    assert [row.labels for row in dataset.parts["data"]] == [(0, 1), (), (0,)]


def test_lists_of_numbers_with_names(tmp_path: Path) -> None:
    dataset = read("classify", labelled(tmp_path, [[2, 0], [1]], "labels"), labels=("a", "b", "c"))
    assert [row.labels for row in dataset.parts["data"]] == [(0, 2), (1,)]


def test_a_csv_parts_labels_by_bars(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,labels\nx,red | big\ny,\nz,big\n")
    assert [row.labels for row in rows_of("classify", file)] == [(0, 1), (), (0,)]


def test_bad_labels(tmp_path: Path) -> None:
    file = labelled(tmp_path, ["yes", "no", "perhaps", 2, True, 0.5, None, "", ["yes"]])
    assert problems("classify", file, labels=("no", "yes")) == [
        (3, "unknown label 'perhaps'"),
        (4, "unknown label 2"),
        (5, "'label' is a boolean"),
        (6, "'label' is a number"),
        (7, "'label' is null"),
        (8, "'label' is empty"),
        (9, "a list of labels, where the first row has one label"),
    ]


def test_bad_lists_of_labels(tmp_path: Path) -> None:
    rows: list[Any] = [["a"], ["b", "b"], [1, "1"], [None, 0.5], ["c"], "a", [0, 0, 1]]
    assert problems("classify", labelled(tmp_path, rows, "labels"), labels=("a", "b")) == [
        (2, "'labels' says a label more than once"),
        (3, "'labels' says a label more than once"),
        (4, "'labels 1' is null"),
        (4, "'labels 2' is a number"),
        (5, "unknown label 'c'"),
        (6, "'labels' is a string, not a list"),
        (7, "'labels' says a label more than once"),
    ]


def test_one_label_among_lists_is_named(tmp_path: Path) -> None:
    assert problems("classify", labelled(tmp_path, [["a"], "a", ["b"]])) == [
        (2, "one label, where the first row has a list of labels")
    ]


@pytest.mark.parametrize(("labels", "what"), [(["x"] * 3, "only the label 'x'"), ([[], []], "no labels")])
def test_nothing_to_learn(tmp_path: Path, labels: list[Any], what: str) -> None:
    assert problems("classify", labelled(tmp_path, labels)) == [(0, what)]


def test_a_label_of_the_validation_part_must_be_known(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": label} for label in "xy"])
    validation = write_jsonl(tmp_path / "validation.jsonl", [{"text": "a", "label": "z"}])
    with pytest.raises(DataError, match="unknown label 'z' — the labels are x, y"):
        read_dataset("classify", {"data": train, "validation": validation})


def test_columns_of_other_names(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"review": "a", "sentiment": sentiment} for sentiment in "xy"])
    rows = rows_of("classify", file, columns={"review": "text", "sentiment": "label"})
    assert [(row.text, row.labels) for row in rows] == [("a", (0,)), ("a", (1,))]


def test_texts_without_labels_are_told_what_is_missing(tmp_path: Path) -> None:
    assert problems("classify", write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])) == [(1, "no column 'label'")]
    assert problems("text", write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}])) == [
        (1, "unknown column 'label'")
    ]
