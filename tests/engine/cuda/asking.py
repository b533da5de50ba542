"""Requests of every kind, and what they have in common with their answers elsewhere."""

import torch

from service.engine.sequence import Sequence
from tests.engine.conftest import Zoo
from tests.engine.driving import Outcome, generation, text

TOLERANCE = 1e-4
PROMPTS = ["the quick brown fox", "a", "### Instruction:\nNot a fan, don't recommend.\n"]


def everything(zoo: Zoo) -> list[Sequence]:
    """All prompts under every adapter and, where it generates, the base; all log-probabilities are asked for."""
    vocabulary, made = zoo.source.config().vocab_size, list[Sequence]()
    for i, words in enumerate(PROMPTS):
        ids = zoo.ids(words)
        for name in [None, *zoo.generators] if zoo.decoder else []:
            adapter = zoo.adapters[name] if name else None
            made.append(generation(f"{name}/{i}", ids, adapter, vocabulary=vocabulary))
        made += [text(f"{name}/{i}", ids, zoo.adapters[name]) for name in zoo.classifiers]
    return made


def assert_same(got: dict[str, Outcome], want: dict[str, Outcome]) -> None:
    assert got.keys() == want.keys()
    for key, outcome in got.items():
        if outcome.classified is not None:
            torch.testing.assert_close(outcome.probabilities, want[key].probabilities, atol=TOLERANCE, rtol=0)
        else:
            assert outcome.tokens == want[key].tokens
            torch.testing.assert_close(outcome.logprobs, want[key].logprobs, atol=TOLERANCE, rtol=0)
