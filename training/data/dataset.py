"""The one entry: from paths to the checked rows of every part, everything unusable reported at once.

read_dataset("classify", {"data": Path("rows.csv")}).parts["data"]
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

from training.data.columns import Columns, Format, Kind, check_columns, recognise
from training.data.fields import Note, read_text
from training.data.instruct import read_exchanges
from training.data.labels import LabelNames, RowLabels, name_labels, read_labels
from training.data.preference import read_preference
from training.data.rows import DocumentRow, InstructRow, Place, PreferenceRow, TextRow
from training.data.sources import STANDARD_INPUT, Source, read_source
from training.data.tables import FileKind, Record, Table
from training.errors import ConfigError, DataError, Problem, in_order

Row = InstructRow | TextRow | DocumentRow | PreferenceRow
AnyRow = TypeVar("AnyRow", InstructRow, TextRow, DocumentRow, PreferenceRow, Row)


@dataclass(frozen=True, slots=True)
class Dataset(Generic[AnyRow]):
    """Rows that have been checked.

    Args:
        parts: the rows of each part in the order of their files; the first part is the one to learn from.
        labels: the names that ``TextRow.labels`` index; empty for other kinds.
        multi_label: whether a text may have any number of labels.
        hashes: SHA-256 of each part: of a file's bytes, or over a folder's names and hashes.
        formats: how many rows of each format, by its name.
        passed_over: files in folders that are of no kind that holds rows.
    """

    kind: Kind
    parts: Mapping[str, tuple[AnyRow, ...]]
    labels: tuple[str, ...]
    multi_label: bool
    hashes: Mapping[str, str]
    formats: Mapping[str, int]
    passed_over: tuple[Path, ...]

    @property
    def sha256(self) -> str:
        """Of the part to learn from."""
        return next(iter(self.hashes.values()))


@overload
def read_dataset(
    kind: Literal["instruct"],
    parts: Mapping[str, Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    labels: Sequence[str] = (),
    file_kind: FileKind | None = None,
) -> Dataset[InstructRow]: ...
@overload
def read_dataset(
    kind: Literal["classify"],
    parts: Mapping[str, Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    labels: Sequence[str] = (),
    file_kind: FileKind | None = None,
) -> Dataset[TextRow]: ...
@overload
def read_dataset(
    kind: Literal["text"],
    parts: Mapping[str, Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    labels: Sequence[str] = (),
    file_kind: FileKind | None = None,
) -> Dataset[DocumentRow]: ...
@overload
def read_dataset(
    kind: Literal["preference"],
    parts: Mapping[str, Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    labels: Sequence[str] = (),
    file_kind: FileKind | None = None,
) -> Dataset[PreferenceRow]: ...
def read_dataset(
    kind: Kind,
    parts: Mapping[str, Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    labels: Sequence[str] = (),
    file_kind: FileKind | None = None,
) -> Dataset[Any]:
    """Read every part and check every row.

    Args:
        parts: a file, a folder or ``-`` (standard input) for each part; the first is learned from.
        columns: a file's name of a column -> ours, for columns that are named otherwise.
        ignore: columns to leave out, by the file's names.
        labels: the label names in order; else they are those of the first part.
        file_kind: what standard input and files of unknown suffix hold.

    Raises:
        DataError: with every bad row of every file.
        ConfigError: a column map that fits no format, or standard input for two parts.
    """
    dataset, problems = read_rows(kind, parts, columns=columns, ignore=ignore, labels=labels, file_kind=file_kind)
    if problems:
        raise DataError(problems)
    return dataset


def read_rows(
    kind: Kind,
    parts: Mapping[str, Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    labels: Sequence[str] = (),
    file_kind: FileKind | None = None,
) -> tuple[Dataset[Any], list[Problem]]:
    """As ``read_dataset``, for whoever has more to say of the rows that can be used: those, and all problems.

    Raises:
        ConfigError: a column map that fits no format, or standard input for two parts.
    """
    known = check_columns(kind, columns or {}, ignore)
    return assemble(kind, read_parts(parts, file_kind, texts=kind == "text"), known, labels)


def read_parts(
    parts: Mapping[str, Path | str], file_kind: FileKind | None, *, texts: bool = False
) -> dict[str, Source]:
    """The tables of every part."""
    if [str(path) for path in parts.values()].count(STANDARD_INPUT) > 1:
        raise ConfigError("standard input is given for two parts: it can be read once")
    return {part: read_source(path, file_kind, texts=texts) for part, path in parts.items()}


def assemble(
    kind: Kind, sources: Mapping[str, Source], columns: Columns, labels: Sequence[str]
) -> tuple[Dataset[Any], list[Problem]]:
    """The rows that can be used, and everything that is wrong with the others."""
    formats: Counter[str] = Counter()
    names = LabelNames((), {})
    multi_label = False
    rows: dict[str, tuple[Row, ...]]
    if kind == "classify":
        texts = {part: list(_texts(source, columns, formats)) for part, source in sources.items()}
        first = next(iter(texts.values()))
        multi_label = bool(first) and first[0].labels.many
        names = name_labels((text.labels for text in first), labels)
        _check_names(names, multi_label, next(iter(sources.values())))
        sure = not any(table.damaged for table in next(iter(sources.values())).tables)
        rows = {part: tuple(_numbered(texts[part], names, multi_label, sure=sure)) for part in texts}
    else:
        rows = {part: tuple(_rows(kind, source, columns, formats)) for part, source in sources.items()}
    problems = [problem for source in sources.values() for table in source.tables for problem in table.problems]
    hashes = {part: source.sha256 for part, source in sources.items()}
    passed_over = tuple(file for source in sources.values() for file in source.passed_over)
    dataset = Dataset(kind, rows, names.names, multi_label, hashes, dict(formats), passed_over)
    return dataset, in_order(problems)


def _recognised(
    kind: Kind, source: Source, columns: Columns, formats: Counter[str]
) -> Iterator[tuple[Table, Record, dict[str, Any], Format, Note]]:
    """Each record with its values under our names, its format, and where to note what is wrong with it."""
    for table in source.tables:
        for record in table.records:
            note = _noting(table, record)
            values = columns.apply(record.values, note)
            form = None if values is None else recognise(kind, values, note)
            if values is not None and form is not None:
                formats[form.name] += 1
                yield table, record, values, form, note


def _passed_over(what: str, mend: str) -> None:
    """Nothing is noted."""


def _noting(table: Table, record: Record) -> Note:
    return lambda what, mend: table.problem(record.number, what, mend)


def _rows(kind: Kind, source: Source, columns: Columns, formats: Counter[str]) -> Iterator[Row]:
    for table, record, values, form, note in _recognised(kind, source, columns, formats):
        row = _row(kind, table.place(record), values, form, note)
        if row is not None and not table.is_damaged(record.values):
            yield row


def _row(kind: Kind, place: Place, values: dict[str, Any], form: Format, note: Note) -> Row | None:
    if kind == "text":
        text = read_text(values, "text", note)
        return None if text is None else DocumentRow(place, text)
    if kind == "preference":
        return read_preference(values, place, note)
    exchanges = read_exchanges(form.name, values, note)
    return None if exchanges is None else InstructRow(place, exchanges)


@dataclass(frozen=True, slots=True)
class _Text:
    """A text with its labels as the file says them: what they mean is known when all have been read."""

    place: Place
    text: str
    labels: RowLabels
    note: Note


def _texts(source: Source, columns: Columns, formats: Counter[str]) -> Iterator[_Text]:
    for table, record, values, _, note in _recognised("classify", source, columns, formats):
        text, labels = read_text(values, "text", note), read_labels(values, table.kind, note)
        if text is not None and labels is not None and not table.is_damaged(record.values):
            yield _Text(table.place(record), text, labels, note)


def _check_names(names: LabelNames, multi_label: bool, source: Source) -> None:
    if len(names.names) >= (1 if multi_label else 2) or any(table.problems for table in source.tables):
        return
    found = f"only the label {names.names[0]!r}" if names.names else "no labels"
    least = "at least one label" if multi_label else "rows of at least two labels"
    source.tables[0].problem(0, found, f"classes are learned from {least}")


def _numbered(texts: Sequence[_Text], names: LabelNames, multi_label: bool, *, sure: bool) -> Iterator[TextRow]:
    """Texts with the numbers of their labels.

    Args:
        sure: all labels are known; else one that is not may stand in a row that cannot be read.
    """
    for text in texts:
        if text.labels.many != multi_label:
            one, other = ("a list of labels", "one label") if multi_label else ("one label", "a list of labels")
            text.note(f"{other}, where the first row has {one}", f"write {one} in every row")
            continue
        labels = names.indices(text.labels.said, text.note if sure else _passed_over)
        if labels is not None:
            yield TextRow(text.place, text.text, labels)
