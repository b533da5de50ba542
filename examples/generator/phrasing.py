"""How a task is asked for: a few ways for training, others that only the held-out part has."""

import random
from dataclasses import dataclass

from examples.generator.rows import InstructionRow, Novelty

NEW_PHRASING_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Ways to ask. `apart` leave the text to the input field; `inline` hold it at `{}`."""

    apart: tuple[str, ...]
    inline: tuple[str, ...]
    new_apart: tuple[str, ...]
    new_inline: tuple[str, ...]
    apart_share: float = 0.55

    def ask(self, rng: random.Random, text: str, *, new: bool) -> tuple[str, str]:
        """(instruction, input) for a text; `new` takes a way that training never saw."""
        apart = self.new_apart if new else self.apart
        inline = self.new_inline if new else self.inline
        if apart and (not inline or rng.random() < self.apart_share):
            return rng.choice(apart), text
        return rng.choice(inline).format(text), ""


def make_row(
    rng: random.Random,
    phrasings: Phrasings,
    text: str,
    output: str,
    *,
    family: str,
    fill: str,
    novelty: Novelty = "train",
) -> InstructionRow:
    """A row; one held-out row in five with a known kind of word is asked for in a new way."""
    if novelty == "fill" and rng.random() < NEW_PHRASING_SHARE:
        novelty = "phrasing"
    instruction, given = phrasings.ask(rng, text, new=novelty == "phrasing")
    return InstructionRow(instruction, given, output, family, fill, novelty)
