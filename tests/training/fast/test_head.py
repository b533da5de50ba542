"""Cross-entropy through a frozen output layer, against torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.fast import head
from training.fast.frozen import FrozenWeight

ROWS, HIDDEN, WORDS = 11, 6, 17


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(ROWS, HIDDEN, dtype=dtype, requires_grad=True),
        torch.randn(WORDS, HIDDEN, dtype=dtype),
        torch.randn(WORDS, dtype=dtype),
        torch.randint(0, WORDS, (ROWS,)),
        torch.rand(ROWS, dtype=dtype) * 2,
    )


def cross_entropy(
    hidden: Tensor, projection: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, dtype: Any = None
) -> Tensor:
    """Ours through a layer of these weights."""
    layer = nn.Linear(projection.shape[1], projection.shape[0], bias=bias is not None, dtype=projection.dtype)
    layer.requires_grad_(False)
    layer.weight.copy_(projection)
    if bias is not None:
        layer.bias.copy_(bias)
    return head.cross_entropy(hidden, FrozenWeight(layer), dtype or projection.dtype, targets, weights)


def plain(hidden: Tensor, projection: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor) -> Tensor:
    each = functional.cross_entropy(functional.linear(hidden, projection, bias), targets, reduction="none")
    return (each * weights).sum()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, ROWS - 1, ROWS, ROWS + 1])
def test_loss_and_gradient(chunk: int, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the chunks end."""
    monkeypatch.setattr(head, "CHUNK", chunk)
    hidden, projection, bias, targets, weights = inputs()
    arguments = (hidden, projection, bias if biased else None, targets, weights)
    loss, expected = cross_entropy(*arguments), plain(*arguments)
    assert torch.allclose(loss, expected, rtol=1e-10)
    # A loss that is divided afterwards scales the gradient that was computed before.
    (found,), (wanted,) = torch.autograd.grad(loss / 3, hidden), torch.autograd.grad(expected / 3, hidden)
    assert torch.allclose(found, wanted, atol=1e-10)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 4)
    hidden, projection, bias, targets, weights = inputs()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, projection, bias, targets, weights), (hidden,))


def test_a_weight_of_zero_counts_nothing() -> None:
    hidden, projection, bias, targets, weights = inputs()
    weights = weights.clone()
    weights[3] = 0
    (gradient,) = torch.autograd.grad(cross_entropy(hidden, projection, bias, targets, weights), hidden)
    assert not gradient[3].any()
    assert gradient[2].any()


def test_rounded_products() -> None:
    """The output layer in bfloat16: the loss is float32, the gradient has the type of the hidden states."""
    hidden, projection, bias, targets, weights = inputs(torch.float32)
    loss = cross_entropy(hidden, projection, bias, targets, weights, torch.bfloat16)
    assert loss.dtype == torch.float32
    expected = plain(hidden, projection, bias, targets, weights)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=2e-2)
    (found,), (wanted,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden)
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < 2e-2


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    hidden, *others = inputs()
    with torch.no_grad():
        assert cross_entropy(hidden, *others).grad_fn is None
    assert not cross_entropy(hidden.detach(), *others).requires_grad


def test_very_unlikely_targets_stay_finite() -> None:
    hidden = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    loss = cross_entropy(hidden, torch.eye(2), None, torch.tensor([1]), torch.ones(1))
    assert float(loss.detach()) == 1000
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.tolist() == [[1, -1]]
