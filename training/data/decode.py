"""From bytes to text, every line that is not UTF-8 named. What can be read of such a line is read all the same, so that
whatever else is wrong is told with it.
"""

from training.data.tables import LINE, Table


def decode_line(line: bytes, table: Table, number: int) -> str:
    """The text of one line; if it is not UTF-8, with a problem and with marks in place of what is not."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        table.problem(number, what, "save the file as UTF-8", where=LINE)
        table.damaged = True
        return line.decode("utf-8", errors="replace")


def decode_file(content: bytes, table: Table) -> str:
    """The whole text; with a problem for every line that is not UTF-8, and marks in place of what is not."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        for number, line in enumerate(content.split(b"\n"), start=1):
            decode_line(line, table, number)
        return content.decode("utf-8", errors="replace")
