"""Rows as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.data.rows import Place
from training.fast.model import Target


@dataclass(frozen=True, slots=True)
class Learned:
    """The ids from ``start`` to ``stop`` of a row are learned, and each counts ``weight``."""

    start: int
    stop: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """A row as token ids."""

    place: Place
    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the model reads of it."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class AnswerExample(Example):
    """A prompt and its answer, or a conversation of several.

    Args:
        learned: what is learned of it, in order.
        prompt_length: ids up to the first answer, from which it is answered greedily.
        text: the prompt in words.
        expected: the answer to it in words.
    """

    learned: tuple[Learned, ...]
    prompt_length: int
    text: str = ""
    expected: str = ""

    @property
    def weight(self) -> float:
        """What its loss is divided by: learned tokens by their weights."""
        return sum((part.stop - max(part.start, 1)) * part.weight for part in self.learned)

    def targets(self) -> list[Target]:
        """Every learned token with the position that predicts it; the first token of a row follows nothing."""
        return [
            Target(place - 1, self.ids[place], part.weight)
            for part in self.learned
            for place in range(max(part.start, 1), part.stop)
        ]


@dataclass(frozen=True, slots=True)
class TextExample(Example):
    """A text and the indices of its labels."""

    labels: tuple[int, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """The better answer to a prompt as ``ids``, and the worse one; ``text`` is the prompt in words."""

    rejected: tuple[int, ...]
    text: str
    chosen_text: str
    rejected_text: str

    @property
    def tokens(self) -> int:
        """Tokens of both."""
        return len(self.ids) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class PreferenceExample(PairExample):
    """A pair whose first ``prompt_length`` ids are the prompt, the same in both rows."""

    prompt_length: int

    def targets(self, ids: Sequence[int], weight: float) -> list[Target]:
        """The tokens of an answer to the prompt, each of which counts ``weight``."""
        return [Target(place - 1, ids[place], weight) for place in range(self.prompt_length, len(ids))]
