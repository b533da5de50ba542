"""In float32: a mixed batch = each request alone = PEFT's own forward = merged weights."""

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


def requests(zoo: Zoo) -> dict[str, Sequence]:
    """Every adapter, and the base, on prompts of different lengths; keyed `adapter/prompt`."""
    vocabulary = zoo.source.config().vocab_size
    made: dict[str, Sequence] = {}
    for i, words in enumerate(PROMPTS):
        ids = zoo.ids(words)
        names = [None, *zoo.generators] if zoo.decoder else []
        for name in names:
            adapter = zoo.adapters[name] if name else None
            key = f"{name or 'base'}/{i}"
            made[key] = generation(key, ids, adapter, vocabulary=vocabulary, max_tokens=NEW_TOKENS)
        for name in zoo.classifiers:
            made[f"{name}/{i}"] = text(f"{name}/{i}", ids, zoo.adapters[name])
    return made


def assert_same(got: Outcome, want: Outcome) -> None:
    if want.classified is not None:
        torch.testing.assert_close(got.probabilities, want.probabilities, atol=TOLERANCE, rtol=0)
    else:
        assert got.tokens == want.tokens
        torch.testing.assert_close(got.logprobs, want.logprobs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_a_mixed_batch_equals_each_request_alone(zoo: Callable[[str], Zoo], kind: str) -> None:
    engine = zoo(kind).engine(max_running=64)
    alone = {key: drain(engine, sequence)[key] for key, sequence in requests(zoo(kind)).items()}
    mixed = drain(engine, *requests(zoo(kind)).values())
    assert mixed.keys() == alone.keys()
    for key, outcome in mixed.items():
        assert_same(outcome, alone[key])
    assert engine.stats().max_adapters_in_step == len(zoo(kind).adapters)
    assert engine.stats().max_kinds_in_step == (2 if zoo(kind).decoder else 1)


@pytest.mark.parametrize("merged", [False, True], ids=["peft", "merged"])
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_a_mixed_batch_equals_peft(zoo: Callable[[str], Zoo], kind: str, merged: bool) -> None:
    # A small step budget, so that prompts are computed in chunks beside decode rows and whole texts.
    outcomes = drain(zoo(kind).engine(max_running=64, max_step_tokens=24), *requests(zoo(kind)).values())
    for name in [None, *zoo(kind).adapters] if zoo(kind).decoder else [*zoo(kind).adapters]:
        oracle = zoo(kind).oracle(name, merged=merged)
        for i, words in enumerate(PROMPTS):
            outcome = outcomes[f"{name or 'base'}/{i}"]
            if name in zoo(kind).classifiers:
                want = oracle.classify(zoo(kind).ids(words))
                torch.testing.assert_close(outcome.probabilities, want, atol=TOLERANCE, rtol=0)
            else:
                answer = oracle.generate(zoo(kind).ids(words), NEW_TOKENS)
                assert outcome.tokens == answer.tokens
                torch.testing.assert_close(outcome.logprobs, answer.logprobs, atol=TOLERANCE, rtol=0)


def test_adapters_differ_from_each_other_and_from_the_base(llama: Zoo) -> None:
    """The oracle would prove nothing if the adapters changed nothing."""
    outcomes = drain(llama.engine(max_running=64), *requests(llama).values())
    rows = [outcomes[f"{name}/0"].logprobs[0] for name in ("base", *llama.generators)]
    for i, row in enumerate(rows):
        assert all((row - other).abs().max() > 100 * TOLERANCE for other in rows[:i])
