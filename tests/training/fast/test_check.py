"""Which levers agree with the plain way: found for architectures that nobody told the levers about."""

from typing import Any

import pytest
import torch

from tests.support.tiny import CONTEXT, HEADS, HIDDEN, LAYERS
from tests.training.fast.models import (
    DECODERS,
    ENCODERS,
    MIXED,
    PAD,
    adapted,
    all_of,
    away,
    base_model,
    computed,
    config_of,
    learned,
    some_rows,
    wrapped,
)
from training.fast import check
from training.fast.check import agreeing
from training.fast.levers import Levers

SIZES = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": CONTEXT, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ROWS = some_rows((3, 9, 14, 30))


def found(model: Any, levers: Levers | None = None) -> tuple[Levers, str | None]:
    return agreeing(model, levers or Levers(), ROWS, learned(ROWS), PAD)


@pytest.mark.parametrize("kind", DECODERS)
def test_language_models_keep_all(kind: str) -> None:
    assert found(adapted(kind)) == (Levers(), None)


@pytest.mark.parametrize("kind", ["gpt2", "llama", *ENCODERS])
def test_classifiers_keep_all(kind: str) -> None:
    assert agreeing(adapted(kind, classify=True), Levers(), ROWS, None, PAD) == (Levers(), None)


def test_one_label() -> None:
    """A model that scores has one: any loss that sees only the shares of labels would see nothing."""
    model = wrapped(base_model(config_of("llama", num_labels=1), classify=True))
    assert agreeing(model, Levers(), ROWS, None, PAD) == (Levers(), None)


def test_a_new_adapter() -> None:
    """Its B matrices are zero, and so are the gradients of A."""
    model = wrapped(base_model(config_of("gpt2")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert found(model) == (Levers(), None)


def test_attention_with_soft_caps() -> None:
    """Gemma 2 bends its scores, which packed rows cannot, and its logits, which the loss's own product does not."""
    model = wrapped(base_model(config_of("gemma2", **SIZES)))
    levers, why = found(model)
    assert not levers.packing
    assert why is not None
    assert "packing" in why
    assert "softcap" in why
    agrees(model, levers)


@pytest.mark.parametrize(
    ("kind", "changes"), [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.25, "use_qk_norm": False})]
)
def test_logits_that_are_scaled_afterwards(kind: str, changes: dict[str, Any]) -> None:
    model = wrapped(base_model(config_of(kind, **SIZES, **changes)))
    levers, why = found(model)
    assert not levers.loss_rows
    assert levers.packing
    assert why is not None
    assert "switched off for this base: loss_rows" in why
    agrees(model, levers)


def test_attention_that_cannot_be_replaced() -> None:
    """BLOOM computes its own, with a bias by distance."""
    config = config_of("bloom", hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)
    model = wrapped(base_model(config))
    levers, why = found(model)
    assert not levers.packing
    assert why is not None
    agrees(model, levers)


def test_a_scale_within_a_layer() -> None:
    """A layer with Llama's parts and another sum: the last layer cannot be narrowed as Llama's."""
    config = config_of("granite", **SIZES, residual_multiplier=0.5)
    model = wrapped(base_model(config))
    levers, why = found(model)
    assert levers == Levers().without("narrow")
    assert why is not None
    assert why.startswith("switched off for this base: narrow (the ")
    agrees(model, levers)


def test_what_was_not_wanted_stays_off() -> None:
    wanted = Levers.none()
    assert found(adapted("gpt2"), wanted) == (Levers.none(), None)
    wanted = Levers().without("fused")
    assert found(adapted("gpt2"), wanted) == (wanted, None)


def test_the_largest_set_first() -> None:
    """In the stated order; what does nothing without another is not tried without it."""
    tried = list(check._smaller(Levers()))
    assert tried[:6] == [
        Levers(),
        *(Levers().without(name) for name in ("narrow", "fused", "share_prefix")),
        Levers().without("narrow", "fused"),
        Levers().without("narrow", "share_prefix"),
    ]
    assert tried[-1] == Levers().without(*check._FIRST_TO_GO, "compiled")
    assert len(tried) == len(set(tried))
    assert all(levers.packing or not (levers.share_prefix or levers.narrow) for levers in tried)


def test_the_model_is_left_as_it_was() -> None:
    model = wrapped(base_model(config_of("gemma2", **SIZES))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    found(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == attention
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def agrees(model: Any, levers: Levers) -> None:
    """What was found agrees on other rows too."""
    loss, gradients = computed(model, Levers.none(), MIXED)
    own, found = computed(model, levers, MIXED)
    assert away(own, loss) < 1e-5
    assert away(all_of(found), all_of(gradients)) < 1e-5


def test_rows_that_overflow_compare_with_nothing() -> None:
    """They are the loop's to name: no lever is blamed for them."""
    model = adapted("gpt2")
    with torch.no_grad():
        model.get_base_model().transformer.wte.weight.fill_(torch.inf)
    assert agreeing(model, Levers(), MIXED, learned(MIXED), PAD) == (Levers(), None)
