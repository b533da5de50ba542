"""Comma-separated files whose first line names the columns."""

import csv
import io
from collections.abc import Iterator

from training.data.decode import decode_file
from training.data.tables import Record, Table

# The longest cell that the csv module takes is 131,072 characters unless told otherwise; documents are longer.
_LONGEST_CELL = 1 << 28


def read_csv(content: bytes, table: Table) -> None:
    """A header and rows; a row's number is the line on which it starts. Every cell is a string."""
    text = decode_file(content, table)
    if not text.strip():
        return
    rows = _rows(text, table)
    _, header = next(rows, (0, []))
    if table.is_damaged(header):
        return  # nothing can be said of columns without names
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


def _rows(text: str, table: Table) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line on which it starts (a quoted cell may go over several)."""
    csv.field_size_limit(_LONGEST_CELL)
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
