"""One operation for activations that are written as many."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from adapters.activations import fused_activation


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_it_computes_the_same(name: str) -> None:
    chain = ACT2FN[name]
    fused = fused_activation(chain)
    assert fused is not None
    x = torch.linspace(-12, 12, 4001)
    torch.testing.assert_close(fused(x), chain(x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["gelu", "quick_gelu", "silu", "relu"])
def test_another_activation_is_left_alone(name: str) -> None:
    assert fused_activation(ACT2FN[name]) is None
    assert fused_activation(nn.Linear(2, 2)) is None
