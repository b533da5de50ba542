"""The little grammar the patterns need: endings of verbs, forms of be and have, capitals."""

from dataclasses import dataclass

DOUBLED = frozenset(["cut", "put", "hit", "win", "begin", "run", "swim", "sit", "get", "plan", "jog", "shop"])
IRREGULAR_THIRD = {"have": "has", "do": "does", "go": "goes"}


@dataclass(frozen=True, slots=True)
class Person:
    """Someone who can do something: as subject, after "by", and which verb form follows."""

    subject: str
    object: str
    plural: bool
    grown_up: bool = True

    @property
    def third(self) -> bool:
        """Whether the present tense takes -s."""
        return not self.plural and self.subject not in {"I", "you"}


PRONOUNS = (
    Person("I", "me", plural=False),
    Person("he", "him", plural=False),
    Person("she", "her", plural=False),
    Person("we", "us", plural=True),
    Person("they", "them", plural=True),
)


@dataclass(frozen=True, slots=True)
class Verb:
    """The forms of a verb that cannot be worked out from the base."""

    base: str
    past: str
    participle: str

    @property
    def third(self) -> str:
        """He or she … in the present tense."""
        if self.base in IRREGULAR_THIRD:
            return IRREGULAR_THIRD[self.base]
        if self.base.endswith(("s", "sh", "ch", "x", "z", "o")):
            return self.base + "es"
        if self.base.endswith("y") and self.base[-2] not in "aeiou":
            return self.base[:-1] + "ies"
        return self.base + "s"

    @property
    def ing(self) -> str:
        """The form after "is"."""
        if self.base in DOUBLED:
            return self.base + self.base[-1] + "ing"
        if self.base.endswith("ie"):
            return self.base[:-2] + "ying"
        if self.base.endswith("e") and not self.base.endswith(("ee", "ye", "oe")):
            return self.base[:-1] + "ing"
        return self.base + "ing"

    def present(self, who: Person) -> str:
        """The present tense that goes with the subject."""
        return self.third if who.third else self.base


def capital(text: str) -> str:
    """The text with its first letter raised."""
    return text[:1].upper() + text[1:]


def sentence(*words: str) -> str:
    """The words, blanks between them, a capital first and a full stop last."""
    return capital(" ".join(word for word in words if word)) + "."


def be(subject: str, plural: bool, *, past: bool) -> str:
    """The form of be for a subject ("I" or a noun phrase)."""
    if past:
        return "were" if plural or subject == "you" else "was"
    if subject == "I":
        return "am"
    return "are" if plural or subject == "you" else "is"


def have(who: Person) -> str:
    """The form of have for a subject."""
    return "has" if who.third else "have"


def article(noun_phrase: str) -> str:
    """The noun phrase with its "a" and "an" exchanged, which is always wrong."""
    first, rest = noun_phrase.split(" ", 1)
    return f"{'a' if first == 'an' else 'an'} {rest}"
