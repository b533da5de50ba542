"""In float32: a mixed batch = each request alone = PEFT's own forward = merged weights, by every kind of kernels."""

from collections.abc import Callable

import pytest
import torch

from service.engine.sequence import Sequence
from tests.engine.conftest import Zoo
from tests.engine.driving import Outcome, drain, generation, text

TOLERANCE = 1e-4
PROMPTS = ["the quick brown fox", "It was good.", "a", "### Instruction:\nNot a fan, don't recommend.\n", "0123 é 🙂 x"]
NEW_TOKENS = 8
DECODERS = ("gpt2", "llama", "qwen3", "mistral", "opt", "gpt_neox", "phi")
ENCODERS = ("distilbert", "bert", "roberta")
EVERY_KIND = pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])


def names(zoo: Zoo) -> list[str | None]:
    """Every adapter, and the base if it answers by itself."""
    return [None, *zoo.adapters] if zoo.decoder else [*zoo.adapters]


def looked_at(zoo: Zoo, name: str | None) -> int:
    """The prompt for which a name's whole distributions are compared, and which it also gets alone."""
    return names(zoo).index(name) % len(PROMPTS)


def request(zoo: Zoo, name: str | None, i: int) -> Sequence:
    """Prompt ``i`` for an adapter, or for the base; its id is `adapter/i`."""
    key, ids = f"{name or 'base'}/{i}", zoo.ids(PROMPTS[i])
    if name in zoo.classifiers:
        return text(key, ids, zoo.adapters[name])
    vocabulary = zoo.source.config().vocab_size if i == looked_at(zoo, name) else None
    adapter = zoo.adapters[name] if name else None
    return generation(key, ids, adapter, vocabulary=vocabulary, max_tokens=NEW_TOKENS)


def requests(zoo: Zoo) -> list[Sequence]:
    """All prompts, which differ in length, for all names."""
    return [request(zoo, name, i) for name in names(zoo) for i in range(len(PROMPTS))]


def assert_same(got: Outcome, want: Outcome) -> None:
    if want.classified is not None:
        torch.testing.assert_close(got.probabilities, want.probabilities, atol=TOLERANCE, rtol=0)
    else:
        assert got.tokens == want.tokens
        torch.testing.assert_close(got.logprobs, want.logprobs, atol=TOLERANCE, rtol=0)


@EVERY_KIND
def test_a_mixed_batch_equals_each_request_alone(zoo: Callable[[str], Zoo], kind: str, cpu_kernels: str) -> None:
    engine = zoo(kind).engine(max_running=64, kernels=cpu_kernels, prefix_reuse=False)
    mixed = drain(engine, *requests(zoo(kind)))
    assert engine.stats().max_adapters_in_step == len(zoo(kind).adapters)
    assert engine.stats().max_kinds_in_step == (2 if zoo(kind).decoder else 1)
    for name in names(zoo(kind)):
        alone = request(zoo(kind), name, looked_at(zoo(kind), name))
        assert_same(mixed[alone.request_id], drain(engine, alone)[alone.request_id])


@EVERY_KIND
def test_a_mixed_batch_equals_peft_and_merged_weights(zoo: Callable[[str], Zoo], kind: str, cpu_kernels: str) -> None:
    # A small step budget, so that prompts are computed in chunks beside decode rows and whole texts.
    engine = zoo(kind).engine(max_running=64, max_step_tokens=24, kernels=cpu_kernels)
    assert engine.kernels == cpu_kernels
    outcomes = drain(engine, *requests(zoo(kind)))
    for name in names(zoo(kind)):
        for merged in (False, True) if name else (False,):
            for i in range(len(PROMPTS)):
                assert_equals_peft(zoo(kind), name, i, outcomes[f"{name or 'base'}/{i}"], merged=merged)


def assert_equals_peft(zoo: Zoo, name: str | None, i: int, outcome: Outcome, *, merged: bool) -> None:
    oracle, ids = zoo.oracle(name, merged=merged), zoo.ids(PROMPTS[i])
    if name in zoo.classifiers:
        torch.testing.assert_close(outcome.probabilities, oracle.classify(ids), atol=TOLERANCE, rtol=0)
        return
    answer = oracle.follow(ids, outcome.tokens)
    assert len(outcome.tokens) == NEW_TOKENS
    assert outcome.tokens == answer.tokens
    if i == looked_at(zoo, name):
        torch.testing.assert_close(outcome.logprobs, answer.logprobs, atol=TOLERANCE, rtol=0)


def test_adapters_differ_from_each_other_and_from_the_base(llama: Zoo) -> None:
    """The oracle would prove nothing if the adapters changed nothing."""
    vocabulary, ids = llama.source.config().vocab_size, llama.ids(PROMPTS[0])
    asked = {name: llama.adapters.get(name) for name in ("base", *llama.generators)}
    outcomes = drain(
        llama.engine(), *(generation(name, ids, adapter, vocabulary=vocabulary) for name, adapter in asked.items())
    )
    rows = [outcome.logprobs[0] for outcome in outcomes.values()]
    for i, row in enumerate(rows):
        assert all((row - other).abs().max() > 100 * TOLERANCE for other in rows[:i])
