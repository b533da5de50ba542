"""A whole look at data before anything is trained on it: what it is, how long, what is wrong, what is worth knowing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from adapters.base import resolve_base
from adapters.errors import BaseModelError
from training.config import MAX_LENGTH
from training.data.columns import KINDS, Columns, Kind, check_columns, find_kind
from training.data.dataset import Dataset, assemble, read_parts
from training.data.findings import Finding, RowLength
from training.data.inspection import inspect
from training.data.lengths import find_template, measure
from training.data.sources import Source
from training.data.tables import FileKind
from training.errors import ConfigError, DataError, Problem, in_order

_ENOUGH_ROWS = 200
"""Rows that are looked at to tell what kind they are."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was seen.

    Args:
        dataset: the rows that can be used.
        problems: what is wrong with the others; any of them stops a run.
        findings: of the rows that can be used.
        lengths: of the rows of each part, in their order; empty where nothing was measured, for want of the base.
        base: its name; empty where nothing was measured.
        max_length: most tokens in a row; 0 where nothing was measured.
    """

    dataset: Dataset[Any]
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...] = ()
    lengths: Mapping[str, Sequence[RowLength]] = field(default_factory=dict)
    base: str = ""
    max_length: int = 0

    @property
    def has_warnings(self) -> bool:
        """Whether anything was found that is more than a note."""
        return any(finding.severity == "warning" for finding in self.findings)


def check(
    parts: Mapping[str, Path | str],
    *,
    kind: Kind | None = None,
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    labels: Sequence[str] = (),
    file_kind: FileKind | None = None,
    base: str = "embedded",
    template: str = "alpaca",
    max_length: int | None = None,
) -> Checked:
    """Read, measure with the tokenizer of ``base`` and inspect. Without ``kind`` the columns tell it.

    Args:
        max_length: most tokens in a row; else as many as training takes. The base's context in any case.

    Raises:
        ConfigError: an argument that cannot be, or rows that fit no kind.
        DataError: columns that cannot be read, so that nothing tells what kind the rows are.
        BaseModelError: the base cannot be used; if there are problems to mend first, those are told without it.
    """
    renderer = find_template(template)
    sources = read_parts(parts, file_kind, texts=kind == "text")
    kind = kind or guess_kind(next(iter(sources.values())), columns or {}, ignore)
    dataset, problems = assemble(kind, sources, check_columns(kind, columns or {}, ignore), labels)
    try:
        source = resolve_base(base, fetch=not problems)
    except BaseModelError:
        if not problems:
            raise
        return Checked(dataset, tuple(problems))
    measured = {part: measure(rows, source.tokenizer(), renderer) for part, rows in dataset.parts.items()}
    dataset = replace(dataset, parts={part: tuple(found.rows) for part, found in measured.items()})
    problems = in_order([*problems, *(problem for found in measured.values() for problem in found.problems)])
    lengths = {part: found.lengths for part, found in measured.items()}
    most = min(max_length or MAX_LENGTH, source.max_length)
    findings = inspect(
        dataset.parts,
        labels=dataset.labels,
        multi_label=dataset.multi_label,
        lengths=lengths,
        max_length=most,
        context=source.max_length,
        passed_over=dataset.passed_over,
    )
    return Checked(dataset, tuple(problems), tuple(findings), lengths, source.id, most)


def guess_kind(source: Source, columns: Mapping[str, str], ignore: Sequence[str]) -> Kind:
    """The kind of most of the first rows. Where there are none to tell by, ``text``: reading says what is wrong.

    Raises:
        ConfigError: there are rows, and their columns fit no kind.
        DataError: the same, and the file has problems, which may be why.
    """
    user = Columns(columns, frozenset(ignore))
    records = islice((record for table in source.tables for record in table.records), _ENOUGH_ROWS)
    names = [set(user.apply(record.values, _unnoted) or ()) for record in records]
    kinds = Counter(kind for kind in map(find_kind, names) if kind is not None)
    if kinds:
        return kinds.most_common(1)[0][0]
    if problems := [problem for table in source.tables for problem in table.problems]:
        raise DataError(problems)
    if not names:
        return "text"
    found = ", ".join(map(repr, sorted(names[0])))
    raise ConfigError(
        f"{source.tables[0].file}: the columns {found} fit no kind of rows: say what they are with --task "
        f"({', '.join(KINDS)}), and name them with --columns yours=ours"
    )


def _unnoted(what: str, mend: str) -> None:
    """Telling the kind reports nothing; reading does."""
