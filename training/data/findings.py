"""What is worth knowing of rows that can be used: nothing here stops a run."""

from dataclasses import dataclass
from typing import Literal

from training.data.rows import DocumentRow, InstructRow, Place, PreferenceRow, TextRow

Row = InstructRow | TextRow | DocumentRow | PreferenceRow
Severity = Literal["warning", "note"]
FindingKind = Literal[
    "duplicates",
    "near duplicates",
    "leak",
    "near leak",
    "contradiction",
    "same answers",
    "imbalance",
    "rare labels",
    "absent labels",
    "no labels",
    "over-long",
    "nothing learned",
    "files passed over",
]
_SPOKEN = {"data": "training", "train": "training"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Args:
        message: one sentence with the figures.
        places: the rows it is about, in order; empty where it is about no row.
        beside: for each of ``places`` the row that it repeats or contradicts; empty where there is none.
    """

    kind: FindingKind
    severity: Severity
    message: str
    mend: str
    places: tuple[Place, ...] = ()
    beside: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class RowLength:
    """Tokens of a row as it would be trained: all of them, and those whose loss counts."""

    tokens: int
    learned: int


def spoken(part: str) -> str:
    """What a part is called in a sentence: ``training``, ``validation``, ``test``."""
    return _SPOKEN.get(part, part)


def counted(number: int, noun: str) -> str:
    """``1 row``, ``1,200 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(number: int, rows: int, part: str, one: str, many: str) -> str:
    """``3 of 1,200 training rows repeat …``: ``one`` and ``many`` are the rest of the sentence for its two numbers."""
    return f"{number:,} of {counted(rows, f'{spoken(part)} row')} {one if number == 1 else many}"
