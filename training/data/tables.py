"""A file's records before anybody knows what their columns mean, and what was wrong with the rest."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from training.data.rows import Place
from training.errors import Problem

FileKind = Literal["jsonl", "json", "csv", "parquet", "txt"]
FILE_KINDS: tuple[FileKind, ...] = get_args(FileKind)
LINE, ROW = "line", "row"
MARK = "\ufffd"
"""Stands where something is not UTF-8."""
_KIND_NAMES = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in its file; ``number`` is 1-based and counts the table's ``where``."""

    number: int
    values: dict[str, Any]


@dataclass(slots=True)
class Table:
    """The records of one file in order.

    Args:
        where: what their numbers count: lines, or rows of a list or a table.
        damaged: whether some of it is not UTF-8, and has marks in place of that.
    """

    file: Path
    kind: FileKind
    where: str
    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    damaged: bool = False

    def problem(self, number: int, what: str, mend: str, *, where: str | None = None) -> None:
        """Note what is wrong with a row (0: with the file) and how to mend it.

        Args:
            where: what the number counts, if not what numbers of this table's records do.
        """
        self.problems.append(Problem(self.file, where or self.where, number, what, mend))

    def is_damaged(self, values: Any) -> bool:
        """Whether something of a record cannot be read: its problem is told, and it is not used."""
        return self.damaged and MARK in str(values)

    def place(self, record: Record) -> Place:
        """Where a record of this table stands."""
        return Place(self.file, self.where, record.number)


def kind_name(value: Any) -> str:
    """What JSON calls a value of this kind: ``object``, ``list``, ``string``, ``number``, ``boolean``, ``null``."""
    if value is None:
        return "null"
    return _KIND_NAMES.get(type(value), type(value).__name__)


def a_kind(value: Any) -> str:
    """``kind_name`` with its article: ``an object``, ``a list``, ``null``."""
    name = kind_name(value)
    return name if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
