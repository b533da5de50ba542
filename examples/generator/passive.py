"""Active to passive, the largest family."""

import random

from examples.generator.clauses import Action, actions, draw
from examples.generator.phrasing import Phrasings, make_row
from examples.generator.rows import InstructionRow, Novelty, Part

ASK = Phrasings(
    apart=(
        "Change the sentence to the passive voice.",
        "Rewrite the sentence in the passive voice.",
        "Turn this active sentence into a passive one.",
        "Convert the following sentence from active to passive.",
        "Make the sentence passive.",
    ),
    inline=(
        "Change this sentence to the passive voice: {}",
        "Rewrite in the passive voice: {}",
        "Turn this sentence into the passive: {}",
        "What is the passive form of this sentence? {}",
    ),
    new_apart=("Put the sentence below into the passive voice.", "Say the same thing in the passive voice."),
    new_inline=("Please give me the passive version of: {}", "How would you say this in the passive voice? {}"),
)


def passive_rows(
    rng: random.Random, part: Part, count: int, taken: set[str], *, new_verbs: bool = False
) -> list[InstructionRow]:
    """`count` rows; every verb comes up about equally often. Sentences in `taken` are not used again."""
    novelty: Novelty = "train" if part == "train" else "word" if new_verbs else "fill"
    rows: list[InstructionRow] = []
    queue: list[Action] = []
    while len(rows) < count:
        queue = queue or rng.sample(actions(part, new_verbs=new_verbs), len(actions(part, new_verbs=new_verbs)))
        action = queue.pop()
        for _ in range(20):
            clause = draw(rng, action)
            if clause is not None and clause.active() not in taken:
                taken.add(clause.active())
                rows.append(
                    make_row(
                        rng,
                        ASK,
                        clause.active(),
                        clause.passive(),
                        family="passive",
                        fill=clause.fill,
                        novelty=novelty,
                    )
                )
                break
    return rows
