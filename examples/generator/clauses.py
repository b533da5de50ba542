"""Sentences of someone doing something to something: the stock for passive, question, negation and tense.

A pair of verb and object belongs to one part only, and some verbs are in the held-out part alone.
"""

import random
from dataclasses import dataclass
from functools import cache

from examples.generator.english import PRONOUNS, Person, Verb, be, have, sentence
from examples.generator.material import entries, split
from examples.generator.rows import Part

TENSES = {
    "past": 46,
    "present": 13,
    "present continuous": 9,
    "past continuous": 4,
    "perfect": 9,
    "future": 10,
    "modal": 8,
    "past perfect": 1,
}
TAILS = {
    "past": "yesterday, last night, last week, this morning, two days ago, on Monday, on Sunday",
    "present": "every day, every morning, every week, on Sundays, every Friday, every evening",
    "present continuous": "now, right now",
    "past continuous": "at noon, at that moment",
    "future": "tomorrow, next week, on Friday, soon, later",
    "modal": "today, before noon",
}
# For what takes months, and for animals, who know no Sundays.
SLOW_TAILS = {"past": "last year, last summer", "present": "every year", "future": "next year, soon"}
ANIMAL_TAILS = {"present": "every day, every morning"}
TAIL_CHANCE = {"past": 0.22, "present": 0.75, "future": 0.4, "past continuous": 0.5}
MODALS = ("can", "must", "should", "may", "could")


@dataclass(frozen=True, slots=True)
class Thing:
    """What is acted on: as object, as subject of the passive, its number, and whether it can be a habit."""

    object: str
    subject: str
    plural: bool
    habit: bool
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """A verb with who does it (letters), what may be said of it (flags) and its things."""

    verb: Verb
    flags: str
    who: str
    things: tuple[Thing, ...]


@dataclass(frozen=True, slots=True)
class Clause:
    """One active sentence, taken apart."""

    who: Person
    verb: Verb
    thing: Thing
    tense: str
    modal: str
    tail: str

    @property
    def fill(self) -> str:
        """The pair that belongs to one part only."""
        return f"{self.verb.base} {self.thing.object}"

    def predicate(self) -> list[str]:
        """The verb of the active sentence."""
        who, verb = self.who, self.verb
        return {
            "past": [verb.past],
            "present": [verb.present(who)],
            "present continuous": [be(who.subject, who.plural, past=False), verb.ing],
            "past continuous": [be(who.subject, who.plural, past=True), verb.ing],
            "perfect": [have(who), verb.participle],
            "past perfect": ["had", verb.participle],
            "future": ["will", verb.base],
            "modal": [self.modal, verb.base],
        }[self.tense]

    def active(self) -> str:
        """She wrote the letter yesterday."""
        return sentence(self.who.subject, *self.predicate(), self.thing.object, self.thing.rest, self.tail)

    def passive(self) -> str:
        """The letter was written by her yesterday."""
        subject, plural = self.thing.subject, self.thing.plural
        now, then = be(subject, plural, past=False), be(subject, plural, past=True)
        perfect = "have" if plural or subject == "I" else "has"
        helpers = {
            "past": then,
            "present": now,
            "present continuous": f"{now} being",
            "past continuous": f"{then} being",
            "perfect": f"{perfect} been",
            "past perfect": "had been",
            "future": "will be",
            "modal": f"{self.modal} be",
        }[self.tense]
        agent = f"by {self.who.object}"
        return sentence(subject, helpers, self.verb.participle, self.thing.rest, agent, self.tail)


def parse_thing(text: str) -> Thing:
    """`the books* on the shelf` -> a plural thing with a rest that stays behind the verb."""
    plural = "*" in text
    head, mark, rest = text.partition("*")
    if not mark:
        for ending in (" on the ", " in the ", " open"):
            if ending in text:
                head, rest = text[: text.index(ending)], text[text.index(ending) :]
                break
    head = head.rstrip("~")
    return Thing(head, head, plural, habit=plural or "~" in text, rest=rest.strip())


