"""Rows that stand twice, rows that stand on both sides of the split, and rows that contradict each other."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from training.data.findings import Finding, FindingKind, Row, share
from training.data.near import near_copies
from training.data.rows import DocumentRow, InstructRow, PreferenceRow, TextRow

_REPEATED = "remove the copies, unless they are to count more"
_LEAKED = "take them out of one side: the figures look better for them"


def question(row: Row) -> str:
    """What is asked or to be classified, as one text."""
    match row:
        case InstructRow():
            prompt = row.exchanges[-1].prompt
        case PreferenceRow():
            prompt = row.prompt
        case TextRow() | DocumentRow():
            return row.text
    if prompt.messages is None:
        return f"{prompt.instruction}\n{prompt.input}" if prompt.input else prompt.instruction or ""
    return "\n".join(f"{turn.role}: {turn.content}" for turn in prompt.messages)


def answer(row: Row) -> Hashable:
    """What is learned for the question."""
    match row:
        case InstructRow():
            return row.exchanges[-1].answer
        case PreferenceRow():
            return (row.chosen, row.rejected)
        case TextRow():
            return row.labels
        case DocumentRow():
            return None


def find_copies(parts: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    """Duplicates within a part and leaks between the first part and the others, exact and near."""
    repeated = {part: _repeats(rows, rows, _whole) for part, rows in parts.items()}
    train, *others = parts
    leaked = {part: _repeats(parts[part], parts[train], question) for part in others}
    for part, pairs in repeated.items():
        said = "repeats an earlier one word for word", "repeat an earlier one word for word"
        yield from _finding("duplicates", pairs, share(len(pairs), len(parts[part]), part, *said), _REPEATED)
    for part, pairs in leaked.items():
        said = "asks what a training row asks", "ask what a training row asks"
        yield from _finding("leak", pairs, share(len(pairs), len(parts[part]), part, *said), _LEAKED)
    yield from _near(parts, repeated, leaked)


def find_contradictions(parts: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    """The same text with other labels, the same question with another answer, an answer preferred both ways."""
    for part, rows in parts.items():
        if not rows or isinstance(rows[0], DocumentRow):
            continue
        pairs = _turned_round(rows) if isinstance(rows[0], PreferenceRow) else _answered_twice(rows)
        match rows[0]:
            case TextRow():
                said = "has an earlier row's text and other labels", "have an earlier row's text and other labels"
                mend = "decide on one label, or remove the rows"
            case PreferenceRow():
                said = "prefers what an earlier row rejects", "prefer what an earlier row rejects"
                mend = "decide on one, or remove both rows"
            case _:
                same = "what an earlier row asks and"
                said = f"asks {same} answers otherwise", f"ask {same} answer otherwise"
                mend = "keep one answer if only one is right"
        message = share(len(pairs), len(rows), part, *said)
        yield from _finding("contradiction", pairs, message, mend, note=isinstance(rows[0], InstructRow))


def find_same_answers(parts: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    """Preferences between an answer and itself."""
    for part, rows in parts.items():
        same = [row for row in rows if isinstance(row, PreferenceRow) and row.chosen.strip() == row.rejected.strip()]
        if same:
            message = share(len(same), len(rows), part, "prefers an answer to itself", "prefer an answer to itself")
            places = tuple(row.place for row in same)
            yield Finding("same answers", "warning", message, "remove them: nothing is learned from them", places)


Pairs = list[tuple[Row, Row]]


def _near(
    parts: Mapping[str, Sequence[Row]], repeated: Mapping[str, Pairs], leaked: Mapping[str, Pairs]
) -> Iterator[Finding]:
    """Near copies among all rows that are no exact ones."""
    known = {id(row) for pairs in (*repeated.values(), *leaked.values()) for row, _ in pairs}
    rows = [(part, row) for part, of_part in parts.items() for row in of_part if id(row) not in known]
    found = near_copies([_near_text(row) for _, row in rows])
    pairs = [(*rows[later], *rows[earlier]) for later, earlier in sorted(found.items())]
    train = next(iter(parts))
    for part, of_part in parts.items():
        inside: Pairs = [(row, like) for where, row, its, like in pairs if where == its == part]
        across: Pairs = [(row, like) for where, row, its, like in pairs if where == part != train == its]
        message = share(len(inside), len(of_part), part, "is nearly an earlier one", "are nearly an earlier one")
        yield from _finding("near duplicates", inside, message, "remove them if they say nothing new", note=True)
        message = share(len(across), len(of_part), part, "is nearly a training row", "are nearly a training row")
        yield from _finding("near leak", across, message, _LEAKED)


def _finding(kind: FindingKind, pairs: Pairs, message: str, mend: str, *, note: bool = False) -> Iterator[Finding]:
    if pairs:
        places, beside = tuple(row.place for row, _ in pairs), tuple(like.place for _, like in pairs)
        yield Finding(kind, "note" if note else "warning", message, mend, places, beside)


def _repeats(rows: Sequence[Row], among: Sequence[Row], key: Callable[[Row], Hashable]) -> Pairs:
    """Each row with the first of ``among`` that has its key, if that is another row."""
    first: dict[Hashable, Row] = {}
    for row in among:
        first.setdefault(key(row), row)
    return [(row, like) for row in rows if (like := first.get(key(row))) is not None and like is not row]


def _answered_twice(rows: Sequence[Row]) -> Pairs:
    first: dict[str, Row] = {}
    pairs: Pairs = []
    for row in rows:
        like = first.setdefault(question(row), row)
        if answer(like) != answer(row):
            pairs.append((row, like))
    return pairs


def _turned_round(rows: Sequence[Row]) -> Pairs:
    first: dict[Hashable, Row] = {}
    pairs: Pairs = []
    for row in rows:
        if isinstance(row, PreferenceRow) and row.chosen != row.rejected:
            asked = question(row)
            first.setdefault((asked, row.chosen, row.rejected), row)
            like = first.get((asked, row.rejected, row.chosen))
            if like is not None:
                pairs.append((row, like))
    return pairs


def _whole(row: Row) -> Hashable:
    return (question(row), answer(row))


def _near_text(row: Row) -> str:
    """What near copies are told by: of a prompt alone, many differ in one word that changes the answer."""
    match row:
        case InstructRow():
            return f"{question(row)}\n{row.exchanges[-1].answer}"
        case PreferenceRow():
            return f"{question(row)}\n{row.chosen}\n{row.rejected}"
        case TextRow() | DocumentRow():
            return row.text
