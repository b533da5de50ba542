"""Reading rows: three kinds of file, and every bad row at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import write_jsonl
from training.errors import DataError
from training.rows import read_classify, read_instruct

GOOD = {"instruction": "Say it.", "output": "It."}


def problems(file: Path, task: str = "instruct", labels: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    with pytest.raises(DataError) as raised:
        if task == "instruct":
            read_instruct([file], [])
        else:
            read_classify([file], [], labels)
    for problem in raised.value.problems:
        assert problem.mend
        assert problem.what in str(raised.value)
    return [(problem.number, problem.what) for problem in raised.value.problems]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_the_three_kinds_of_file_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"instruction": 'Say "it",\nplease.', "input": "", "output": "It: é 🙂"}, {**GOOD, "input": "x"}]
    file = tmp_path / f"rows{suffix}"
    if suffix == ".json":
        file.write_text(json.dumps(rows, indent=2))
    elif suffix == ".jsonl":
        file.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        file.write_text('instruction,input,output\r\n"Say ""it"",\nplease.",,It: é 🙂\r\nSay it.,x,It.\r\n')
    [read], [sha256] = read_instruct([file], [])
    assert [(row.instruction, row.input, row.output) for row in read] == [
        (row["instruction"], row["input"], row["output"]) for row in rows
    ]
    assert [row.number for row in read] == {".json": [1, 2], ".jsonl": [1, 3], ".csv": [2, 4]}[suffix]
    assert len(sha256) == 64


def test_every_bad_row_is_named_with_its_line_and_its_mend(tmp_path: Path) -> None:
    lines: list[Any] = [
        json.dumps(GOOD).encode(),
        b'{"instruction": "broken", ',
        b'{"instruction": "no answer"}',
        b'{"instruction": "Say it.", "output": "  "}',
        b'{"instruction": 7, "output": "It."}',
        b'{"instruction": "Say it.", "input": ["a"], "output": "It."}',
        b'["a list"]',
        b'{"instruction": "caf\xe9", "output": "It."}',
        b'{"instruction": "a", "instruction": "b", "output": "It."}',
        b'{"instruction": "Say it.", "output": "It.", "source": "here"}',
        b'{"instruction": "half \\ud83d", "output": "It."}',
        b'{"text": "good", "label": 1}',
        b'{"instruction": "Say it.", "input": null, "output": null}',
        b"[" * 100_000,
    ]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(lines))
    assert problems(file) == [
        (2, "not JSON: Expecting property name enclosed in double quotes at column 27"),
        (3, "no column 'output'"),
        (4, "'output' is empty"),
        (5, "'instruction' is a number, not a string"),
        (6, "'input' is a list, not a string"),
        (7, "a JSON list, not an object"),
        (8, "not UTF-8: byte 0xe9 at byte 21"),
        (9, "the key 'instruction' stands more than once"),
        (10, "unknown column 'source'"),
        (11, "'instruction' holds half a character (a lone surrogate)"),
        (12, "no column 'instruction', 'output'"),
        (13, "'output' is null, not a string"),
        (14, "JSON nested too deeply"),
    ]


def test_the_report_groups_rows_and_names_the_mend(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "rows.jsonl", [{**GOOD, "id": n} if n not in {3, 4} else {"text": "a", "label": 0} for n in range(9)]
    )
    with pytest.raises(DataError) as raised:
        read_instruct([file], [])
    assert str(raised.value) == (
        f"{file}: 9 bad rows\n"
        "  lines 1-3, 6-9: unknown column 'id' — remove it or pass --ignore-columns id\n"
        "  lines 4-5: no column 'instruction', 'output' — rows like this are for tenora train classify"
    )
    good = write_jsonl(tmp_path / "good.jsonl", [{**GOOD, "id": 1}])
    assert len(read_instruct([good], ["id"])[0][0]) == 1


def test_bad_rows_of_two_files_come_together(tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{name}.jsonl", [GOOD, {"output": "x"}]) for name in ("a", "b")]
    with pytest.raises(DataError) as raised:
        read_instruct(files, [])
    assert [(problem.file, problem.number) for problem in raised.value.problems] == [(file, 2) for file in files]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("text,label,text\na,0,b\n", [(1, "the header names 'text' more than once")]),
        ("text,label\ngood,1\nbad\nbad,0\n", [(3, "1 cells where the header has 2")]),
        ('text,label\n"two\nlines",1\n"open,0\n', [(4, "not CSV: unexpected end of data")]),
        ("text,label\n", [(0, "no rows")]),
        ("text,name\na,0\n", [(2, "no column 'label'")]),
        ("", [(0, "no rows")]),
    ],
)
def test_bad_csv(tmp_path: Path, content: str, found: list[tuple[int, str]]) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    assert [problem for problem in problems(file, "classify") if "label" not in problem[1] or problem in found] == found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"text": "a"}', (0, "holds a JSON object, not a list")),
        ('[{"text": "a", "label": 0},\n', (0, "not JSON: Expecting value at line 2, column 1")),
        ('[{"text": "a", "label": 0}, 3]', (2, "a JSON number, not an object")),
    ],
)
def test_bad_json(tmp_path: Path, content: str, found: tuple[int, str]) -> None:
    file = tmp_path / "rows.json"
    file.write_text(content)
    assert found in problems(file, "classify")


def test_invalid_utf8_in_a_csv_is_named_by_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"text,label\nfine,0\ncaf\xe9,1\n\xff,1\n")
    assert [number for number, what in problems(file, "classify") if "UTF-8" in what] == [3, 4]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.jsonl") == [(0, "cannot be read: No such file or directory")]
    assert problems(tmp_path / "rows.xlsx") == [(0, "unknown kind of file")]


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
def test_labels(
    tmp_path: Path, labels: list[Any], given: tuple[str, ...], names: tuple[str, ...], numbers: list[int]
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in labels])
    [rows], found, _ = read_classify([file], [], given)
    assert found == names
    assert [row.label for row in rows] == numbers


def test_bad_labels(tmp_path: Path) -> None:
    values = ["yes", "no", "perhaps", 2, True, 0.5, None, ""]
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in values])
    assert problems(file, "classify", ("no", "yes")) == [
        (3, "unknown label 'perhaps'"),
        (4, "unknown label 2"),
        (5, "'label' is a boolean"),
        (6, "'label' is a number"),
        (7, "'label' is null"),
        (8, "'label' is empty"),
    ]


def test_one_label_is_nothing_to_learn(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "x"}] * 3)
    assert problems(file, "classify") == [(0, "only the label 'x'")]


def test_a_label_of_the_validation_file_must_be_known(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": label} for label in "xy"])
    validation = write_jsonl(tmp_path / "validation.jsonl", [{"text": "a", "label": "z"}])
    with pytest.raises(DataError, match="unknown label 'z' — the labels are x, y"):
        read_classify([train, validation], [], ())
