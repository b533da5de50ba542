"""The generators give what they say."""

import collections
import itertools
import math
import statistics

import pytest

from bench.sections.classify import texts
from bench.workloads import choose, cyclic, lengths, open_loop, padded, prompts, zipf_weights

LOOP = {"rate": 50.0, "seconds": 200.0, "prompt_tokens": (8, 128), "new_tokens": (4, 20)}


def test_prompts_are_seeded_and_fresh() -> None:
    first = prompts(16, 64, 50_000, seed=1)
    assert first == prompts(16, 64, 50_000, seed=1)
    assert not set(map(tuple, first)) & set(map(tuple, prompts(16, 64, 50_000, seed=2)))
    assert {len(row) for row in first} == {64}
    assert all(300 <= token < 50_000 for row in first for token in row)


def test_identical_and_distinct() -> None:
    assert choose("identical", 64, 0) == [0] * 64
    assert sorted(choose("distinct", 64, 0)) == list(range(64))


def test_uniform_is_the_root_of_the_requests() -> None:
    counts = collections.Counter(choose("uniform", 60, 3))
    assert len(counts) == math.ceil(math.sqrt(60))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_skewed_follows_zipf() -> None:
    weights = zipf_weights(4)
    assert weights == [1, 2**-1.5, 3**-1.5, 4**-1.5]
    chosen = choose("skewed", 5000, 7)
    assert chosen == choose("skewed", 5000, 7)
    counts = collections.Counter(chosen)
    share = 1 / sum(zipf_weights(5000))
    assert counts[0] / 5000 == pytest.approx(share, rel=0.1)
    assert counts[0] / counts[1] == pytest.approx(2**1.5, rel=0.15)


@pytest.mark.parametrize("cv", [1.0, 2.0])
def test_arrivals_are_gamma(cv: float) -> None:
    arrivals = open_loop(adapters=10, seed=1, cv=cv, **LOOP)
    assert arrivals == open_loop(adapters=10, seed=1, cv=cv, **LOOP)
    gaps = [after.at - before.at for before, after in itertools.pairwise(arrivals)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.1)


def test_alpha_one_is_uniform_and_more_prefers_the_last() -> None:
    even = collections.Counter(row.adapter for row in open_loop(adapters=5, seed=1, **LOOP))
    assert set(even) == set(range(5))
    assert max(even.values()) / min(even.values()) < 1.15
    steep = collections.Counter(row.adapter for row in open_loop(adapters=5, seed=1, alpha=4.0, **LOOP))
    assert steep[4] > 0.5 * steep.total()


def test_lengths_of_the_open_loop_keep_their_bounds() -> None:
    rows = open_loop(adapters=5, seed=1, **LOOP)
    assert {min(row.prompt_tokens for row in rows), max(row.prompt_tokens for row in rows)} == {8, 127}
    assert {min(row.new_tokens for row in rows), max(row.new_tokens for row in rows)} == {4, 19}


def test_lengths_are_uniform() -> None:
    found = lengths(5000, 20, 200, seed=1)
    assert (min(found), max(found)) == (20, 200)
    assert statistics.mean(found) == pytest.approx(110, rel=0.03)


def test_texts_differ_between_rounds() -> None:
    first, second = texts(700, 0), texts(700, 1)
    assert len(first) == 64
    assert all(20 <= len(text) <= 200 for text in first)
    assert first != second
    assert len(set(map(tuple, first))) == 64


def test_cyclic_and_padding() -> None:
    assert cyclic(3, 7) == [0, 1, 2, 0, 1, 2, 0]
    ids, mask = padded([[5, 6, 7], [8]], padding=1)
    assert ids == [[5, 6, 7], [8, 1, 1]]
    assert mask == [[1, 1, 1], [1, 0, 0]]
