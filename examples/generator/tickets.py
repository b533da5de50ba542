"""Messages to a company's support: whole sentences written one by one, and frames filled with a matter for one team."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from examples.generator.english import capital
from examples.generator.material import entries, split
from examples.generator.rows import Part, Parts, TicketRow, normalise

SEED = 11
LABELS = ("billing", "delivery", "technical", "account", "sales")
ROWS = {"train": 250, "heldout": 50}
WORDS = range(3, 36)
SLOT = re.compile(r"\{(\w+)\}")
# For every ten openings, or closings, so many frames without one.
BLANKS = 12


def build_tickets() -> Parts[TicketRow]:
    """Both parts, the same at every call, a fifth of the rows for each team."""
    return Parts(train=ticket_rows("train"), heldout=ticket_rows("heldout"))


def ticket_rows(part: Part) -> list[TicketRow]:
    """One part, mixed."""
    rng = random.Random(f"{SEED}-{part}")
    rows = [row for label in LABELS for row in label_rows(rng, part, label)]
    rng.shuffle(rows)
    return rows


class Deck:
    """Deals its cards in random order, each of them once before any comes again."""

    def __init__(self, rng: random.Random, cards: Sequence[str]) -> None:
        self._rng = rng
        self._cards = cards
        self._left: list[str] = []

    def deal(self) -> str:
        """The next card."""
        self._left = self._left or self._rng.sample(self._cards, len(self._cards))
        return self._left.pop()


def label_rows(rng: random.Random, part: Part, label: str) -> list[TicketRow]:
    """The whole sentences of a label and as many filled frames as are missing.

    Frames, openings and closings are dealt to each label alike, so that none of them hints at a team.
    """
    file = f"tickets_{part}.txt"
    rows = [TicketRow(text, label) for text in entries(file, f"sentences {label}")]
    seen = {normalise(row.text) for row in rows}
    frames = Deck(rng, entries(file, "frames"))
    openings, closings = (Deck(rng, with_blanks(entries(file, name))) for name in ("openings", "closings"))
    used: Counter[str] = Counter()
    while len(rows) < ROWS[part]:
        pattern = Pattern(openings.deal(), frames.deal(), closings.deal())
        # The least worn of a few fillings, so that no clause is heard too often.
        fillings = (fill(rng, part, label, pattern) for _ in range(12))
        row = min(fillings, key=lambda one: sum(used[clause] for clause in one.clauses))
        if normalise(row.text) in seen or len(row.text.split()) not in WORDS:
            continue
        seen.add(normalise(row.text))
        used.update(row.clauses)
        rows.append(row)
    return rows


def with_blanks(lines: Sequence[str]) -> list[str]:
    """The lines, and empty ones for the frames that stand without."""
    return [*lines, *[""] * (len(lines) * BLANKS // 10)]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A frame with what stands around it; opening and closing may be empty."""

    opening: str
    frame: str
    closing: str


@dataclass(frozen=True, slots=True)
class Matter:
    """One reason to write, as a statement, as a question and as a request; all three name the same thing."""

    fact: str
    question: str
    ask: str


@cache
def matters(part: Part, label: str) -> tuple[Matter, ...]:
    """The matters of a label."""
    return tuple(Matter(*split(line, "|")) for line in entries(f"tickets_{part}.txt", f"matters {label}"))


@cache
def things(part: Part, kind: str) -> tuple[str, ...]:
    """The things of a kind."""
    return tuple(thing for line in entries(f"tickets_{part}.txt", f"things {kind}") for thing in split(line, "|"))


def fill(rng: random.Random, part: Part, label: str, pattern: Pattern) -> TicketRow:
    """The pattern with one matter of the label in it."""
    opening, frame, closing = pattern.opening, pattern.frame, pattern.closing
    matter = rng.choice(matters(part, label))
    forms = [slot.lower() for slot in SLOT.findall(frame)]
    clauses = tuple(getattr(matter, form) for form in forms)
    kinds = sorted({kind for clause in clauses for kind in SLOT.findall(clause)})
    named = {kind: rng.choice(things(part, kind)) for kind in kinds}
    filled = {form: clause.format_map(named) for form, clause in zip(forms, clauses, strict=True)}
    body = SLOT.sub(lambda m: capital(filled[m[1].lower()]) if m[1][0].isupper() else filled[m[1]], frame)
    text = " ".join(piece for piece in (opening, after(opening, body), closing) if piece)
    return TicketRow(text, label, frame, clauses, opening, closing)


def after(opening: str, body: str) -> str:
    """The body as it stands behind an opening: no capital behind a comma, but for the word I."""
    if not opening.endswith(",") or re.match(r"I\b", body):
        return body
    return body[0].lower() + body[1:]
