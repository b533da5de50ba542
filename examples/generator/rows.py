"""What a generated row is, how it is written, and what counts as the same sentence."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Part = Literal["train", "heldout"]
# What a held-out instruction row has that training never saw (training rows are "train").
Novelty = Literal["train", "fill", "word", "phrasing"]
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class InstructionRow:
    """One instruction with its answer.

    `family` and `fill` are not written to the file: the first is for counting, the second names what was
    put into the pattern (a verb and its object, a word pair, a sentence) and is never shared by two parts.
    """

    instruction: str
    input: str
    output: str
    family: str
    fill: str
    novelty: Novelty = "train"

    def record(self) -> dict[str, str]:
        """The row as the file has it."""
        return {"instruction": self.instruction, "input": self.input, "output": self.output}


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """One review; `frame` is its pattern ("" for a whole sentence) and `fills` what was put into it."""

    text: str
    label: str
    frame: str = ""
    fills: tuple[str, ...] = ()

    def record(self) -> dict[str, str]:
        """The row as the file has it."""
        return {"text": self.text, "label": self.label}


@dataclass(frozen=True, slots=True)
class TicketRow:
    """One message to support; all but text and label is for the tests and empty for a whole sentence.

    `frame` is the pattern, `clauses` are what stands in it as the material has them, without a thing named;
    `opening` and `closing` are what was put around it.
    """

    text: str
    label: str
    frame: str = ""
    clauses: tuple[str, ...] = ()
    opening: str = ""
    closing: str = ""

    def record(self) -> dict[str, str]:
        """The row as the file has it."""
        return {"text": self.text, "label": self.label}


@dataclass(frozen=True, slots=True)
class Parts(Generic[Row]):
    """The two parts of a data set."""

    train: list[Row]
    heldout: list[Row]


def to_jsonl(rows: Iterable[InstructionRow | ReviewRow | TicketRow]) -> str:
    """One JSON object a line, ASCII only."""
    return "".join(json.dumps(row.record()) + "\n" for row in rows)


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces: two texts that agree here say the same."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))
