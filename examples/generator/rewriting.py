"""Short rewriting: questions, negation, tenses, verb forms, plurals, polite and formal speech."""

import random
from dataclasses import dataclass

from examples.generator.clauses import actions, draw
from examples.generator.english import PRONOUNS, Person, Verb, be, capital, sentence
from examples.generator.material import entries, split
from examples.generator.phrasing import Phrasings, make_row
from examples.generator.rows import InstructionRow, Novelty, Part

QUESTION = Phrasings(
    apart=("Turn the sentence into a question.", "Rewrite the statement as a yes or no question."),
    inline=("Turn this into a question: {}", "Make a question out of this sentence: {}"),
    new_apart=("Ask the sentence below as a question.",),
    new_inline=("Form a yes or no question from: {}",),
)
NEGATION = Phrasings(
    apart=("Make the sentence negative.", "Rewrite the sentence so that it says the opposite, using not."),
    inline=("Make this sentence negative: {}", "Rewrite with not: {}"),
    new_apart=("Put the sentence below into the negative.",),
    new_inline=("Say that this is not so: {}",),
)
PAST = Phrasings(
    apart=("Rewrite the sentence in the past tense.", "Change the verb to the past tense."),
    inline=("Put this sentence into the past tense: {}", "Rewrite in the past tense: {}"),
    new_apart=("Tell the following as something that happened in the past.",),
    new_inline=("What is this sentence in the past tense? {}",),
)
FUTURE = Phrasings(
    apart=("Rewrite the sentence in the future tense.", "Change the sentence to the future with will."),
    inline=("Put this sentence into the future tense: {}", "Rewrite in the future with will: {}"),
    new_apart=("Tell the following as something that will happen.",),
    new_inline=("What is this sentence in the future tense? {}",),
)
PLURAL = Phrasings(
    apart=("Rewrite the sentence in the plural.", "Make the subject of the sentence plural."),
    inline=("Rewrite with a plural subject: {}", "Put this sentence into the plural: {}"),
    new_apart=("Say the following about more than one.",),
    new_inline=("Change the subject to the plural: {}",),
)
ONE_PLURAL = Phrasings(
    apart=("Give the plural of the noun.",),
    inline=("What is the plural of the noun '{}'?", "Give the plural form of '{}'."),
    new_apart=(),
    new_inline=("How do you write '{}' in the plural?",),
    apart_share=0.25,
)
PAST_FORM = Phrasings(
    apart=("Give the past tense of the verb.",),
    inline=("What is the past tense of the verb '{}'?", "Give the past tense of '{}'."),
    new_apart=(),
    new_inline=("Which form of '{}' is the past tense?",),
    apart_share=0.25,
)
PARTICIPLE = Phrasings(
    apart=("Give the past participle of the verb.",),
    inline=("What is the past participle of the verb '{}'?", "Give the past participle of '{}'."),
    new_apart=(),
    new_inline=("Which form of '{}' is the past participle?",),
    apart_share=0.25,
)
POLITE = Phrasings(
    apart=("Make the request more polite.", "Rewrite the order as a polite question."),
    inline=("Say this more politely: {}", "Turn this into a polite request: {}"),
    new_apart=("Ask for the same thing in a friendlier way.",),
    new_inline=("How could I ask this politely? {}",),
)
FORMAL = Phrasings(
    apart=("Rewrite the sentence in a formal style.", "Make the sentence more formal."),
    inline=("Rewrite this formally: {}", "Make this sentence more formal: {}"),
    new_apart=("Put the sentence below into formal English.",),
    new_inline=("What is a more formal way to say this? {}",),
)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A verb with the rest of its phrase: go … to school by bus."""

    verb: Verb
    rest: str

    @property
    def fill(self) -> str:
        """What belongs to one part only."""
        return f"{self.verb.base} {self.rest}"


def phrases(part: Part) -> list[Phrase]:
    """The verb phrases of a part."""
    found = []
    for line in entries("phrases.txt", part):
        forms, rest = split(line, "|")
        base, past = forms.split()
        found.append(Phrase(Verb(base, past, past), rest))
    return found


SINGULAR = tuple(
    Person(name, name, plural=False)
    for name in [
        "my sister",
        "my brother",
        "Tom",
        "Anna",
        "the teacher",
        "the boy",
        "the girl",
        "our aunt",
        "Ben",
        "Lucy",
    ]
)
PLURAL_PEOPLE = tuple(
    Person(name, name, plural=True)
    for name in ["the children", "my parents", "the students", "our friends", "the girls", "Sam and Rosa"]
)
ANYONE = (*PRONOUNS[1:], *SINGULAR, *PLURAL_PEOPLE)


def as_question(who: Person, phrase: Phrase, *, past: bool) -> str:
    """Did she go to school by bus?"""
    helper = "did" if past else "does" if who.third else "do"
    return f"{capital(helper)} {who.subject} {phrase.verb.base} {phrase.rest}?"


def as_negation(who: Person, phrase: Phrase, *, past: bool) -> str:
    """She did not go to school by bus."""
    helper = "did not" if past else "does not" if who.third else "do not"
    return sentence(who.subject, helper, phrase.verb.base, phrase.rest)


def statement(who: Person, phrase: Phrase, *, past: bool) -> str:
    """She went to school by bus."""
    return sentence(who.subject, phrase.verb.past if past else phrase.verb.present(who), phrase.rest)


def novelty_of(part: Part) -> Novelty:
    """What the rows of a part have that is new."""
    return "train" if part == "train" else "fill"


def phrase_rows(rng: random.Random, part: Part, each: int, taken: set[str]) -> list[InstructionRow]:
    """Question, negation, past and future over the verb phrases, `each` rows of every kind."""
    rows: list[InstructionRow] = []
    stock = phrases(part)
    for family, ask in (("question", QUESTION), ("negation", NEGATION), ("past", PAST), ("future", FUTURE)):
        queue = rng.sample(stock, len(stock))
        made = 0
        while made < each:
            queue = queue or rng.sample(stock, len(stock))
            phrase, who = queue.pop(), rng.choice(ANYONE)
            past = rng.random() < 0.5 and family != "past"
            text = statement(who, phrase, past=past)
            if text in taken:
                continue
            taken.add(text)
            output = {
                "question": as_question(who, phrase, past=past),
                "negation": as_negation(who, phrase, past=past),
                "past": statement(who, phrase, past=True),
                "future": sentence(who.subject, "will", phrase.verb.base, phrase.rest),
            }[family]
            rows.append(make_row(rng, ask, text, output, family=family, fill=phrase.fill, novelty=novelty_of(part)))
            made += 1
    return rows


def clause_rows(rng: random.Random, part: Part, each: int, taken: set[str]) -> list[InstructionRow]:
    """Question and negation over verbs with an object."""
    rows: list[InstructionRow] = []
    for family, ask in (("question", QUESTION), ("negation", NEGATION)):
        made = 0
        while made < each:
            clause = draw(rng, rng.choice(actions(part)), tense=rng.choice(["past", "future"]))
            if clause is None or clause.active() in taken or clause.who.subject == "I":
                continue
            taken.add(clause.active())
            helper = "did" if clause.tense == "past" else "will"
            ending = [clause.verb.base, clause.thing.object, clause.thing.rest, clause.tail]
            if family == "question":
                output = sentence(helper, clause.who.subject, *ending)[:-1] + "?"
            else:
                output = sentence(clause.who.subject, f"{helper} not", *ending)
            rows.append(
                make_row(
                    rng,
                    ask,
                    clause.active(),
                    output,
                    family=family,
                    fill=clause.fill,
                    novelty=novelty_of(part),
                )
            )
            made += 1
    return rows


def verb_form_rows(rng: random.Random, part: Part, count: int) -> list[InstructionRow]:
    """Past tense and past participle of single verbs; the held-out verbs are those of the held-out part."""
    verbs = [action.verb for action in actions("train")]
    if part == "heldout":
        verbs = [action.verb for action in actions("heldout", new_verbs=True)]
    kinds = [(verb, kind) for verb in verbs for kind in ("past tense", "past participle")]
    rows = []
    for verb, kind in rng.sample(kinds, min(count, len(kinds))):
        form = verb.past if kind == "past tense" else verb.participle
        rows.append(
            make_row(
                rng,
                PAST_FORM if kind == "past tense" else PARTICIPLE,
                verb.base,
                f"The {kind} of '{verb.base}' is '{form}'.",
                family="verb form",
                fill=f"form of {verb.base}",
                novelty="train" if part == "train" else "word",
            )
        )
    return rows


def plural_rows(rng: random.Random, part: Part) -> list[InstructionRow]:
    """Plurals of nouns, alone and as the subject of a sentence."""
    rows = []
    plurals = dict(line.split() for name in ("train", "heldout") for line in entries("words.txt", f"plurals {name}"))
    for line in entries("words.txt", f"plurals {part}"):
        one, many = line.split()
        output = f"The plural of '{one}' is '{many}'."
        new: Novelty = "train" if part == "train" else "word"
        rows.append(make_row(rng, ONE_PLURAL, one, output, family="plural", fill=f"plural of {one}", novelty=new))
    for line in entries("words.txt", f"plural frames {part}"):
        noun, predicate = split(line, "|")
        helper, rest = predicate.split(" ", 1)
        many = plurals.get(noun, noun + "s")
        helpers = {"is": be(many, plural=True, past=False), "was": be(many, plural=True, past=True), "has": "have"}
        text = sentence("the", noun, helper, rest.rstrip("."))
        output = sentence("the", many, helpers[helper], rest.rstrip("."))
        rows.append(
            make_row(rng, PLURAL, text, output, family="plural", fill=f"{noun} {rest}", novelty=novelty_of(part))
        )
    return rows


def manner_rows(rng: random.Random, part: Part) -> list[InstructionRow]:
    """Orders as polite questions, everyday speech as formal speech."""
    rows = []
    for order in entries("manners.txt", f"polite {part}"):
        output = f"Could you please {order}?"
        text = sentence(order)
        rows.append(make_row(rng, POLITE, text, output, family="polite", fill=order, novelty=novelty_of(part)))
    for line in entries("manners.txt", f"formal {part}"):
        plain, careful = split(line, "=>")
        rows.append(make_row(rng, FORMAL, plain, careful, family="formal", fill=plain, novelty=novelty_of(part)))
    return rows
