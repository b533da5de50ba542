"""What a judge is asked, and what its reply means."""

import re
from typing import Literal

from training.reporting.results import Sample

Choice = Literal["A", "B", "T"]


_BEST = 100

_SCORE = (
    "Given the input `{prompt}`{stated}, score the model response `{answer}` on a scale from 0 to 100, "
    "where 100 is the best score. Respond with the integer number only."
)
_COMPARE = (
    "Given the input `{prompt}`{stated}, which model response is better?\n\nResponse A: `{a}`\n\nResponse B: `{b}`\n\n"
    "Respond with the letter A or B only, or with T if they are equally good."
)
_STATED = " and correct output `{expected}`"
_OF_A_HUNDRED = re.compile(r"(/|out of)\s*100\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CHOICE = re.compile(r"\W*(?:response\s+)?(A|B|T|tie)\W*", re.IGNORECASE)


def score_question(sample: Sample) -> str:
    """How good one answer is, from 0 to 100."""
    return _SCORE.format(prompt=sample.prompt, stated=_expected(sample), answer=sample.answer)


def compare_question(a: Sample, b: Sample) -> str:
    """Which of two answers to one prompt is better."""
    return _COMPARE.format(prompt=a.prompt, stated=_expected(a), a=a.answer, b=b.answer)


def _expected(sample: Sample) -> str:
    return "" if sample.expected is None else _STATED.format(expected=sample.expected)


def read_score(reply: str) -> float | None:
    """The one number of a reply; None if there is none, or several, or one outside 0 to 100."""
    numbers = _NUMBER.findall(_OF_A_HUNDRED.sub("", reply))
    if len(numbers) != 1 or not 0 <= float(numbers[0]) <= _BEST:
        return None
    return float(numbers[0])


def read_choice(reply: str) -> Choice | None:
    """The letter that a reply consists of; None if it is anything more."""
    found = _CHOICE.fullmatch(reply)
    choices: dict[str, Choice] = {"A": "A", "B": "B", "T": "T"}
    return choices[found[1][0].upper()] if found else None
