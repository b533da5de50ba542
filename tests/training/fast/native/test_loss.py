"""Cross-entropy by the compiled kernels against torch's in float64."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.support.fences import fenced
from training.fast.native.loss import can_compute, losses

pytestmark = pytest.mark.usefixtures("bf16_kernels")


@pytest.mark.parametrize("spread", [0.01, 3, 300])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000])
def test_loss_and_gradient(n: int, spread: float) -> None:
    torch.manual_seed(n)
    logits = fenced((torch.randn(5, n) * spread).bfloat16())
    targets, weights = torch.randint(n, (5,)), torch.rand(5)
    exact = logits.double().requires_grad_()
    expected = (cross_entropy(exact, targets, reduction="none") * weights.double()).sum()
    before = logits.clone()
    torch.testing.assert_close(losses(logits, targets, weights, turn=False).double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, before)
    torch.testing.assert_close(losses(logits, targets, weights, turn=True).double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(logits.double(), gradient, rtol=2**-8, atol=1e-7)


def test_a_target_that_is_nearly_certain() -> None:
    """Its gradient is small, and not lost in the rounding of its share to one."""
    logits = torch.tensor([[12.0, 0, 0, 0]]).bfloat16()
    losses(logits, torch.tensor([0]), torch.ones(1), turn=True)
    assert float(logits[0, 0]) == pytest.approx(-3 * math.exp(-12), rel=0.05)


@pytest.mark.parametrize("wild", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(wild: float) -> None:
    logits = torch.zeros(2, 40).bfloat16()
    logits[0, 33] = wild
    assert not losses(logits[:1], torch.tensor([3]), torch.ones(1), turn=False).isfinite()
    assert losses(logits[1:], torch.tensor([3]), torch.ones(1), turn=False).isfinite()


def test_what_it_is_for() -> None:
    assert can_compute(torch.ones(1, 2).bfloat16())
    assert not can_compute(torch.ones(1, 2))
