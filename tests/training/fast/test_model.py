"""The context that the levers are: dropout under a seed, and the model given back as it was."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.fast.models import (
    MIXED,
    PAD,
    adapted,
    base_model,
    computed,
    config_of,
    learned,
    parameters,
    some_rows,
    wrapped,
)
from training.fast.levers import Levers
from training.fast.model import FastModel

ROWS = some_rows((3, 9, 14))


def loss_of(fast: FastModel) -> Tensor:
    return fast.token_loss(ROWS, learned(ROWS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_the_model_is_given_back(kind: str, dtype: torch.dtype) -> None:
    """Forwards, configuration, weights, and outputs to the last bit."""
    classify = kind == "bert"
    model = adapted(kind, classify=classify)
    inputs = {"input_ids": torch.tensor([MIXED[3], MIXED[3]])}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    config, state = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.state_dict())
    attention = model.config._attn_implementation
    with torch.no_grad():
        before = model(**inputs).logits
    computed(model, Levers(), dtype=dtype)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == attention
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


def test_the_model_is_given_back_after_an_error() -> None:
    model = adapted("gpt2")
    before = model.config._attn_implementation
    with (
        pytest.raises(IndexError),
        FastModel(model, Levers(), torch.float32, PAD) as fast,
    ):
        fast.token_loss([[10_000, 2, 3]], learned([[10_000, 2, 3]]))
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_that_cannot_be_prepared_is_given_back() -> None:
    """Two adapters at once are nobody's training."""
    model = adapted("llama")
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="too many values"):
        FastModel(model, Levers(), torch.float32, PAD)
    assert not any("forward" in vars(module) for module in model.modules())


def test_between_steps_the_model_can_be_used_as_it_is() -> None:
    """Generation for a sample runs while the levers are on."""
    model = adapted("llama")
    ids = torch.tensor([MIXED[2]])
    expected = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    with FastModel(model, Levers(), torch.float32, PAD) as fast:
        loss_of(fast)
        found = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("way", [Levers(), Levers().without("fused"), Levers.none()], ids=["all", "not fused", "none"])
def test_dropout(way: Levers) -> None:
    """Of the base and of LoRA: under a seed the same loss and gradients, and on average the loss without it."""
    config = config_of("gpt2", embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    model = wrapped(base_model(config, spread=0.05), spread=0.05, lora_dropout=0.2)
    with FastModel(model, way, torch.float32, PAD) as fast:
        still = float(loss_of(fast).detach())
        model.train()
        runs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            loss = loss_of(fast)
            runs.append([loss.detach(), *torch.autograd.grad(loss, list(parameters(model).values()))])
        assert all(map(torch.equal, runs[0], runs[1]))
        assert not torch.equal(runs[0][0], runs[2][0])
        with torch.no_grad():
            average = sum(float(loss_of(fast)) for _ in range(60)) / 60
    assert average != still
    assert average == pytest.approx(still, rel=0.02)


def test_dropout_of_a_classifier() -> None:
    model = wrapped(base_model(config_of("distilbert", num_labels=2), classify=True), lora_dropout=0.2).train()
    with FastModel(model, Levers(), torch.float32, PAD) as fast:
        logits = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            logits.append(fast.label_logits(ROWS))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_rows_without_targets() -> None:
    """They cost their tokens and add nothing."""
    model = adapted("gpt2")
    targets = learned(MIXED)
    targets[2] = []
    losses = []
    for levers in (Levers(), Levers.none()):
        with FastModel(model, levers, torch.float32, PAD) as fast:
            losses.append(float(fast.token_loss(MIXED, targets).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_steps_train() -> None:
    """The parameters that PEFT made are those that learn."""
    model = adapted("gpt2")
    optimiser = torch.optim.AdamW(parameters(model).values(), lr=0.01)
    losses: list[Any] = []
    with FastModel(model, Levers(), torch.bfloat16, PAD) as fast:
        for _ in range(8):
            loss = loss_of(fast)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert float(computed(model, Levers.none(), ROWS)[0]) < 0.7 * losses[0]


def test_coarsely_is_bfloat16_inside_and_nowhere_else() -> None:
    """What is looked at on the way: as a model in bfloat16 gives it; before and after to the last bit in float32."""
    with torch.no_grad(), FastModel(adapted("gpt2"), Levers(), torch.bfloat16, PAD) as rounded:
        expected = float(loss_of(rounded))
    with torch.no_grad(), FastModel(adapted("gpt2"), Levers(), torch.float32, PAD, coarse=torch.bfloat16) as fast:
        before = float(loss_of(fast))
        with fast.coarsely():
            assert float(loss_of(fast)) == expected != before
        assert float(loss_of(fast)) == before
    with torch.no_grad(), FastModel(adapted("gpt2"), Levers(), torch.float32, PAD) as fast, fast.coarsely():
        assert float(loss_of(fast)) == before
