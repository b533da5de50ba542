"""The formats of rows, told by their columns, after renaming and leaving out what the user said."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from training.data.fields import Note
from training.errors import ConfigError

Kind = Literal["instruct", "classify", "text", "preference"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a row: the columns that it must have, and those that it may have."""

    name: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        may = f" ({', '.join(self.optional)})" if self.optional else ""
        return f"{', '.join(self.needed)}{may}"


FORMATS: Mapping[Kind, tuple[Format, ...]] = {
    "instruct": (
        Format("instruction", ("instruction", "output"), ("input",)),
        Format("messages", ("messages",)),
        Format("prompt and completion", ("prompt", "completion")),
        Format("conversations", ("conversations",)),
    ),
    "classify": (Format("text and label", ("text", "label")), Format("text and labels", ("text", "labels"))),
    "text": (Format("text", ("text",)),),
    "preference": (
        Format("prompt, chosen and rejected", ("prompt", "chosen", "rejected")),
        Format("chosen and rejected", ("chosen", "rejected")),
        Format("preferred output", ("input", "preferred_output", "non_preferred_output")),
        Format("preferred completion", ("input", "preferred_completion", "non_preferred_completion")),
    ),
}
_FOR: Mapping[Kind, str] = {"instruct": "instruct", "classify": "classify", "text": "text", "preference": "dpo"}


@dataclass(frozen=True, slots=True)
class Columns:
    """What the user said of the columns: ``names`` maps a file's names to ours, ``ignore`` are left out."""

    names: Mapping[str, str]
    ignore: Collection[str]

    def apply(self, values: dict[str, Any], note: Note) -> dict[str, Any] | None:
        """The values under our names, or None with a note if two columns would have the same name."""
        if not self.names and not self.ignore:
            return values
        kept = {name: value for name, value in values.items() if name not in self.ignore or name in self.names}
        taken = [ours for name, ours in self.names.items() if name in kept and ours in kept and ours not in self.names]
        for ours in taken:
            note(
                f"two columns are to be {ours!r}: the file's own, and the one that --columns renames",
                f"leave the file's own out: --ignore-columns {ours}",
            )
        return None if taken else {self.names.get(name, name): value for name, value in kept.items()}


def check_columns(kind: Kind, names: Mapping[str, str], ignore: Sequence[str]) -> Columns:
    """The user's column map, checked against the columns that rows of ``kind`` can have.

    Raises:
        ConfigError: a name that no format has, or that two columns are mapped to.
    """
    known = list(dict.fromkeys(column for form in FORMATS[kind] for column in (*form.needed, *form.optional)))
    for theirs, ours in names.items():
        if ours not in known:
            raise ConfigError(f"--columns {theirs}={ours}: {kind} rows have no {ours!r}, but {', '.join(known)}")
    repeated = [ours for ours in names.values() if list(names.values()).count(ours) > 1]
    if repeated:
        raise ConfigError(f"--columns names {repeated[0]!r} for two columns: map one of them")
    return Columns(dict(names), frozenset(ignore))


def find_format(kind: Kind, names: Collection[str]) -> Format | None:
    """The first format of ``kind`` whose needed columns are all there."""
    return next((form for form in FORMATS[kind] if set(form.needed).issubset(names)), None)


def find_kind(names: Collection[str]) -> Kind | None:
    """The kind of row that has these columns; ``text`` only where nothing else fits."""
    order: tuple[Kind, ...] = ("instruct", "preference", "classify", "text")
    return next((kind for kind in order if find_format(kind, names)), None)


def recognise(kind: Kind, values: Mapping[str, Any], note: Note) -> Format | None:
    """The format of a row, or None with a note: columns that are missing, or that no format knows."""
    names = set(values)
    form = find_format(kind, names)
    if form is None:
        _note_missing(kind, names, note)
        return None
    unknown = sorted(map(str, names.difference(form.needed, form.optional)))
    if not unknown:
        return form
    listed = ", ".join(map(repr, unknown))
    note(f"unknown column {listed}", f"remove it or pass --ignore-columns {','.join(unknown)}")
    return None


def _note_missing(kind: Kind, names: set[str], note: Note) -> None:
    nearest = max(FORMATS[kind], key=lambda form: len(names.intersection(form.needed)))
    missing = [name for name in nearest.needed if name not in names]
    other = find_kind(names)
    if other not in (None, "text") or (other == "text" and len(missing) == len(nearest.needed)):
        mend = f"rows like this are for tenora train {_FOR[other]}"
    elif len(missing) < len(nearest.needed):
        mend = "add it" if len(missing) == 1 else "add them"
    else:
        mend = f"{kind} rows have {'; or '.join(map(str, FORMATS[kind]))} — name yours with --columns yours=ours"
    note(f"no column {', '.join(map(repr, missing))}", mend)