def parse_action(line: str, part: Part) -> Action:
    """One line of verbs.txt, with the things of one part."""
    forms, flags, who, things = split(line, "|")
    train, _, heldout = things.partition("//")
    base, past, participle = forms.split()
    # A verb of the held-out part has all its things there; the pronouns of a shared verb belong to training.
    kept = part == "heldout" and bool(heldout)
    chosen = heldout if kept else train
    flags = flags.replace("o", "") if kept else flags
    return Action(Verb(base, past, participle), flags, who, tuple(parse_thing(t) for t in split(chosen, ",")))


@cache
def actions(part: Part, *, new_verbs: bool = False) -> tuple[Action, ...]:
    """The verbs with the things of a part; `new_verbs` are the ones only the held-out part has."""
    lines = entries("verbs.txt", "heldout" if new_verbs else "train")
    return tuple(parse_action(line, part) for line in lines)


@cache
def people(kind: str) -> tuple[Person, ...]:
    """Those who can be subject: "people", "animals" or "weather"."""
    found = []
    for line in entries("people.txt", kind):
        name, marks = split(line, "|")
        found.append(Person(name, name, plural="p" in marks, grown_up="g" in marks))
    return tuple(found)


def pick_person(rng: random.Random, action: Action) -> Person:
    """Someone who fits the verb; a pronoun two times in five where people do it."""
    kind = rng.choice(action.who)
    if kind in "AW":
        return rng.choice(people("animals" if kind == "A" else "weather"))
    if rng.random() < 0.4:
        return rng.choice(PRONOUNS)
    return rng.choice([p for p in people("people") if p.grown_up or kind == "P"])


def pick_thing(rng: random.Random, action: Action, who: Person) -> Thing | None:
    """Something that fits the subject, or None where the draw does not fit."""
    if "o" in action.flags and rng.random() < 0.15:
        whom = rng.choice(PRONOUNS)
        first = {"I", "we"}
        if whom.subject == who.subject or {whom.subject, who.subject} <= first:
            return None
        return Thing(whom.object, whom.subject, whom.plural, habit=True)
    thing = rng.choice(action.things)
    same = set(who.subject.lower().split()) & set(thing.object.lower().split()) - {"the", "a", "two"}
    # "I lost my umbrella" would give "my umbrella was lost by me", which nobody says.
    return None if same or (who.subject in {"I", "we"} and thing.object.startswith("my ")) else thing


def pick_tense(rng: random.Random, action: Action, thing: Thing) -> str | None:
    """A tense that makes sense for the verb and the thing, or None."""
    tense = rng.choices(list(TENSES), weights=list(TENSES.values()))[0]
    needed = {"present": "h", "present continuous": "c", "past continuous": "c", "future": "f", "modal": "f"}
    if tense in needed and needed[tense] not in action.flags:
        return None
    return None if tense == "present" and not thing.habit else tense


def pick_tail(rng: random.Random, action: Action, who: Person, tense: str) -> str:
    """A word of time that fits, or "" where the sentence goes without."""
    tails = TAILS
    if "s" in action.flags:
        tails = SLOW_TAILS
    elif who in people("animals"):
        tails = TAILS | ANIMAL_TAILS
    if tense not in tails or rng.random() >= TAIL_CHANCE.get(tense, 0.2):
        return ""
    return rng.choice(split(tails[tense], ","))


def draw(rng: random.Random, action: Action, *, tense: str | None = None) -> Clause | None:
    """One clause with this verb, or None where the draw does not make sense."""
    who = pick_person(rng, action)
    thing = pick_thing(rng, action, who)
    if thing is None:
        return None
    chosen = pick_tense(rng, action, thing)
    if chosen is None or (tense is not None and chosen != tense):
        return None
    tail = "" if thing.rest else pick_tail(rng, action, who, chosen)
    return Clause(who, action.verb, thing, chosen, rng.choice(MODALS), tail)
