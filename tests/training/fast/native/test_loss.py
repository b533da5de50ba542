"""Cross-entropy by the compiled kernels against torch's in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.support.fences import fenced
from tests.training.fast.native.threads import assert_same_with_threads
from training.fast.native.loss import can_compute, total_loss

pytestmark = pytest.mark.usefixtures("bf16_kernels")


@pytest.mark.parametrize("spread", [0.01, 3, 300])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000])
def test_loss_and_gradient(n: int, spread: float) -> None:
    torch.manual_seed(n)
    logits = fenced((torch.randn(5, n) * spread).bfloat16())
    targets, weights = fenced(torch.randint(n, (5,))), fenced(torch.rand(5))
    exact = logits.double().requires_grad_()
    expected = (cross_entropy(exact, targets, reduction="none") * weights.double()).sum()
    before = logits.clone()
    found = total_loss(logits, targets, weights, turn=False)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, before)
    assert torch.equal(total_loss(logits, targets, weights, turn=True), found)
    (gradient,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(logits.double(), gradient, rtol=2**-8, atol=1e-7)


def test_a_target_that_is_nearly_certain() -> None:
    """Its gradient is small, and not lost in the rounding of its share to one."""
    logits = torch.tensor([[12.0, 0, 0, 0]]).bfloat16()
    total_loss(logits, torch.tensor([0]), torch.ones(1), turn=True)
    assert float(logits[0, 0]) == pytest.approx(-3 * math.exp(-12), rel=0.05)


@pytest.mark.parametrize("wild", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(wild: float) -> None:
    logits = torch.zeros(2, 40).bfloat16()
    logits[0, 33] = wild
    assert not total_loss(logits[:1], torch.tensor([3]), torch.ones(1), turn=False).isfinite()
    assert total_loss(logits[1:], torch.tensor([3]), torch.ones(1), turn=False).isfinite()


def test_what_it_is_for() -> None:
    assert can_compute(torch.ones(1, 2).bfloat16())
    assert not can_compute(torch.ones(1, 2))
    assert not can_compute(torch.ones(2, 3).bfloat16().T)


@pytest.mark.parametrize("target", [-1, 40])
def test_a_token_that_is_not_in_the_vocabulary(target: int) -> None:
    logits = torch.zeros(2, 40).bfloat16()
    with pytest.raises(IndexError, match=f"{target}.*logits for 40"):
        total_loss(logits, torch.tensor([3, target]), torch.ones(2), turn=True)
    assert not logits.any()


def test_the_same_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(7, 500).bfloat16(), torch.randint(500, (7,)), torch.rand(7)

    def both() -> list[Tensor]:
        turned = logits.clone()
        return [total_loss(turned, targets.int(), weights, turn=True), turned]

    assert_same_with_threads(both)
