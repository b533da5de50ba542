"""Parquet tables, read by pyarrow, which comes with the extra ``train``."""

from training.data.tables import Record, Table


def read_parquet(content: bytes, table: Table) -> None:
    """Every row of the table, nested columns as lists and objects."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        table.problem(0, "Parquet files are read by pyarrow, which is not installed", "pip install 'tenora[train]'")
        return
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        table.problem(0, f"not Parquet: {reason:.200}", "write the table again, or convert it to .jsonl")
        return
    table.records += [Record(number, row) for number, row in enumerate(rows, start=1)]
