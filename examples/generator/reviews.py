"""Reviews: whole sentences written one by one, and frames filled with things, praise and complaints."""

import random
import re
from dataclasses import dataclass
from functools import cache

from examples.generator.english import capital
from examples.generator.material import entries, sections, split
from examples.generator.rows import Part, Parts, ReviewRow, normalise

SEED = 7
DOMAINS = ("film", "book", "phone", "hotel", "food", "tool", "shop", "app", "home")
SLOT = re.compile(r"\{(\w+)\}")
# Which section a slot is filled from; the label of the row never decides it, the slot does.
CLAUSES = {
    "good": "positive",
    "good2": "positive",
    "bad": "negative",
    "bad2": "negative",
    "quibble": "quibble",
    "bright": "bright",
}
ADJECTIVES = {"fine": "positive", "fine2": "positive", "poor": "negative", "poor2": "negative"}
ROWS = {"train": 750, "heldout": 150}
SMALL_WORDS = frozenset(
    normalise("a an the this i it is was of and to in on my me you not no so that are were for at with").split()
)


def build_reviews() -> Parts[ReviewRow]:
    """Both parts, the same at every call, half of the rows of each label."""
    return Parts(train=review_rows("train"), heldout=review_rows("heldout"))


def review_rows(part: Part) -> list[ReviewRow]:
    """One part, mixed."""
    rng = random.Random(f"{SEED}-{part}")
    rows = [row for label in ("positive", "negative") for row in label_rows(rng, part, label)]
    rng.shuffle(rows)
    return rows


def label_rows(rng: random.Random, part: Part, label: str) -> list[ReviewRow]:
    """The whole sentences of a label and as many filled frames as are missing, each frame about equally often."""
    rows = [ReviewRow(text, label) for text in entries(f"reviews_{part}.txt", f"sentences {label}")]
    seen = {normalise(row.text) for row in rows}
    queue: list[tuple[str, tuple[str, ...]]] = []
    used: dict[str, int] = {}
    while len(rows) < ROWS[part]:
        queue = queue or rng.sample(frames(part, label), len(frames(part, label)))
        frame, domains = queue.pop()
        # The least worn of a few fillings, so that no clause is heard too often.
        row = min(
            (fill(rng, part, label, frame, rng.choice(domains)) for _ in range(12)),
            key=lambda one: sum(used.get(value, 0) for value in one.fills),
        )
        if normalise(row.text) in seen:
            continue
        seen.add(normalise(row.text))
        for value in row.fills:
            used[value] = used.get(value, 0) + 1
        rows.append(row)
    return rows


@cache
def frames(part: Part, label: str) -> list[tuple[str, tuple[str, ...]]]:
    """(frame, the domains it fits) of a label."""
    found = []
    for name, lines in sections(f"reviews_{part}.txt").items():
        kind, *words = name.split()
        if kind == "frames" and words[0] == label:
            domains = DOMAINS if words[1] == "any" else tuple(words[1:])
            found += [(line, domains) for line in lines]
    return found


@dataclass(frozen=True, slots=True)
class Filler:
    """What may stand in a slot, and the things it can be said of (empty: of all of its domain)."""

    text: str
    things: frozenset[str] = frozenset()

    def goes_with(self, other: "Filler") -> bool:
        """Whether both can be in one review: of one thing, and not the same matter twice."""
        apart = self.things and other.things and not self.things & other.things
        return not apart and not topic(self.text) & topic(other.text)


@cache
def choices(part: Part, slot: str, domain: str) -> list[Filler]:
    """All that may stand in a slot."""
    file = f"reviews_{part}.txt"
    if slot == "item":
        items = [name for line in entries(file, f"items {domain}") for name in split(line, "|")]
        return [Filler(name, frozenset(name.split())) for name in items]
    if slot in ADJECTIVES:
        words = [w for line in entries(file, f"adjectives {ADJECTIVES[slot]}") for w in split(line, "|")]
        # "fine2" follows "how" or "this", where only a single adjective can stand.
        return [Filler(word) for word in words if " " not in word or not slot.endswith("2")]
    found = []
    for line in entries(file, f"clauses {domain} {CLAUSES[slot]}"):
        text, _, things = line.partition(" @ ")
        found.append(Filler(text, frozenset(things.split())))
    return found


def fill(rng: random.Random, part: Part, label: str, frame: str, domain: str) -> ReviewRow:
    """The frame with every slot filled; a capital in the slot's name asks for one in the text."""
    values: dict[str, Filler] = {}
    for slot in SLOT.findall(frame):
        fitting = [c for c in choices(part, slot.lower(), domain) if all(c.goes_with(v) for v in values.values())]
        values[slot] = rng.choice(fitting)
    text = SLOT.sub(lambda m: capital(values[m[1]].text) if m[1][0].isupper() else values[m[1]].text, frame)
    return ReviewRow(text, label, frame, tuple(value.text for value in values.values()))


@cache
def topic(text: str) -> frozenset[str]:
    """The words that carry the meaning: two clauses of one review share none of them."""
    return frozenset(normalise(text).split()) - SMALL_WORDS
