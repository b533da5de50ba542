"""Opposites and similes."""

import random
import re

from examples.generator.material import entries, split
from examples.generator.phrasing import Phrasings, make_row
from examples.generator.rewriting import novelty_of
from examples.generator.rows import InstructionRow, Novelty, Part

OPPOSITE = Phrasings(
    apart=("Give the opposite of the word.", "Find an antonym."),
    inline=("What is the opposite of the word '{}'?", "Give an antonym of '{}'.", "Name the opposite of '{}'."),
    new_apart=("Which word means the contrary?",),
    new_inline=("Tell me a word that means the opposite of '{}'.",),
    apart_share=0.35,
)
TURNED = Phrasings(
    apart=("Rewrite the sentence with the opposite of the word '{}'.", "Replace '{}' with its opposite."),
    inline=(),
    new_apart=("Swap '{}' for a word that means the opposite.",),
    new_inline=(),
)
REWRITE = Phrasings(
    apart=("Rewrite the sentence using a simile.", "Add a simile to the sentence."),
    inline=("Say this with a simile: {}", "Rewrite this sentence with a simile: {}"),
    new_apart=("Make the sentence more lively with a comparison.",),
    new_inline=("How could a simile say this? {}",),
)
COMPLETE = Phrasings(
    apart=("Complete the simile.",),
    inline=("Complete the simile: {}", "Finish this comparison: {}"),
    new_apart=(),
    new_inline=("How does this saying end? {}",),
    apart_share=0.4,
)
MARKED = re.compile(r"\{(\w+)\|(\w+)\}")


def opposite_rows(rng: random.Random, part: Part) -> list[InstructionRow]:
    """Word pairs, half of them asked both ways, and sentences turned round."""
    pairs = [line.split() for line in entries("words.txt", f"opposites {part}")]
    rows, asked = [], set()
    new: Novelty = "train" if part == "train" else "word"
    for pair in pairs:
        fill = "/".join(sorted(pair))
        for word, other in (pair, pair[::-1])[: rng.choice((1, 2))]:
            # "light" is the opposite of both "dark" and "heavy": the first answer written stands alone.
            if word not in asked:
                asked.add(word)
                output = f"The opposite of '{word}' is '{other}'."
                rows.append(make_row(rng, OPPOSITE, word, output, family="opposite", fill=fill, novelty=new))
    for line in entries("words.txt", f"turned {part}"):
        found = MARKED.search(line)
        if found is None:
            raise ValueError(f"words.txt: no {{word|opposite}} in {line!r}")
        text, output = MARKED.sub(r"\1", line), MARKED.sub(r"\2", line)
        row = make_row(rng, TURNED, text, output, family="opposite", fill=text, novelty=novelty_of(part))
        rows.append(InstructionRow(row.instruction.format(found[1]), text, output, row.family, row.fill, row.novelty))
    return rows


def simile_rows(rng: random.Random, part: Part) -> list[InstructionRow]:
    """Similes to finish and plain sentences to rewrite.

    Held out: other sentences for the similes of the training part, and similes that are not in it at all.
    """
    rows = []
    for line in entries("words.txt", "similes train"):
        adjective, like, frames = split(line, "|")
        train, heldout = split(frames, "//")
        if part == "train":
            rows.append(completed(rng, adjective, like, "train"))
        sentences = split(train if part == "train" else heldout, ";")
        rows += [compared(rng, frame, adjective, like, novelty_of(part)) for frame in sentences]
    if part == "heldout":
        for line in entries("words.txt", "similes heldout"):
            adjective, like, frame = split(line, "|")
            rows += [completed(rng, adjective, like, "word"), compared(rng, frame, adjective, like, "word")]
    for line in entries("words.txt", f"actions {part}"):
        plain, lively = split(line, "=>")
        rows.append(make_row(rng, REWRITE, plain, lively, family="simile", fill=plain, novelty=novelty_of(part)))
    return rows


def completed(rng: random.Random, adjective: str, like: str, novelty: Novelty) -> InstructionRow:
    """As brave as … -> As brave as a lion."""
    text, output = f"As {adjective} as", f"As {adjective} as {like}."
    return make_row(rng, COMPLETE, text, output, family="simile", fill=f"as {adjective} as", novelty=novelty)


def compared(rng: random.Random, frame: str, adjective: str, like: str, novelty: Novelty) -> InstructionRow:
    """The soldier was very brave. -> The soldier was as brave as a lion."""
    text, output = frame.format(f"very {adjective}"), frame.format(f"as {adjective} as {like}")
    return make_row(rng, REWRITE, text, output, family="simile", fill=text, novelty=novelty)
