"""Rows that are too long, and rows from which nothing would be learned."""

from collections.abc import Iterator, Mapping, Sequence

from training.data.findings import Finding, Row, RowLength, Severity, share
from training.data.rows import DocumentRow, InstructRow, TextRow


def too_long(max_length: int, context: int | None) -> str:
    """What to do about rows of more than ``max_length`` tokens with a base that reads up to ``context``."""
    if context is not None and max_length >= context:
        return "shorten them: the base reads no more"
    return "raise --max-length, or shorten them"


def find_over_long(
    parts: Mapping[str, Sequence[Row]],
    lengths: Mapping[str, Sequence[RowLength]],
    max_length: int,
    context: int | None = None,
) -> Iterator[Finding]:
    """Rows of more tokens than training takes."""
    for part, measured in lengths.items():
        rows = parts[part]
        long = [row.place for row, length in zip(rows, measured, strict=True) if length.tokens > max_length]
        if long:
            longest = max(length.tokens for length in measured)
            rest = f"more than {max_length:,} tokens, the longest {longest:,}"
            message = share(len(long), len(rows), part, f"has {rest}", f"have {rest}")
            severity, fate = _fate(rows[0], too_long(max_length, context))
            yield Finding("over-long", severity, message, fate, tuple(long))


def _fate(row: Row, mend: str) -> tuple[Severity, str]:
    """What training does with rows that are too long, and what to do about it."""
    match row:
        case DocumentRow():
            return "note", "training reads them in pieces of that many; nothing is lost"
        case TextRow():
            return "warning", f"training cuts them; {mend}"
        case _:
            return "warning", f"training leaves them out; {mend}"


def find_nothing_learned(
    parts: Mapping[str, Sequence[Row]], lengths: Mapping[str, Sequence[RowLength]]
) -> Iterator[Finding]:
    """Rows without a token whose loss counts; where lengths are not known, rows whose every answer weighs 0."""
    for part, rows in parts.items():
        if part in lengths:
            silent = [not length.learned for length in lengths[part]]
        else:
            silent = [isinstance(row, InstructRow) and not any(each.weight for each in row.exchanges) for row in rows]
        places = tuple(row.place for row, nothing in zip(rows, silent, strict=True) if nothing)
        if places:
            message = share(len(places), len(rows), part, "trains no token", "train no token")
            mend = "remove them, or give an answer a weight above 0"
            yield Finding("nothing learned", "warning", message, mend, places)
