"""Sampling: restrictions against a plain reference, penalties, and seeds that do not depend on the batch."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.sampler import Sampler, restrict
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation

CPU = torch.device("cpu")


def reference(logits: list[float], params: SamplingParams) -> set[int]:
    """The tokens that survive, in plain Python; `logits` are distinct."""
    alive = dict(enumerate(logits))

    def probabilities() -> dict[int, float]:
        exps = {i: torch.tensor(value, dtype=torch.float64).exp().item() for i, value in alive.items()}
        return {i: value / sum(exps.values()) for i, value in exps.items()}

    if params.min_p:
        p = probabilities()
        alive = {i: alive[i] for i in alive if p[i] >= params.min_p * max(p.values())}
    if params.top_k:
        alive = {i: alive[i] for i in sorted(alive, key=alive.__getitem__, reverse=True)[: params.top_k]}
    if params.top_p < 1:
        p, total, kept = probabilities(), 0.0, {}
        for i in sorted(alive, key=alive.__getitem__, reverse=True):
            if total >= params.top_p:
                break
            kept[i] = alive[i]
            total += p[i]
        alive = kept
    return set(alive)


@given(
    order=st.permutations(range(12)),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.33, 0.7, 0.97, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.23, 0.9]),
)
def test_restrictions_equal_the_reference(order: list[int], top_k: int, top_p: float, min_p: float) -> None:
    logits = [value * 0.37 for value in order]
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    kept = restrict(torch.tensor(logits), params)
    assert set(torch.nonzero(kept.isfinite())[:, 0].tolist()) == reference(logits, params)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    sampler, counts, draws = Sampler(CPU), Counter[int](), 4000
    sequence = Sequence("r", [0], sampling=SamplingParams(seed=1, temperature=0.7))
    for _ in range(draws):
        counts[sampler.sample(logits, [sequence])[0]] += 1
    want = (logits[0] / 0.7).softmax(-1)
    for token in range(4):
        assert counts[token] / draws == pytest.approx(float(want[token]), abs=0.03)


def chosen(logits: list[float], tokens: list[int], prompt: int, **params: float) -> int:
    sequence = Sequence("r", tokens[:prompt], sampling=SamplingParams(temperature=0.0, **params))  # type: ignore[arg-type]
    sequence.tokens = tokens
    return Sampler(CPU).sample(torch.tensor([logits]), [sequence])[0]


def test_repetition_penalty_counts_prompt_and_answer_and_handles_both_signs() -> None:
    assert chosen([2.0, 1.5, 0.0], [0], 1, repetition_penalty=1.5) == 1
    assert chosen([2.0, 1.5, 0.0], [2, 0], 1, repetition_penalty=1.5) == 1
    assert chosen([-1.0, -1.2, -9.0], [0], 1, repetition_penalty=1.5) == 1


def test_presence_and_frequency_count_the_answer_only() -> None:
    assert chosen([2.0, 1.5, 0.0], [0], 1, presence_penalty=1.0) == 0
    assert chosen([2.0, 1.5, 0.0], [1, 0], 1, presence_penalty=1.0) == 1
    assert chosen([2.0, 1.5, 0.0], [1, 0], 1, frequency_penalty=0.4) == 0
    assert chosen([2.0, 1.5, 0.0], [1, 0, 0], 1, frequency_penalty=0.4) == 1


def test_same_seed_same_text_whatever_else_is_in_the_batch(llama: Zoo) -> None:
    def seeded(name: str, **params: object) -> Sequence:
        asked = {"temperature": 1.3, "seed": 11, "max_tokens": 20} | params
        return generation(name, llama.ids("the quick"), llama.adapters["small"], **asked)

    engine = llama.engine()
    alone = drain(engine, seeded("r"))["r"].tokens
    rng = random.Random(0)
    for trial in range(10):
        others = [
            generation(
                f"o{i}",
                llama.ids("lazy dog " * rng.randint(1, 5)),
                llama.adapters[rng.choice(llama.generators)],
                temperature=1.0,
                seed=rng.choice([None, i]),
                max_tokens=rng.randint(1, 25),
            )
            for i in range(rng.randint(1, 8))
        ]
        outcomes = drain(engine, *others[: trial % 3], seeded("r"), *others[trial % 3 :])
        assert outcomes["r"].tokens == alone
    assert drain(engine, seeded("r", seed=12))["r"].tokens != alone
    unseeded = {tuple(drain(engine, seeded("r", seed=None))["r"].tokens) for _ in range(3)}
    assert len(unseeded) == 3


def test_logprobs_are_the_models_own(llama: Zoo) -> None:
    ids = llama.ids("the quick")
    outcome = drain(
        llama.engine(),
        generation(
            "r", ids, vocabulary=llama.source.config().vocab_size, temperature=3.0, seed=0, top_k=5, max_tokens=1
        ),
    )["r"]
    want = llama.oracle(None).generate(ids, 1).logprobs
    torch.testing.assert_close(outcome.logprobs, want, atol=1e-4, rtol=0)


TINY = [5e-324, 1e-300, 1e-45, 1e-38, 1e-9]


@pytest.mark.parametrize(
    "asked",
    [
        *({"temperature": value} for value in [*TINY, 1e9, 1e300]),
        *({"top_p": value} for value in TINY),
        *({"min_p": value} for value in TINY),
        *({"repetition_penalty": value} for value in [*TINY, 1e9, 1e300]),
        {"presence_penalty": 1e30, "frequency_penalty": -1e30},
        {"temperature": 1e-38, "top_p": 1e-300, "repetition_penalty": 1e-39, "min_p": 1.0, "top_k": 1},
    ],
    ids=str,
)
def test_no_parameter_makes_sampling_fail(llama: Zoo, asked: dict[str, float]) -> None:
    """One request's odd numbers must never cost the step that others are in."""
    engine = llama.engine()
    odd = generation("odd", llama.ids("the quick"), **({"temperature": 1.0, "seed": 1} | asked))
    outcomes = drain(engine, odd, generation("other", llama.ids("the quick")))
    assert outcomes["odd"].finished is not None
    assert outcomes["other"].tokens == llama.oracle(None).generate(llama.ids("the quick"), 8).tokens


def test_a_tiny_temperature_is_greedy(llama: Zoo) -> None:
    ids = llama.ids("the quick")
    tokens = drain(llama.engine(), generation("r", ids, temperature=1e-38))["r"].tokens
    assert tokens == llama.oracle(None).generate(ids, 8).tokens
