"""What a check saw, as tables and lines for a person and as one JSON object for a program."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.data.check import Checked
from training.data.findings import Finding, RowLength, counted, spoken
from training.data.rows import Place
from training.errors import DataError, numbered

_LABELS_SHOWN = 20
_PAIRS_SHOWN = 5
_COLOURS = {"warning": "yellow", "note": "cyan"}


def finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Each finding as a line with its mend, and one indented line for each file of its rows."""
    for finding in findings:
        yield f"{finding.severity}: {finding.message} — {finding.mend}"
        yield from (f"  {line}" for line in _place_lines(finding))


def show(console: Console, checked: Checked) -> None:
    """Everything, in the order in which it is read: what it is, how much, labels, problems, findings."""
    data = checked.dataset
    formats = ", ".join(f"{name} ({count:,})" for name, count in data.formats.items())
    console.print(f"[bold]{data.kind}[/bold] rows, written as: {escape(formats) or 'nothing known'}")
    if checked.problems:
        console.print(f"[red]{escape(str(DataError(checked.problems)))}[/red]", soft_wrap=True)
        if not (checked.lengths and any(data.parts.values())):
            return
        console.print("of the rows that can be used:")
    console.print(_part_table(checked))
    if data.labels:
        console.print(_label_table(checked))
    for line in finding_lines(checked.findings):
        severity, colon, rest = line.partition(":")
        colour = _COLOURS.get(severity)
        shown = f"[{colour}]{severity}[/{colour}]{colon}{escape(rest)}" if colour else escape(line)
        console.print(shown, soft_wrap=True)
    if not checked.findings:
        console.print("nothing else to say of these rows")


def as_json(checked: Checked) -> dict[str, Any]:
    """The same as plain values."""
    data = checked.dataset
    return {
        "kind": data.kind,
        "formats": dict(data.formats),
        "labels": list(data.labels),
        "multi_label": data.multi_label,
        "sha256": data.sha256,
        "base": checked.base or None,
        "max_length": checked.max_length or None,
        "parts": {part: _part_values(checked, part) for part in data.parts},
        "problems": [
            {"file": str(each.file), "where": each.where, "number": each.number, "what": each.what, "mend": each.mend}
            for each in checked.problems
        ],
        "findings": [finding_values(finding) for finding in checked.findings],
    }


def _part_table(checked: Checked) -> Table:
    table = Table("part", title=f"tokens of {checked.base} in a row", title_justify="left")
    for column in ("rows", "median", "90%", "99%", "longest", f"over {checked.max_length:,}", "tokens learned"):
        table.add_column(column, justify="right")
    for part, lengths in checked.lengths.items():
        tokens = sorted(length.tokens for length in lengths)
        over = sum(length > checked.max_length for length in tokens)
        figures = (len(tokens), *_percentiles(tokens), over, sum(length.learned for length in lengths))
        table.add_row(spoken(part), *(f"{figure:,}" for figure in figures))
    return table


def _label_table(checked: Checked) -> Table:
    data = checked.dataset
    counts = {part: _label_counts(checked, part) for part in data.parts}
    table = Table("label", title=f"{counted(len(data.labels), 'label')}", title_justify="left")
    for part in data.parts:
        table.add_column(spoken(part), justify="right")
    first = next(iter(counts.values()))
    order = sorted(data.labels, key=lambda name: -first[name])
    for name in order[:_LABELS_SHOWN]:
        table.add_row(escape(name), *(f"{of_part[name]:,}" for of_part in counts.values()))
    rest = order[_LABELS_SHOWN:]
    if rest:
        sums = (sum(of_part[name] for name in rest) for of_part in counts.values())
        table.add_row(f"{len(rest)} others", *(f"{count:,}" for count in sums))
    return table


def _label_counts(checked: Checked, part: str) -> Counter[str]:
    data = checked.dataset
    return Counter(data.labels[label] for row in data.parts[part] for label in getattr(row, "labels", ()))


def _percentiles(tokens: Sequence[int]) -> tuple[int, int, int, int]:
    """Median, 90 %, 99 % and the largest of sorted numbers; zeros of none."""
    if not tokens:
        return 0, 0, 0, 0
    last = len(tokens) - 1
    return tokens[last // 2], tokens[round(0.9 * last)], tokens[round(0.99 * last)], tokens[last]


def _part_values(checked: Checked, part: str) -> dict[str, Any]:
    values: dict[str, Any] = {"rows": len(checked.dataset.parts[part])}
    if part in checked.lengths:
        values["tokens"] = _token_values(checked.lengths[part], checked.max_length)
    if checked.dataset.labels:
        counts = _label_counts(checked, part)
        values["labels"] = {name: counts[name] for name in checked.dataset.labels}
    return values


def _token_values(lengths: Sequence[RowLength], max_length: int) -> dict[str, int]:
    tokens = sorted(length.tokens for length in lengths)
    names = ("median", "p90", "p99", "longest")
    return {
        **dict(zip(names, _percentiles(tokens), strict=True)),
        "over_max_length": sum(length > max_length for length in tokens),
        "learned": sum(length.learned for length in lengths),
    }


def finding_values(finding: Finding) -> dict[str, Any]:
    """A finding as plain values."""
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "message": finding.message,
        "mend": finding.mend,
        "places": [_place_values(place) for place in finding.places],
        "beside": [_place_values(place) for place in finding.beside],
    }


def _place_values(place: Place) -> dict[str, Any]:
    return {"file": str(place.file), "where": place.where, "number": place.number}


def _place_lines(finding: Finding) -> Iterator[str]:
    """Pairs of rows one by one, the first few of them; other rows by their numbers, file by file."""
    if finding.beside:
        pairs = list(zip(finding.places, finding.beside, strict=True))
        yield from (f"{place}: see {other}" for place, other in pairs[:_PAIRS_SHOWN])
        if len(pairs) > _PAIRS_SHOWN:
            yield f"and {len(pairs) - _PAIRS_SHOWN:,} more"
        return
    for (file, where), group in groupby(finding.places, key=lambda place: (place.file, place.where)):
        yield f"{file.name} {numbered(where, [place.number for place in group]).removesuffix(': ')}"
