"""What a row is once it has been read and checked: the language between the files and the tasks."""

from dataclasses import dataclass
from pathlib import Path

from adapters.templates import PromptInput


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands. ``number`` is 1-based and counts ``where``: "line", or "row" of a JSON list or a table."""

    file: Path
    where: str
    number: int

    def __str__(self) -> str:
        return f"{self.file.name} {self.where} {self.number}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt with everything that was said before, and the answer to it.

    Args:
        weight: what the answer's loss counts; 0 is an answer that is not learned.
    """

    prompt: PromptInput
    answer: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class InstructRow:
    """One conversation: an exchange for each answer in it, in order, each prompt containing those before."""

    place: Place
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text and its labels as indices into the run's label names: exactly one, or any number if multi-label."""

    place: Place
    text: str
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A text to learn as it stands."""

    place: Place
    text: str


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with a better and a worse answer."""

    place: Place
    prompt: PromptInput
    chosen: str
    rejected: str
