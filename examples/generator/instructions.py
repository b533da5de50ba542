"""Puts the families of instruction rows together."""

import random

from examples.generator.corrections import phrase_grammar_rows, spelling_rows, written_grammar_rows
from examples.generator.passive import passive_rows
from examples.generator.rewriting import clause_rows, manner_rows, phrase_rows, plural_rows, verb_form_rows
from examples.generator.rows import InstructionRow, Part, Parts
from examples.generator.vocabulary import opposite_rows, simile_rows

SEED = 20


def build_instructions() -> Parts[InstructionRow]:
    """Both parts, the same at every call."""
    return Parts(train=train_rows(), heldout=heldout_rows())


def train_rows() -> list[InstructionRow]:
    """The training part, mixed."""
    rng = random.Random(f"{SEED}-train")
    taken: set[str] = set()
    rows = passive_rows(rng, "train", 860, taken)
    rows += phrase_rows(rng, "train", 40, taken)
    rows += clause_rows(rng, "train", 40, taken)
    rows += verb_form_rows(rng, "train", 70)
    rows += phrase_grammar_rows(rng, "train", 16, taken)
    rows += handwritten(rng, "train")
    rng.shuffle(rows)
    return rows


def heldout_rows() -> list[InstructionRow]:
    """The held-out part, mixed: half passive, a little of everything else."""
    rng = random.Random(f"{SEED}-heldout")
    taken: set[str] = set()
    rows = passive_rows(rng, "heldout", 76, taken)
    rows += passive_rows(rng, "heldout", 16, taken, new_verbs=True)
    rows += phrase_rows(rng, "heldout", 4, taken)
    rows += clause_rows(rng, "heldout", 3, taken)
    rows += verb_form_rows(rng, "heldout", 6)
    rows += phrase_grammar_rows(rng, "heldout", 2, taken)
    spare = handwritten(rng, "heldout")
    rows += by_family(rng, spare, {"spelling": 14, "grammar": 12, "simile": 14, "opposite": 12})
    rows += by_family(rng, spare, {"plural": 8, "polite": 6, "formal": 6})
    rng.shuffle(rows)
    return rows


def handwritten(rng: random.Random, part: Part) -> list[InstructionRow]:
    """The rows that stand or fall with a line of the material."""
    return [
        *spelling_rows(rng, part),
        *written_grammar_rows(rng, part),
        *opposite_rows(rng, part),
        *simile_rows(rng, part),
        *plural_rows(rng, part),
        *manner_rows(rng, part),
    ]


def by_family(rng: random.Random, rows: list[InstructionRow], counts: dict[str, int]) -> list[InstructionRow]:
    """That many rows of each family, by chance."""
    return [
        row for family, count in counts.items() for row in rng.sample([r for r in rows if r.family == family], count)
    ]
