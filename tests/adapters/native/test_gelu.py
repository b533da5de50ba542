"""GELU by the compiled kernels: as torch computes it in float64, whatever the number."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu
from transformers.activations import ACT2FN

from adapters.native import library
from adapters.native.gelu import NativeGelu, native_activation
from tests.support.fences import fenced

pytestmark = pytest.mark.usefixtures("bf16_kernels")
EVERY = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16)
"""All numbers of the type."""
CLOSE = {"rtol": 2**-8, "atol": 3e-7}
"""A unit of the last place, and what the approximation may be off by where the result is next to nothing."""


@pytest.mark.parametrize("way", ["none", "tanh"])
def test_every_number(way: str) -> None:
    x = EVERY[EVERY.isfinite()]
    torch.testing.assert_close(NativeGelu(way)(x).double(), gelu(x.double(), approximate=way), **CLOSE)
    assert NativeGelu(way)(torch.tensor([torch.inf]).bfloat16()).tolist() == [torch.inf]
    assert NativeGelu(way)(EVERY[EVERY.isnan()]).isnan().all()


@pytest.mark.parametrize("way", ["none", "tanh"])
def test_every_gradient(way: str) -> None:
    x = EVERY[EVERY.isfinite()].clone().requires_grad_()
    exact = x.detach().double().requires_grad_()
    upstream = torch.linspace(-2, 2, len(x)).bfloat16()
    (own,) = torch.autograd.grad(NativeGelu(way)(x), x, upstream)
    (expected,) = torch.autograd.grad(gelu(exact, approximate=way), exact, upstream.double())
    torch.testing.assert_close(own.double(), expected, rtol=2**-8, atol=1e-6)


def test_any_shape_and_layout() -> None:
    x = torch.randn(6, 5, 7).bfloat16()
    for part in (x, x.transpose(0, 2), x[:, 1:4, ::2], x[:0], x[0, 0, 0]):
        torch.testing.assert_close(NativeGelu()(part), gelu(part), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 4095, 4096, 4097, 9000])
def test_it_stays_within_its_memory(count: int) -> None:
    x, dy, y = (fenced(torch.ones(count, dtype=torch.bfloat16)) for _ in range(3))
    kernel = library.function("tenora_gelu", torch.bfloat16)
    for upstream in (None, dy.data_ptr()):
        kernel(x.data_ptr(), upstream, y.data_ptr(), count, 1, 2)
        assert (y == y[0]).all()


def test_other_types_are_torchs() -> None:
    x = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert torch.equal(NativeGelu("tanh")(x), gelu(x, approximate="tanh"))
    assert torch.autograd.gradcheck(NativeGelu(), (x,))


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_whose_place_it_takes(name: str) -> None:
    found, x = native_activation(ACT2FN[name]), torch.randn(99)
    assert isinstance(found, NativeGelu)
    torch.testing.assert_close(found(x), ACT2FN[name](x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("module", [ACT2FN["quick_gelu"], ACT2FN["silu"], nn.Linear(2, 2)], ids=repr)
def test_others_are_left_alone(module: nn.Module) -> None:
    assert native_activation(module) is None
    assert isinstance(native_activation(nn.GELU("tanh")), NativeGelu)


def test_none_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "supports", lambda dtype: False)
    assert native_activation(nn.GELU()) is None
