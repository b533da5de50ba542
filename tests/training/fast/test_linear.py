"""A linear layer with LoRA, against PEFT's own."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn
from transformers.pytorch_utils import Conv1D

from training.fast.linear import Arithmetic, FastFrozen, FastLora


def layer(base: nn.Module, dropout: float = 0.0) -> Any:
    """PEFT's layer around a frozen one."""
    torch.manual_seed(0)
    for parameter in base.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape))
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout)
    lora = Linear(base, "default", config, r=3, lora_alpha=6, fan_in_fan_out=isinstance(base, Conv1D))
    with torch.no_grad():
        lora.lora_A["default"].weight.normal_()
        lora.lora_B["default"].weight.normal_()
    return lora.double()


BASES = {
    "linear": lambda: nn.Linear(5, 7),
    "no bias": lambda: nn.Linear(5, 7, bias=False),
    "Conv1D": lambda: Conv1D(7, 5),
}


@pytest.mark.parametrize("base", BASES)
def test_as_peft(base: str) -> None:
    lora = layer(BASES[base]())
    fast = FastLora(lora, Arithmetic(torch.float64))
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, lora.lora_A["default"].weight, lora.lora_B["default"].weight]
    out, expected = fast(x), lora(x)
    assert torch.allclose(out, expected, atol=1e-12)
    upstream = torch.randn_like(out)
    for own, other in zip(*(torch.autograd.grad(each, wanted, upstream) for each in (out, expected)), strict=True):
        assert torch.allclose(own, other, atol=1e-12)


def test_dropout() -> None:
    """Under a seed the same; its gradients are those of what was kept; nothing is dropped in evaluation."""
    lora = layer(nn.Linear(5, 7), dropout=0.3).train()
    fast = FastLora(lora, Arithmetic(torch.float64))
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    state = torch.get_rng_state()

    def dropped(*_: torch.Tensor) -> torch.Tensor:
        torch.set_rng_state(state)
        return fast(x)

    assert torch.equal(dropped(), dropped())
    assert torch.autograd.gradcheck(dropped, (x, a, b))
    with torch.no_grad():
        average = sum(fast(x) for _ in range(3000)) / 3000
        lora.eval()
        exact = fast(x)
        assert torch.allclose(exact, lora(x))
        assert not torch.allclose(dropped(), average, atol=0.3) or torch.allclose(average, exact, atol=0.3)
        assert float((average - exact).abs().mean() / exact.abs().mean()) < 0.05


def test_an_input_that_needs_no_gradient() -> None:
    """The first layer's: the matrices get theirs."""
    lora = layer(nn.Linear(5, 7))
    fast = FastLora(lora, Arithmetic(torch.float64))
    x = torch.randn(4, 5, dtype=torch.float64)
    wanted = [lora.lora_A["default"].weight, lora.lora_B["default"].weight]
    for own, other in zip(*(torch.autograd.grad(each(x).sum(), wanted) for each in (fast, lora)), strict=True):
        assert torch.allclose(own, other, atol=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_without_an_adapter(base: str) -> None:
    module = BASES[base]().double().requires_grad_(False)
    fast = FastFrozen(module, Arithmetic(torch.float64))
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(fast(x), module(x), atol=1e-12)
    assert torch.autograd.gradcheck(fast, (x,))


def test_rounded_weights_give_gradients_in_float32() -> None:
    lora = layer(nn.Linear(5, 7)).float()
    x = torch.randn(4, 5, requires_grad=True)
    a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    out = FastLora(lora, Arithmetic(torch.bfloat16))(x)
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().sum(), [x, a, b])
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
    expected = torch.autograd.grad(lora(x).sum(), [x, a, b])
    for own, other in zip(gradients, expected, strict=True):
        assert float((own - other).norm() / other.norm()) < 2e-2
