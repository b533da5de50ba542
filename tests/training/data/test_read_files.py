"""Reading files: five kinds, folders and standard input, and every bad row at once."""

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.conftest import problems, read, rows_of, write_jsonl
from training.data.dataset import read_dataset
from training.errors import ConfigError, DataError

GOOD = {"instruction": "Say it.", "output": "It."}
ROWS = [{"instruction": 'Say "it",\nplease.', "input": "", "output": "It: é 🙂"}, {**GOOD, "input": "x"}]


def write_rows(file: Path) -> Path:
    if file.suffix == ".json":
        file.write_text(json.dumps(ROWS, indent=2))
    elif file.suffix == ".jsonl":
        file.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    elif file.suffix == ".csv":
        file.write_text('instruction,input,output\r\n"Say ""it"",\nplease.",,It: é 🙂\r\nSay it.,x,It.\r\n')
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize(
    ("suffix", "places"),
    [
        (".jsonl", ["line 1", "line 3"]),
        (".json", ["row 1", "row 2"]),
        (".csv", ["line 2", "line 4"]),
        (".parquet", ["row 1", "row 2"]),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str, places: list[str]) -> None:
    file = write_rows(tmp_path / f"rows{suffix}")
    dataset = read("instruct", file)
    found = [(*row.exchanges[0].prompt.as_instruction(), row.exchanges[0].answer) for row in dataset.parts["data"]]
    assert found == [(row["instruction"], row["input"], row["output"]) for row in ROWS]
    assert [str(row.place) for row in dataset.parts["data"]] == [f"rows{suffix} {place}" for place in places]
    assert dataset.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert dataset.formats == {"instruction": 2}


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
    assert problems("instruct", file) == [
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
        read("instruct", file)
    assert str(raised.value) == (
        f"{file}: 9 bad rows\n"
        "  lines 1-3, 6-9: unknown column 'id' — remove it or pass --ignore-columns id\n"
        "  lines 4-5: no column 'instruction', 'output' — rows like this are for tenora train classify"
    )
    assert len(rows_of("instruct", write_jsonl(tmp_path / "good.jsonl", [{**GOOD, "id": 1}]), ignore=["id"])) == 1


def test_bad_rows_of_two_parts_come_together(tmp_path: Path) -> None:
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", [GOOD, {"output": "x"}]) for name in ("data", "validation")}
    with pytest.raises(DataError) as raised:
        read_dataset("instruct", files)
    assert [(problem.file, problem.number) for problem in raised.value.problems] == [
        (file, 2) for file in files.values()
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("text,label,text\na,0,b\n", [(1, "the header names 'text' more than once")]),
        ("text,label\ngood,1\nbad\nbad,0\n", [(3, "1 cells where the header has 2")]),
        ('text,label\n"two\nlines",1\nx,0\n"open,0\n', [(5, "not CSV: unexpected end of data")]),
        ("text,label\n", [(0, "no rows")]),
        ("text,name\na,0\n", [(2, "no column 'label'")]),
        ("", [(0, "no rows")]),
    ],
)
def test_bad_csv(tmp_path: Path, content: str, found: list[tuple[int, str]]) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    assert problems("classify", file) == found


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
    assert problems("classify", file) == [found]


def test_invalid_utf8_in_a_csv_is_named_by_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"text,label\nfine,0\ncaf\xe9,1\n\xff,1\n")
    assert [number for number, what in problems("classify", file) if "UTF-8" in what] == [3, 4]


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "txt"])
def test_what_is_not_utf8_hides_nothing_else(tmp_path: Path, suffix: str) -> None:
    """The lines that are not, and whatever is wrong beside them."""
    content = {
        "csv": b'text,label\ncaf\xe9,1\nb\n"\xff"\n,0\n',
        "json": b'[{"text": "caf\xe9", "label": 1},\n{"text": "", "label": 0},\n{"text": "\xff"}]',
        "jsonl": b'{"text": "caf\xe9", "label": 1}\n{"text": "", "label": 0}\n{"text": "\xff"}\n',
        "txt": b"caf\xe9\n\nfine\n",
    }[suffix]
    file = tmp_path / f"rows.{suffix}"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_dataset("text" if suffix == "txt" else "classify", {"data": file})
    found = [(problem.where, problem.number, problem.what) for problem in caught.value.problems]
    lines = [(where, number) for where, number, what in found if what.startswith("not UTF-8")]
    others = {what for _, _, what in found if not what.startswith("not UTF-8")}
    match suffix:
        case "csv":
            assert lines == [("line", 2), ("line", 4)]
            assert others == {"1 cells where the header has 2", "'text' is empty"}
        case "txt":
            assert (lines, others) == ([("line", 1)], set())
        case _:
            assert lines == [("line", 1), ("line", 3)]
            assert "'text' is empty" in others
            assert len(others) == 2


