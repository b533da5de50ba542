"""The value of one column or key, if it can be used; else a note of what is wrong and the mend."""

from collections.abc import Callable, Mapping
from typing import Any

from training.data.tables import a_kind

Note = Callable[[str, str], None]
"""Takes what is wrong and how to mend it."""


def read_text(
    values: Mapping[str, Any], column: str, note: Note, *, where: str = "", may_be_empty: bool = False
) -> str | None:
    """The text of ``column``, or None with a note. ``where`` stands before it: ``message 2: ``."""
    value = values[column]
    name = f"{where}{column!r}"
    if not isinstance(value, str):
        note(f"{name} is {a_kind(value)}, not a string", "write it as a string")
    elif not value.strip() and not may_be_empty:
        note(f"{name} is empty", "write it out or remove the row")
    elif has_half_characters(value):
        note(f"{name} holds half a character (a lone surrogate)", "write it as UTF-8")
    else:
        return value
    return None


def has_half_characters(text: str) -> bool:
    """Whether a text holds lone surrogates, which JSON can write and no tokenizer can read."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def refuse_keys(values: Mapping[str, Any], known: tuple[str, ...], note: Note, where: str) -> bool:
    """Whether ``values`` has no keys but the known ones; nulls count as absent, for Parquet writes them so."""
    unknown = [key for key, value in values.items() if key not in known and value is not None]
    for key in unknown:
        note(f"{where}{key!r} is not learned from", f"remove it: {' and '.join(known)} are what is read")
    return not unknown
