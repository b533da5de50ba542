"""What can stop a training run before or while it works.

TrainingError              the run cannot go on; the message says the mend
├── ConfigError            a flag, an environment variable or a recipe key is wrong
├── DataError              rows that cannot be used, all of them at once
├── NotFiniteError         the loss is no longer a number
└── PublishError           the finished adapter does not come back equal from disk
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

_LINES_SHOWN = 20
_PLACES_SHOWN = 12


class TrainingError(Exception):
    """The run cannot go on. The command ends with status 2 and the message, without a traceback."""


class ConfigError(TrainingError):
    """A flag, an environment variable or a key of a recipe is wrong."""


class PublishError(TrainingError):
    """The adapter read back from disk does not answer as the trained model did."""


class NotFiniteError(TrainingError):
    """The loss, or its gradient, is no longer a number.

    Args:
        places: The rows whose it is.
        when: At which step, or on which part.
    """

    def __init__(self, value: float, places: Sequence[str], when: str, what: str = "loss") -> None:
        more = " …" if len(places) > _PLACES_SHOWN else ""
        listed = ", ".join(places[:_PLACES_SHOWN]) + more
        super().__init__(f"the {what} of {listed} is {value} {when}: lower --lr, or look at these rows")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one row.

    Args:
        where: what the number counts: "line" or "row" (a JSON list has rows, counted from 1).
        number: 1-based; 0 means the file as a whole.
        what: what is wrong.
        mend: what to do about it.
    """

    file: Path
    where: str
    number: int
    what: str
    mend: str


class DataError(TrainingError):
    """Rows that cannot be used. ``problems`` holds every one of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(in_order(problems))
        super().__init__(_report(self.problems))


def in_order(problems: Sequence[Problem]) -> list[Problem]:
    """File by file, as they were met; those of a file by their places."""
    files = {file: place for place, file in enumerate(dict.fromkeys(problem.file for problem in problems))}
    return sorted(problems, key=lambda problem: (files[problem.file], problem.number))


def _report(problems: Sequence[Problem]) -> str:
    """One line a kind of problem, with all its line numbers, in the order the file shows them."""
    lines: list[str] = []
    for file, of_file in groupby(problems, key=lambda problem: problem.file):
        kinds: dict[tuple[str, str], list[Problem]] = {}
        rows: set[tuple[str, int]] = set()
        for problem in of_file:
            kinds.setdefault((problem.what, problem.mend), []).append(problem)
            rows |= {(problem.where, problem.number)} if problem.number else set()
        bad = len(rows)
        lines.append(f"{file}: {bad} bad row{'' if bad == 1 else 's'}" if bad else f"{file}:")
        for (what, mend), found in kinds.items():
            place = numbered(found[0].where, [problem.number for problem in found])
            lines.append(f"  {place}{what} — {mend}")
    return "\n".join(lines)


def numbered(where: str, numbers: Sequence[int]) -> str:
    """``lines 3, 7-9: `` for the numbers; nothing for the file as a whole."""
    if not any(numbers):
        return ""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges[:_LINES_SHOWN])
    rest = sum(b - a + 1 for a, b in ranges[_LINES_SHOWN:])
    more = f" and {rest} more" if rest else ""
    plural = "s" if len(set(numbers)) > 1 else ""
    return f"{where}{plural} {shown}{more}: "
