"""Everything that is found in rows that can be used: repeated, leaked, contradictory, unbalanced, too long."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from training.data.balance import find_imbalance
from training.data.copies import find_contradictions, find_copies, find_same_answers
from training.data.findings import Finding, Row, RowLength, counted
from training.data.lengthy import find_nothing_learned, find_over_long


def inspect(
    parts: Mapping[str, Sequence[Row]],
    *,
    labels: Sequence[str] = (),
    multi_label: bool = False,
    lengths: Mapping[str, Sequence[RowLength]] | None = None,
    max_length: int | None = None,
    context: int | None = None,
    passed_over: Sequence[Path] = (),
) -> list[Finding]:
    """Everything found, warnings first.

    Args:
        parts: rows of each part; the first is learned from, the others are held out.
        labels: the label names that ``TextRow.labels`` index.
        lengths: of the rows of each part, in their order; parts may be missing.
        max_length: most tokens in a row.
        context: most tokens that the base can read.
        passed_over: files of folders that hold no rows.
    """
    found = [
        *find_copies(parts),
        *find_contradictions(parts),
        *find_same_answers(parts),
        *find_imbalance(parts, labels, multi_label=multi_label),
        *find_nothing_learned(parts, lengths or {}),
        *(find_over_long(parts, lengths, max_length, context) if lengths and max_length else ()),
    ]
    if passed_over:
        names = ", ".join(sorted(file.name for file in passed_over))
        message = f"{counted(len(passed_over), 'file')} passed over: {names}"
        found.append(Finding("files passed over", "note", message, "give the path of a file itself to read it"))
    return sorted(found, key=lambda finding: finding.severity != "warning")
