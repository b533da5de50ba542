"""Who asks for what, and when: prompts, popularities of adapters, arrivals, lengths. All of it seeded."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Popularity = Literal["identical", "distinct", "uniform", "skewed"]
POPULARITIES: tuple[Popularity, ...] = ("identical", "distinct", "uniform", "skewed")
ZIPF = 1.5
"""Exponent of Punica's skewed popularity."""
FIRST_TOKEN = 300
"""Ids below are bytes and special tokens; prompts do without them."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of an open loop."""

    at: float
    adapter: int
    prompt_tokens: int
    new_tokens: int


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random token ids: what they say does not change what they cost. No two calls share a prompt."""
    generator = random.Random(f"{seed}/{count}/{length}")
    return [[generator.randrange(FIRST_TOKEN, vocabulary) for _ in range(length)] for _ in range(count)]


def lengths(count: int, low: int, high: int, seed: int) -> list[int]:
    """Lengths, uniform in [low, high]."""
    generator = random.Random(seed)
    return [generator.randint(low, high) for _ in range(count)]


def choose(popularity: Popularity, requests: int, seed: int) -> list[int]:
    """Which adapter each request asks for, under one of Punica's popularities.

    identical: all the same; distinct: all different; uniform: ceil(sqrt(requests)) adapters, as often as one another;
    skewed: adapter k is drawn with a probability in proportion to 1 / k^1.5, so a few get nearly everything.
    """
    generator = random.Random(seed)
    match popularity:
        case "identical":
            return [0] * requests
        case "distinct":
            return list(range(requests))
        case "uniform":
            adapters = math.ceil(math.sqrt(requests))
            chosen = [index % adapters for index in range(requests)]
            generator.shuffle(chosen)
            return chosen
        case "skewed":
            return generator.choices(range(requests), zipf_weights(requests), k=requests)


def zipf_weights(adapters: int) -> list[float]:
    """Weights 1 / k^1.5 for k = 1, 2 … adapters."""
    return [(k + 1) ** -ZIPF for k in range(adapters)]


def open_loop(
    *,
    adapters: int,
    rate: float,
    seconds: float,
    prompt_tokens: tuple[int, int],
    new_tokens: tuple[int, int],
    seed: int,
    alpha: float = 1.0,
    cv: float = 1.0,
) -> list[Arrival]:
    """S-LoRA's open loop.

    Args:
        adapters: How many there are; a request asks for number ``int(x * adapters)``, x from a power distribution.
        rate: Requests a second.
        seconds: How long they keep arriving.
        prompt_tokens: Bounds of the uniform lengths of prompts, the upper one excluded.
        new_tokens: The same for answers.
        seed: Of everything drawn here.
        alpha: Exponent of the power distribution; 1 is uniform.
        cv: Coefficient of variation of the times between arrivals, which are gamma; 1 is a Poisson process.
    """
    generator = np.random.default_rng(seed)
    count = int(rate * seconds)
    gaps = generator.gamma(1 / cv**2, cv**2 / rate, count)
    chosen = (generator.power(alpha, count) * adapters).astype(int)
    ins, outs = generator.integers(*prompt_tokens, count), generator.integers(*new_tokens, count)
    times = np.cumsum(gaps)
    return [Arrival(*row) for row in zip(times.tolist(), chosen.tolist(), ins.tolist(), outs.tolist(), strict=True)]


def cyclic(working_set: int, requests: int) -> list[int]:
    """Adapters in turn, which is the worst that can happen to a cache that forgets the least recently used."""
    return [index % working_set for index in range(requests)]


def padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask) of rows brought to the length of the longest, padding on the right."""
    width = max(len(row) for row in rows)
    ids = [[*row, *[padding] * (width - len(row))] for row in rows]
    return ids, [[1] * len(row) + [0] * (width - len(row)) for row in rows]
