"""From records to rows of a task, every unusable one reported at once.

An instruct row has ``instruction``, ``output`` and perhaps ``input``; a classify row has ``text`` and ``label``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import DataError, Problem
from training.files import Record, Table, read_table

_INSTRUCT = ("instruction", "output")
_CLASSIFY = ("text", "label")


@dataclass(frozen=True, slots=True)
class InstructRow:
    """An instruction with its answer; ``number`` is the 1-based place in the file."""

    number: int
    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """What is asked, in words."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text with its label, ``label`` an index into the run's label names."""

    number: int
    text: str
    label: int


@dataclass(frozen=True, slots=True)
class RawText:
    """A text with its label as the file gives it."""

    number: int
    text: str
    label: str | int


def read_instruct(files: Sequence[Path], ignore: Sequence[str]) -> tuple[list[list[InstructRow]], list[str]]:
    """The rows of each file, and each file's sha256.

    Raises:
        DataError: with every bad row of every file.
    """
    tables = [read_table(file) for file in files]
    rows = [[_instruct(table, record, ignore) for record in table.records] for table in tables]
    _refuse(tables)
    return [[row for row in part if row is not None] for part in rows], [table.sha256 for table in tables]


def read_classify(
    files: Sequence[Path], ignore: Sequence[str], labels: Sequence[str]
) -> tuple[list[list[TextRow]], tuple[str, ...], list[str]]:
    """The rows of each file, the label names in order, and each file's sha256. Labels come from the first file.

    Raises:
        DataError: with every bad row of every file.
    """
    tables = [read_table(file) for file in files]
    raw = [[row for record in table.records if (row := _text(table, record, ignore)) is not None] for table in tables]
    values, names = _label_names(raw[0], labels)
    if len(names) < 2 and not tables[0].problems:
        found = f"only the label {names[0]!r}" if names else "no labels"
        tables[0].problem(0, found, "classes are learned from rows of at least two labels")
    rows = [[_numbered(table, row, values, names) for row in part] for table, part in zip(tables, raw, strict=True)]
    _refuse(tables)
    return [[row for row in part if row is not None] for part in rows], names, [table.sha256 for table in tables]


def _refuse(tables: Iterable[Table]) -> None:
    problems: list[Problem] = []
    for table in tables:
        problems += sorted(table.problems, key=lambda problem: problem.number)
    if problems:
        raise DataError(problems)


def _instruct(table: Table, record: Record, ignore: Sequence[str]) -> InstructRow | None:
    good = _columns(table, record, _INSTRUCT, ("input",), ignore)
    good &= _string(table, record, "instruction") & _string(table, record, "output")
    if record.values.get("input") is not None:
        good &= _string(table, record, "input", may_be_empty=True)
    if not good:
        return None
    values = record.values
    return InstructRow(record.number, values["instruction"], values.get("input") or "", values["output"])


def _text(table: Table, record: Record, ignore: Sequence[str]) -> RawText | None:
    good = _columns(table, record, _CLASSIFY, (), ignore)
    good &= _string(table, record, "text") & _label(table, record)
    return RawText(record.number, record.values["text"], record.values["label"]) if good else None


def _columns(
    table: Table, record: Record, needed: Sequence[str], optional: Sequence[str], ignore: Sequence[str]
) -> bool:
    """Whether the record has the columns of its task and no others."""
    names = set(record.values)
    missing = [name for name in needed if name not in names]
    if missing:
        mend = "add it" if len(missing) == 1 else "add them"
        other = _CLASSIFY if needed is _INSTRUCT else _INSTRUCT
        if names.issuperset(other):
            mend = f"rows like this are for tenora train {'classify' if other is _CLASSIFY else 'instruct'}"
        table.problem(record.number, f"no column {', '.join(map(repr, missing))}", mend)
        return False
    unknown = sorted(map(str, names.difference(needed, optional, ignore)))
    if unknown:
        listed = ", ".join(map(repr, unknown))
        table.problem(
            record.number, f"unknown column {listed}", f"remove it or pass --ignore-columns {','.join(unknown)}"
        )
    return not unknown


def _string(table: Table, record: Record, column: str, *, may_be_empty: bool = False) -> bool:
    """Whether a column that is there holds text that can be used."""
    if column not in record.values:
        return False
    value = record.values[column]
    if not isinstance(value, str):
        table.problem(record.number, f"{column!r} is {_kind(value)}, not a string", "write it as a string")
    elif not value.strip() and not may_be_empty:
        table.problem(record.number, f"{column!r} is empty", "write it out or remove the row")
    elif not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        table.problem(record.number, f"{column!r} holds half a character (a lone surrogate)", "write it as UTF-8")
    else:
        return True
    return False


def _label(table: Table, record: Record) -> bool:
    if "label" not in record.values:
        return False
    value = record.values["label"]
    if isinstance(value, str):
        return _string(table, record, "label")
    if isinstance(value, int) and not isinstance(value, bool):
        return True
    table.problem(record.number, f"'label' is {_kind(value)}", "write a string or a whole number")
    return False


def _label_names(rows: Sequence[RawText], labels: Sequence[str]) -> tuple[dict[str | int, int], tuple[str, ...]]:
    """What the file may say for each label, and the names in order.

    Names given by ``labels`` may be said by name or by index; else every label found counts, numbers in their order.
    """
    if labels:
        by_name: dict[str | int, int] = {name: index for index, name in enumerate(labels)}
        by_index: dict[str | int, int] = {index: index for index in range(len(labels))}
        digits: dict[str | int, int] = {str(index): index for index in range(len(labels))}  # a CSV has no numbers
        return {**digits, **by_index, **by_name}, tuple(labels)
    names = {_name(row.label) for row in rows}
    ordered = sorted(names, key=int) if all(_is_whole(name) for name in names) else sorted(names)
    found: dict[str | int, int] = {name: index for index, name in enumerate(ordered)}
    return found, tuple(ordered)


def _numbered(table: Table, row: RawText, values: dict[str | int, int], names: Sequence[str]) -> TextRow | None:
    said = row.label.strip() if isinstance(row.label, str) else row.label
    label = values.get(said, values.get(_name(row.label)))
    if label is None:
        table.problem(row.number, f"unknown label {row.label!r}", f"the labels are {', '.join(names)}")
        return None
    return TextRow(row.number, row.text, label)


def _name(label: str | int) -> str:
    return str(label).strip()


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null", str: "a string"}
    return names.get(type(value), "a number")
