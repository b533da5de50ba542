"""Plain text as documents.

Where a file has lines that say only ``<|endoftext|>``, they part its documents. Else a document is a block of lines,
and empty lines part them.
"""

from itertools import groupby

from training.data.decode import decode_file
from training.data.tables import Record, Table

END_OF_DOCUMENT = "<|endoftext|>"


def read_txt(content: bytes, table: Table) -> None:
    """Each document as a record with the column ``text``; its number is the line on which it starts."""
    lines = decode_file(content, table).replace("\r\n", "\n").split("\n")
    marked = any(line.strip() == END_OF_DOCUMENT for line in lines)
    border = END_OF_DOCUMENT if marked else ""
    for parts, group in groupby(enumerate(lines, start=1), key=lambda line: line[1].strip() == border):
        document = [(number, line) for number, line in group if not parts]
        while document and not document[0][1].strip():
            document.pop(0)
        if document:
            written = "\n".join(line for _, line in document).rstrip()
            table.records.append(Record(document[0][0], {"text": written}))
