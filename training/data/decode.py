"""From bytes to text, every line that is not UTF-8 named."""

from training.data.tables import LINE, Table


def decode_line(line: bytes, table: Table, number: int) -> str | None:
    """The text of one line, or None with a problem."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        table.problem(number, f"not UTF-8: byte 0x{byte:02x} at byte {error.start + 1}", "save the file as UTF-8")
        return None


def decode_file(content: bytes, table: Table) -> str | None:
    """The whole text, or None with a problem for every line that is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        table.where = LINE
        for number, line in enumerate(content.split(b"\n"), start=1):
            decode_line(line, table, number)
        return None
