"""The forms of verbs and the sentences built from them."""

import random

import pytest

from examples.generator.clauses import Clause, Thing, actions, draw, parse_action, people
from examples.generator.english import PRONOUNS, Person, Verb, article, be
from examples.generator.material import FOLDER, sections
from examples.generator.rewriting import phrases

ME, HE, SHE, WE, THEY = PRONOUNS
WRITE = Verb("write", "wrote", "written")
LETTER = Thing("the letter", "the letter", plural=False, habit=False)
LETTERS = Thing("the letters", "the letters", plural=True, habit=True)


@pytest.mark.parametrize(
    ("base", "third", "ing"),
    [
        ("write", "writes", "writing"),
        ("carry", "carries", "carrying"),
        ("buy", "buys", "buying"),
        ("catch", "catches", "catching"),
        ("wash", "washes", "washing"),
        ("push", "pushes", "pushing"),
        ("go", "goes", "going"),
        ("have", "has", "having"),
        ("fix", "fixes", "fixing"),
        ("cut", "cuts", "cutting"),
        ("plan", "plans", "planning"),
        ("see", "sees", "seeing"),
        ("tie", "ties", "tying"),
        ("open", "opens", "opening"),
        ("visit", "visits", "visiting"),
        ("fly", "flies", "flying"),
    ],
)
def test_verb_endings(base: str, third: str, ing: str) -> None:
    verb = Verb(base, base, base)
    assert (verb.third, verb.ing) == (third, ing)


def test_verbs_with_one_short_vowel_double_their_last_letter() -> None:
    every = [a.verb for a in (*actions("train"), *actions("heldout", new_verbs=True))]
    short = {v.base for v in every if v.ing == v.base + v.base[-1] + "ing"}
    assert short == {"cut", "put", "hit", "win", "begin", "plan"}


@pytest.mark.parametrize(
    ("who", "thing", "tense", "tail", "active", "passive"),
    [
        (SHE, LETTER, "past", "", "She wrote the letter.", "The letter was written by her."),
        (
            ME,
            LETTERS,
            "past",
            "yesterday",
            "I wrote the letters yesterday.",
            "The letters were written by me yesterday.",
        ),
        (
            HE,
            LETTERS,
            "present",
            "every day",
            "He writes the letters every day.",
            "The letters are written by him every day.",
        ),
        (THEY, LETTER, "present", "", "They write the letter.", "The letter is written by them."),
        (
            ME,
            LETTER,
            "present continuous",
            "",
            "I am writing the letter.",
            "The letter is being written by me.",
        ),
        (
            WE,
            LETTERS,
            "past continuous",
            "",
            "We were writing the letters.",
            "The letters were being written by us.",
        ),
        (SHE, LETTERS, "perfect", "", "She has written the letters.", "The letters have been written by her."),
        (ME, LETTER, "perfect", "", "I have written the letter.", "The letter has been written by me."),
        (
            THEY,
            LETTER,
            "past perfect",
            "",
            "They had written the letter.",
            "The letter had been written by them.",
        ),
        (
            Person("Tom", "Tom", plural=False),
            LETTER,
            "future",
            "soon",
            "Tom will write the letter soon.",
            "The letter will be written by Tom soon.",
        ),
        (WE, LETTER, "modal", "", "We must write the letter.", "The letter must be written by us."),
    ],
)
def test_active_and_passive(who: Person, thing: Thing, tense: str, tail: str, active: str, passive: str) -> None:
    clause = Clause(who, WRITE, thing, tense, "must", tail)
    assert clause.active() == active
    assert clause.passive() == passive


def test_a_pronoun_as_object_becomes_a_subject_that_agrees() -> None:
    me = Thing("me", "I", plural=False, habit=True)
    bite = Verb("bite", "bit", "bitten")
    dog = Person("the dog", "the dog", plural=False)
    assert Clause(dog, bite, me, "past", "can", "").passive() == "I was bitten by the dog."
    assert Clause(dog, bite, me, "present continuous", "can", "").passive() == "I am being bitten by the dog."
    assert Clause(dog, bite, me, "perfect", "can", "").passive() == "I have been bitten by the dog."


def test_the_rest_of_a_phrase_stays_behind_the_verb() -> None:
    action = parse_action("put put put | - | P | the books* on the shelf // the cup on the table", "train")
    assert Clause(SHE, action.verb, action.things[0], "past", "can", "").passive() == (
        "The books were put on the shelf by her."
    )
    (cup,) = parse_action("put put put | - | P | a // the cup on the table", "heldout").things
    assert (cup.object, cup.rest, cup.plural) == ("the cup", "on the table", False)


def test_a_thousand_draws_repeat_no_noun_and_agree() -> None:
    rng = random.Random(1)
    made = [c for _ in range(1000) if (c := draw(rng, rng.choice(actions("train")))) is not None]
    assert len(made) > 500
    for clause in made:
        assert not (clause.who.subject == "I" and clause.thing.object.startswith("my "))
        helper = clause.passive().removeprefix(clause.thing.subject.capitalize()).split()
        assert clause.thing.plural or "were" not in helper
        assert clause.tense != "present" or clause.thing.habit


def test_small_forms() -> None:
    assert [be(w, p, past=False) for w, p in (("I", False), ("we", True), ("the dog", False))] == [
        "am",
        "are",
        "is",
    ]
    assert be("the dogs", True, past=True) == "were"
    assert article("an old owl") == "a old owl"
    assert article("a hippo") == "an hippo"


def test_material_is_plain_and_listed_once() -> None:
    for path in sorted(FOLDER.glob("*.txt")):
        for name, lines in sections(path.name).items():
            assert len(set(lines)) == len(lines), f"{path.name} [{name}] lists a line twice"
    known = {a.verb.base for a in actions("train")}
    new = {a.verb.base for a in actions("heldout", new_verbs=True)}
    assert not known & new
    assert len(actions("train")) == len(known)
    assert not {p.fill for p in phrases("train")} & {p.fill for p in phrases("heldout")}
    assert all(kind for kind in (people("people"), people("animals"), people("weather")))
