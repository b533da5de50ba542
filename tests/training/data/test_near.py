"""Near copies: what is found is true, and what is true is found."""

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from training.data.near import THRESHOLD, _runs, near_copies, overlap

WORDS = [
    f"{first}{second}" for first in ("ka", "lo", "mi", "ne", "pu") for second in ("rat", "sen", "tiv", "dol", "mag")
]


def sentence(generator: random.Random, words: int) -> list[str]:
    return [generator.choice(WORDS) for _ in range(words)]


def test_case_and_punctuation_make_no_difference() -> None:
    assert near_copies(["It is, I think, well done!", "something else", "it is i think  WELL done"]) == {2: 0}


def test_texts_of_no_letters_and_of_none() -> None:
    assert near_copies([]) == {}
    assert near_copies(["!!!", "???", "", "a", "b"]) == {}
    assert near_copies(["!!!", "!!!"]) == {1: 0}


def test_pairs_just_above_the_threshold_are_found_and_those_below_are_not() -> None:
    generator = random.Random(1)
    texts, above = [], set()
    for _ in range(400):
        words = sentence(generator, 40)
        changed = list(words)
        for place in generator.sample(range(40), generator.choice((1, 2, 3, 4))):
            changed[place] = f"changed{generator.randrange(1000)}"
        pair = [" ".join(words), " ".join(changed)]
        if overlap(*map(_runs, pair)) >= THRESHOLD:
            above.add(len(texts) + 1)
        texts += pair
    found = near_copies(texts)
    assert 150 < len(above) < 350
    assert len(above & found.keys()) >= 0.97 * len(above)
    assert found.keys() <= above
    assert all(earlier == later - 1 for later, earlier in found.items())


@given(st.lists(st.text(alphabet="ab \U0001f642", max_size=30), max_size=12))
def test_whatever_is_found_is_true(texts: list[str]) -> None:
    for later, earlier in near_copies(texts).items():
        assert earlier < later
        assert overlap(_runs(texts[earlier]), _runs(texts[later])) >= THRESHOLD


def test_ten_thousand_rows_take_seconds() -> None:
    generator = random.Random(2)
    # A phrase in common is the hard case: thousands of candidates that are no copies.
    texts = [f"Rewrite the sentence in the passive voice: {' '.join(sentence(generator, 8))}" for _ in range(10_000)]
    began = time.process_time()
    near_copies(texts)
    assert time.process_time() - began < 10
