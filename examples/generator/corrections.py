"""Spelling and grammar: a sentence with one mistake, and the sentence as it should be."""

import random
import re

from examples.generator.english import PRONOUNS, Person, article, capital, sentence
from examples.generator.material import entries, split
from examples.generator.phrasing import Phrasings, make_row
from examples.generator.rewriting import PLURAL_PEOPLE, SINGULAR, Phrase, novelty_of, phrases
from examples.generator.rows import InstructionRow, Part

SPELLING = Phrasings(
    apart=(
        "Correct the spelling in the sentence.",
        "Fix the spelling mistake.",
        "Find and correct the misspelled word.",
    ),
    inline=("Correct the spelling: {}", "Fix the spelling mistake in this sentence: {}"),
    new_apart=("One word below is spelled wrong. Write the sentence correctly.",),
    new_inline=("Please check the spelling of this: {}",),
)
GRAMMAR = Phrasings(
    apart=(
        "Correct the grammar of the sentence.",
        "Fix the grammar mistake.",
        "Rewrite the sentence without the mistake.",
    ),
    inline=("Correct the grammar: {}", "Fix the mistake in this sentence: {}"),
    new_apart=("Something is wrong with the grammar below. Write it correctly.",),
    new_inline=("Please correct this sentence: {}",),
)
MARKED = re.compile(r"\{(\w+)\|(\w+)\}")
DAYS_AGO = ("Yesterday", "Last week", "Last summer", "Two days ago")


def spelling_rows(rng: random.Random, part: Part) -> list[InstructionRow]:
    """One row for every handwritten sentence with a marked mistake."""
    rows = []
    for line in entries("corrections.txt", f"spelling {part}"):
        wrong, right = MARKED.sub(r"\2", line), MARKED.sub(r"\1", line)
        rows.append(make_row(rng, SPELLING, wrong, right, family="spelling", fill=right, novelty=novelty_of(part)))
    return rows


def written_grammar_rows(rng: random.Random, part: Part) -> list[InstructionRow]:
    """One row for every handwritten mistake, and one for every noun phrase with a wrong article."""
    rows = []
    for line in entries("corrections.txt", f"grammar {part}"):
        wrong, right = split(line, "=>")
        rows.append(make_row(rng, GRAMMAR, wrong, right, family="grammar", fill=right, novelty=novelty_of(part)))
    frames = entries("articles.txt", f"frames {part}")
    for number, phrase in enumerate(entries("articles.txt", f"phrases {part}")):
        frame = frames[number % len(frames)]
        wrong, right = frame.format(article(phrase)), frame.format(phrase)
        rows.append(make_row(rng, GRAMMAR, wrong, right, family="grammar", fill=phrase, novelty=novelty_of(part)))
    return rows


def mistake(rng: random.Random, kind: str, phrase: Phrase) -> tuple[str, str]:
    """(wrong, right) for a verb phrase: agreement, do-support or the tense after a word of time."""
    one: Person = rng.choice((*PRONOUNS[1:3], *SINGULAR))
    many: Person = rng.choice((*PRONOUNS[3:], *PLURAL_PEOPLE))
    verb, rest = phrase.verb, phrase.rest
    if kind == "missing s":
        return sentence(one.subject, verb.base, rest), sentence(one.subject, verb.third, rest)
    if kind == "extra s":
        return sentence(many.subject, verb.third, rest), sentence(many.subject, verb.base, rest)
    if kind == "don't":
        return (
            sentence(one.subject, "don't", verb.base, rest),
            sentence(one.subject, "doesn't", verb.base, rest),
        )
    if kind == "did":
        return (
            f"Did {one.subject} {verb.past} {rest}?",
            f"Did {one.subject} {verb.base} {rest}?",
        )
    when = rng.choice(DAYS_AGO)
    return (
        f"{when} {many.subject} {verb.base} {rest}.",
        f"{when} {many.subject} {verb.past} {rest}.",
    )


def phrase_grammar_rows(rng: random.Random, part: Part, each: int, taken: set[str]) -> list[InstructionRow]:
    """`each` rows of five kinds of mistake over the verb phrases."""
    rows: list[InstructionRow] = []
    stock = phrases(part)
    for kind in ("missing s", "extra s", "don't", "did", "tense"):
        made = 0
        queue: list[Phrase] = []
        while made < each:
            queue = queue or rng.sample(stock, len(stock))
            phrase = queue.pop()
            wrong, right = (capital(text) for text in mistake(rng, kind, phrase))
            if wrong == right or right in taken or wrong in taken:
                continue
            taken |= {wrong, right}
            rows.append(
                make_row(rng, GRAMMAR, wrong, right, family="grammar", fill=phrase.fill, novelty=novelty_of(part))
            )
            made += 1
    return rows
