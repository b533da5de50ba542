"""From a file to its records: JSON Lines, JSON or CSV, each record with its place.

Knows nothing of what the columns mean. Whatever cannot be read becomes a Problem; reading never stops at the first.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import DataError, Problem

LINE, ROW = "line", "row"


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in its file; ``number`` is 1-based and counts ``where``."""

    number: int
    values: dict[str, Any]


@dataclass(slots=True)
class Table:
    """A file's records and what was wrong with the rest."""

    file: Path
    where: str
    sha256: str
    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, number: int, what: str, mend: str) -> None:
        """Note what is wrong with a row (0: with the file) and how to mend it."""
        self.problems.append(Problem(self.file, self.where, number, what, mend))


def read_table(path: Path) -> Table:
    """Read ``path`` by its suffix.

    Raises:
        DataError: the file cannot be opened or is of another kind.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError([Problem(path, LINE, 0, "unknown kind of file", "name it .jsonl, .json or .csv")])
    try:
        content = path.read_bytes()
    except OSError as error:
        mend = "give the path of a file that can be read"
        raise DataError([Problem(path, LINE, 0, f"cannot be read: {error.strerror}", mend)]) from None
    table = Table(path, counted(path), hashlib.sha256(content).hexdigest())
    reader(content.removeprefix(b"\xef\xbb\xbf"), table)
    if not table.records and not table.problems:
        table.problem(0, "no rows", "write at least two rows")
    return table


def counted(path: Path) -> str:
    """What the numbers of a file's records count: a JSON list has rows, the other files have lines."""
    return ROW if path.suffix.lower() == ".json" else LINE


def _read_jsonl(content: bytes, table: Table) -> None:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        text = _decode(line, table, number)
        if text is None:
            continue
        try:
            value = json.loads(text, object_pairs_hook=_unique_keys)
        except json.JSONDecodeError as error:
            what = f"not JSON: {error.msg} at column {error.colno}"
            table.problem(number, what, "write one whole JSON object on the line")
        except (ValueError, RecursionError) as error:
            table.problem(number, *_unfit(error))
        else:
            _add(table, number, value)


def _read_json(content: bytes, table: Table) -> None:
    text = _decode_file(content, table)
    if text is None:
        return
    try:
        values = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        table.problem(0, what, "write one list of objects; one object on each line is a .jsonl file")
        return
    except (ValueError, RecursionError) as error:
        table.problem(0, *_unfit(error))
        return
    if not isinstance(values, list):
        table.problem(0, f"holds a JSON {_kind(values)}, not a list", "write one list of objects")
        return
    for number, value in enumerate(values, start=1):
        _add(table, number, value)


def _read_csv(content: bytes, table: Table) -> None:
    text = _decode_file(content, table)
    if text is None or not text.strip():
        return
    rows = _csv_rows(text, table)
    _, header = next(rows, (0, []))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        names = ", ".join(repr(name) for name in repeated)
        table.problem(1, f"the header names {names} more than once", "give each column a name of its own")
        return
    for number, cells in rows:
        if len(cells) == len(header):
            table.records.append(Record(number, dict(zip(header, cells, strict=True))))
        elif cells:
            what = f"{len(cells)} cells where the header has {len(header)}"
            table.problem(number, what, "quote cells that hold commas, and fill every column")


def _csv_rows(text: str, table: Table) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line on which it starts (a quoted cell may go over several)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            table.problem(start, f"not CSV: {error}", 'close every quote, and write a quote in a cell as ""')
            return
        yield start, cells


def _add(table: Table, number: int, value: Any) -> None:
    if isinstance(value, dict):
        table.records.append(Record(number, value))
    else:
        table.problem(number, f"a JSON {_kind(value)}, not an object", "write an object with the columns as keys")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {', '.join(map(repr, repeated))} stands more than once")
    return values


def _unfit(error: Exception) -> tuple[str, str]:
    """What and mend for JSON that parses and still cannot be used."""
    if isinstance(error, RecursionError):
        return "JSON nested too deeply", "write plain strings as values"
    return str(error), "keep one of them"


def _decode(line: bytes, table: Table, number: int) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        table.problem(number, f"not UTF-8: byte 0x{byte:02x} at byte {error.start + 1}", "save the file as UTF-8")
        return None


def _decode_file(content: bytes, table: Table) -> str | None:
    """The whole text, or None with a problem for every line that is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        table.where = LINE
        for number, line in enumerate(content.split(b"\n"), start=1):
            _decode(line, table, number)
        return None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


_READERS: dict[str, Callable[[bytes, Table], None]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
