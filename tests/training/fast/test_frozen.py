"""Products with weights that are not trained, packed or not."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from training.fast import frozen
from training.fast.frozen import FrozenWeight

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(33, 70),
    "no bias": lambda: nn.Linear(33, 70, bias=False),
    "Conv1D": lambda: Conv1D(70, 33),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[name]().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return layer


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 150])
@pytest.mark.parametrize("name", LAYERS)
def test_both_products(name: str, rows: int, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each type as near to the layer's own as the type is; whatever the number of rows it was packed for."""
    monkeypatch.setattr(frozen, "CAN_PACK", packs and frozen.CAN_PACK)
    layer = made(name)
    weight = FrozenWeight(layer, {torch.bfloat16})
    weight.product(torch.randn(7, 33), torch.bfloat16)
    x, dy = torch.randn(rows, 33, requires_grad=True), torch.randn(rows, 70)
    out = layer(x)
    (dx,), expected = torch.autograd.grad(out, x, dy), out.detach()
    for dtype, near in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        y, back = weight.product(x.detach(), dtype), weight.back(dy, dtype)
        assert y.dtype == back.dtype == dtype
        assert float((y - expected).norm() / expected.norm()) < near
        assert float((back - dx).norm() / dx.norm()) < near
    assert weight.width == 70


def test_float32_is_the_layers_own_memory() -> None:
    layer = made("linear")
    weight = FrozenWeight(layer)
    before = weight.product(torch.ones(1, 33), torch.float32)
    layer.weight.zero_()
    assert torch.equal(weight.product(torch.ones(1, 33), torch.float32)[0], layer.bias)
    assert not torch.equal(before[0], layer.bias)


def test_float32_is_packed_where_it_is_asked_for() -> None:
    """Then it is a copy."""
    layer = made("Conv1D")
    weight, x, dy = FrozenWeight(layer, {torch.float32}), torch.randn(90, 33), torch.randn(90, 70)
    torch.testing.assert_close(weight.product(x, torch.float32), layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.back(dy, torch.float32), dy @ layer.weight.T, rtol=1e-5, atol=1e-5)
    before = weight.product(x, torch.float32)
    layer.weight.zero_()
    assert torch.equal(weight.product(x, torch.float32), before) == frozen.CAN_PACK


def test_only_small_bases_are_packed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small for all processes of the machine together."""
    needed = 2 * 4 * 1000 * frozen.SHARE
    for processes, available, small in (("1", needed, True), ("1", needed - 1, False), ("2", needed, False)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        monkeypatch.setattr(frozen, "memory", lambda available=available: available)
        assert frozen.is_small(1000) == small


def test_memory_is_that_of_the_machine() -> None:
    assert 2**28 < frozen.memory() < 2**50


def test_rows_that_are_not_contiguous() -> None:
    """Gradients come as views."""
    weight = FrozenWeight(made("linear"), {torch.bfloat16})
    wide = torch.randn(20, 140)
    for part in (wide[:, :70], wide[::2, 70:]):
        expected = weight.back(part.clone(memory_format=torch.contiguous_format), torch.bfloat16)
        assert torch.equal(weight.back(part, torch.bfloat16), expected)
        rounded = part.bfloat16()[:, :33]
        assert torch.equal(
            weight.product(rounded, torch.bfloat16), weight.product(rounded.contiguous(), torch.bfloat16)
        )
