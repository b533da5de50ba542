"""Dropout from few random numbers."""

import pytest
import torch
from torch import nn

from training.fast.dropout import FastDropout, Masked, draw, kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_shares(rate: float, dtype: torch.dtype) -> None:
    """As many are dropped as should be, and what is left makes the mean 1."""
    torch.manual_seed(0)
    left = kept((3, 70_001), rate, torch.empty(0, dtype=dtype))
    assert (left.shape, left.dtype) == ((3, 70_001), dtype)
    assert float((left == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    assert left.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-2 if dtype == torch.bfloat16 else 1e-3)
    assert float(left.float().mean()) == pytest.approx(1, abs=0.03)


def test_places_are_independent() -> None:
    """Four of them come from one word of random bits: neighbours must not know of one another."""
    torch.manual_seed(0)
    dropped = (kept((100_000, 4), 0.5, torch.empty(0)) == 0).double()
    together = torch.corrcoef(dropped.T) - torch.eye(4)
    assert float(together.abs().max()) < 0.02
    assert dropped.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.01)


def test_under_a_seed_the_same() -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(kept((999,), 0.3, torch.empty(0)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer(compiled: bool) -> None:
    """Its gradient is that of what was left; nothing is dropped in evaluation or at a rate of zero."""
    layer = nn.Dropout(0.4)
    fast, x = FastDropout(layer, compiled=compiled), torch.randn(50, requires_grad=True)
    out = fast(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, x * gradient)
    assert 0 < int((gradient == 0).sum()) < 50
    layer.eval()
    assert fast(x) is x
    layer.train().p = 0.0
    assert fast(x) is x


def test_of_and_into_drop_the_same_places() -> None:
    x = torch.randn(7, 33)
    for compiled in (False, True):
        drop = draw(x, 0.3, compiled=compiled)
        assert drop is not None
        expected = drop.of(x)
        assert torch.equal(drop.into(x.clone()), expected)
        assert (expected == 0).any()
    assert draw(x, 0.0, compiled=True) is None
    assert isinstance(draw(x, 0.3, compiled=False), Masked)


def test_a_rate_of_one_leaves_nothing() -> None:
    for compiled in (False, True):
        drop = draw(torch.ones(9), 1.0, compiled=compiled)
        assert drop is not None
        assert not drop.of(torch.ones(9)).any()
