"""How the labels are spread over the rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from training.data.findings import Finding, Row, counted, share, spoken
from training.data.rows import TextRow

LARGEST_SHARE = 0.8
FEWEST_ROWS = 8
_SHOWN = 10


def find_imbalance(
    parts: Mapping[str, Sequence[Row]], labels: Sequence[str], *, multi_label: bool
) -> Iterator[Finding]:
    """A label that most rows have, labels that few have or none in a part, and rows without any."""
    for number, (part, rows) in enumerate(parts.items()):
        texts = [row for row in rows if isinstance(row, TextRow)]
        if not texts:
            continue
        counts = Counter(label for row in texts for label in row.labels)
        if not number:
            yield from _of_training(texts, counts, labels, multi_label=multi_label)
        absent = [name for index, name in enumerate(labels) if not counts[index]]
        if absent:
            message = f"{_named(absent)} {_stand(absent)} in no {spoken(part)} row"
            mend = "add rows of them" if not number else "add rows of them, or nothing will be known of how they do"
            yield Finding("absent labels", "note" if number else "warning", message, mend)


def _of_training(
    texts: Sequence[TextRow], counts: Counter[int], labels: Sequence[str], *, multi_label: bool
) -> Iterator[Finding]:
    largest, count = counts.most_common(1)[0] if counts else (0, 0)
    if count >= LARGEST_SHARE * len(texts):
        message = f"the label {labels[largest]!r} has {count:,} of {counted(len(texts), 'training row')}"
        accuracy = f"{count / len(texts):.0%}" + (", which is the accuracy of always saying it" * (not multi_label))
        mend = "add rows without it" if multi_label else "add rows of the others"
        yield Finding("imbalance", "warning", f"{message} ({accuracy})", f"{mend}, or judge by macro F1")
    rare = [index for index in range(len(labels)) if 0 < counts[index] < FEWEST_ROWS]
    if rare:
        names = [f"{labels[index]} ({counts[index]})" for index in sorted(rare, key=lambda index: counts[index])]
        message = f"{_named(names)} {_stand(names)} in fewer than {FEWEST_ROWS} training rows"
        places = tuple(row.place for row in texts if not set(rare).isdisjoint(row.labels))
        yield Finding("rare labels", "warning", message, "add rows of them, or merge them with another label", places)
    bare = tuple(row.place for row in texts if not row.labels)
    if bare:
        message = share(len(bare), len(texts), "train", "has no label", "have no label")
        yield Finding("no labels", "note", message, "leave them if none fits; else name their labels", bare)


def _named(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'the label' if len(names) == 1 else f'{len(names)} labels,'} {', '.join(names[:_SHOWN])}{rest}"


def _stand(names: Sequence[str]) -> str:
    return "stands" if len(names) == 1 else "stand"
