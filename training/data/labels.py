"""The names of labels in order, and what a row says as indices into them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.fields import Note, read_text
from training.data.tables import FileKind, a_kind

Said = str | int
_BETWEEN = "|"


@dataclass(frozen=True, slots=True)
class RowLabels:
    """A row's labels as the file says them; ``many`` if it says them as a list."""

    said: tuple[Said, ...]
    many: bool


@dataclass(frozen=True, slots=True)
class LabelNames:
    """The names in order, and the index of everything that a file may say for one."""

    names: tuple[str, ...]
    index: Mapping[str, int]

    def indices(self, said: Iterable[Said], note: Note) -> tuple[int, ...] | None:
        """The indices in ascending order, or None with notes of labels that are unknown or repeated."""
        found = {label: self._find(label) for label in said}
        unknown = [label for label, index in found.items() if index is None]
        for label in unknown:
            note(f"unknown label {label!r}", f"the labels are {', '.join(self.names)}")
        return None if unknown else tuple(sorted({index for index in found.values() if index is not None}))

    def _find(self, label: Said) -> int | None:
        return self.index.get(_name(label))


def read_labels(values: Mapping[str, Any], kind: FileKind, note: Note) -> RowLabels | None:
    """What a row says in ``label`` or ``labels``, or None with a note. A CSV parts several by ``|``."""
    column = "labels" if "labels" in values else "label"
    value = values[column]
    if column == "labels" and kind == "csv":
        value = [name for name in value.split(_BETWEEN) if name.strip()]
    if not isinstance(value, list):
        if column == "labels":
            note(f"'labels' is {a_kind(value)}, not a list", "write a list of names; one name is a column 'label'")
            return None
        return RowLabels((value,), many=False) if _is_label(value, "label", note) else None
    good = [_is_label(label, f"{column} {number}", note) for number, label in enumerate(value, start=1)]
    if not all(good):
        return None
    if len({_name(label) for label in value}) < len(value):
        note(f"{column!r} says a label more than once", "name each label once, by its name or its number")
        return None
    return RowLabels(tuple(value), many=True)


def name_labels(rows: Iterable[RowLabels], given: Sequence[str]) -> LabelNames:
    """The names ``given``, which rows may say by name or by index; else every label found, numbers in their order."""
    if given:
        # A name goes before an index: of the labels 1, 2, 3 a row's 1 is the first, in JSON as in a CSV.
        by_index = {str(index): index for index in range(len(given))}
        return LabelNames(tuple(given), {**by_index, **{name: index for index, name in enumerate(given)}})
    names = {_name(label) for row in rows for label in row.said}
    ordered = sorted(names, key=int) if all(_is_whole(name) for name in names) else sorted(names)
    return LabelNames(tuple(ordered), {name: index for index, name in enumerate(ordered)})


def _is_label(value: Any, column: str, note: Note) -> bool:
    if isinstance(value, str):
        return read_text({column: value}, column, note) is not None
    if isinstance(value, int) and not isinstance(value, bool):
        return True
    note(f"{column!r} is {a_kind(value)}", "write a string or a whole number")
    return False


def _name(label: Said) -> str:
    return str(label).strip()


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()
