"""From a path to its tables: a file, a folder of files, or standard input.

Knows nothing of what the columns mean. Whatever cannot be read becomes a problem of its table, and the rest is read.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.csv_files import read_csv
from training.data.json_files import read_json, read_jsonl
from training.data.parquet_files import read_parquet
from training.data.tables import FILE_KINDS, LINE, ROW, FileKind, Table
from training.data.text_files import read_txt

STANDARD_INPUT = "-"
_SHOWN_INPUT = Path("standard input")
_BOM = b"\xef\xbb\xbf"
_READERS: Mapping[FileKind, Callable[[bytes, Table], None]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "txt": read_txt,
}


@dataclass(frozen=True, slots=True)
class Source:
    """What one path gave.

    Args:
        tables: one for each file, in order of their names.
        sha256: of the file's bytes; of a folder, over the names and hashes of its files that were read.
        passed_over: files of a folder that were not read, being of another kind.
    """

    tables: tuple[Table, ...]
    sha256: str
    passed_over: tuple[Path, ...] = ()


def read_source(path: Path | str, file_kind: FileKind | None = None, *, texts: bool = False) -> Source:
    """Read a file by its suffix, a folder's files of known kinds, or standard input (``-``).

    Args:
        file_kind: what standard input holds (else JSON Lines), and files whose suffix does not say.
        texts: read a folder's ``.txt`` files beside files of other kinds; alone they are read anyway.
    """
    if str(path) == STANDARD_INPUT:
        return _single(_read(_SHOWN_INPUT, sys.stdin.buffer.read(), file_kind or "jsonl"))
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, texts=texts)
    return _single(_read_file(path, file_kind))


def _single(read: tuple[Table, str]) -> Source:
    table, sha256 = read
    if not table.records and not table.problems:
        table.problem(0, "no rows", "write at least two rows")
    return Source((table,), sha256)


def _read_folder(folder: Path, *, texts: bool) -> Source:
    found = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    known = [file for file in found if _kind_of(file) is not None]
    others = [file for file in known if _kind_of(file) != "txt"]
    chosen = known if texts or not others else others
    read = [_read_file(file, None) for file in chosen]
    tables = tuple(table for table, _ in read)
    if not any(table.records or table.problems for table in tables):
        empty = tables[0] if tables else Table(folder, "jsonl", LINE)
        empty.problem(0, "no rows" if tables else "a folder without rows", f"put files of rows there: {_suffixes()}")
        tables = tables or (empty,)
    names = "".join(f"{table.file.name}\0{sha256}\n" for table, sha256 in read)
    passed_over = tuple(file for file in found if file not in chosen)
    return Source(tables, hashlib.sha256(names.encode()).hexdigest(), passed_over)


def _read_file(path: Path, file_kind: FileKind | None) -> tuple[Table, str]:
    kind = _kind_of(path) or file_kind
    if kind is None:
        return _refused(path, "unknown kind of file", f"name it {_suffixes()}")
    try:
        content = path.read_bytes()
    except OSError as error:
        return _refused(path, f"cannot be read: {error.strerror}", "give the path of a file that can be read")
    return _read(path, content, kind)


def _read(path: Path, content: bytes, kind: FileKind) -> tuple[Table, str]:
    table = Table(path, kind, ROW if kind in ("json", "parquet") else LINE)
    _READERS[kind](content.removeprefix(_BOM), table)
    return table, hashlib.sha256(content).hexdigest()


def _refused(path: Path, what: str, mend: str) -> tuple[Table, str]:
    table = Table(path, "jsonl", LINE)
    table.problem(0, what, mend)
    return table, ""


def _kind_of(path: Path) -> FileKind | None:
    suffix = path.suffix.lower().removeprefix(".")
    return next((kind for kind in FILE_KINDS if kind == suffix), None)


def _suffixes() -> str:
    *most, last = (f".{kind}" for kind in FILE_KINDS)
    return f"{', '.join(most)} or {last}"