def test_long_cells_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"text\n{'word ' * 40_000}\n")
    assert len(rows_of("text", file)[0].text) == 200_000


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems("instruct", tmp_path / "none.jsonl") == [(0, "cannot be read: No such file or directory")]
    assert problems("instruct", tmp_path / "rows.xlsx") == [(0, "unknown kind of file")]
    broken = tmp_path / "rows.parquet"
    broken.write_bytes(b"PAR1 no table")
    [(number, what)] = problems("instruct", broken)
    assert number == 0
    assert what.startswith("not Parquet: ")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_rows(tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'tenora\[train\]'"):
        read("instruct", file)


def test_nested_parquet_reads_as_json_does(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 0.5}]
    rows = [{"messages": turns}, {"messages": [turns[0], {**turns[1], "tool_calls": None}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row.exchanges[0].weight for row in rows_of("instruct", tmp_path / "rows.parquet")] == [0.5, 0.5]


def test_a_folder_is_its_files_in_order_of_name(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", [GOOD, {**GOOD, "output": ""}])
    (folder / "a.json").write_text(json.dumps([GOOD]))
    (folder / "README.md").write_text("About these rows.")
    (folder / "notes.txt").write_text("Not rows.")
    (folder / ".hidden").write_text("x")
    assert problems("instruct", folder) == [(2, "'output' is empty")]
    write_jsonl(folder / "b.jsonl", [GOOD])
    dataset = read("instruct", folder)
    assert [str(row.place) for row in dataset.parts["data"]] == ["a.json row 1", "b.jsonl line 1"]
    assert [file.name for file in dataset.passed_over] == ["README.md", "notes.txt"]


def test_a_folders_hash_is_of_its_rows_wherever_it_lies(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two", "three"):
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "b.jsonl", [GOOD, {**GOOD, "output": name if name == "three" else "x"}])
        write_jsonl(folder / "a.jsonl", [GOOD])
        hashes.append(read("instruct", folder).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert problems("text", tmp_path) == [(0, "a folder without rows")]
    (tmp_path / "empty.jsonl").touch()
    assert problems("text", tmp_path) == [(0, "no rows")]


class Pipe(io.TextIOWrapper):
    """Standard input that holds some bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [GOOD, GOOD])
    monkeypatch.setattr(sys, "stdin", Pipe(file.read_bytes()))
    dataset = read("instruct", "-")
    assert [str(row.place) for row in dataset.parts["data"]] == ["standard input line 1", "standard input line 2"]
    assert dataset.sha256 == read("instruct", file).sha256
    monkeypatch.setattr(sys, "stdin", Pipe(b"text,label\na,x\nb,y\n"))
    assert read("classify", "-", file_kind="csv").labels == ("x", "y")
    with pytest.raises(ConfigError, match="can be read once"):
        read_dataset("instruct", {"data": "-", "validation": "-"})


def test_a_file_of_unknown_suffix_can_be_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.dat", [GOOD])
    assert len(rows_of("instruct", file, file_kind="jsonl")) == 1


def test_plain_text_is_parted_by_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes(b"\n\nOne\r\ntwo.\r\n\r\n \nThree.\n")
    found = [(row.place.number, row.text) for row in rows_of("text", file)]
    assert found == [(3, "One\ntwo."), (7, "Three.")]


def test_plain_text_is_parted_by_its_marks_where_it_has_them(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("One\n\ntwo.\n<|endoftext|>\n<|endoftext|>\n\nThree.\n")
    found = [(row.place.number, row.text) for row in rows_of("text", file)]
    assert found == [(1, "One\n\ntwo."), (7, "Three.")]
