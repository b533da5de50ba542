"""Attention of packed rows against every row alone, written plainly; the backward pass against finite differences."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.fast.models import tree_rows
from training.fast import attention as packed
from training.fast import layout as layouts
from training.fast.attention import UnsupportedAttentionError, attending, attention
from training.fast.layout import Layout, pack

CPU = torch.device("cpu")


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, **settings: Any) -> Tensor:
    """``[heads, tokens, width]`` in and out."""
    with attending(layout):
        out, _ = attention(nn.Identity(), q[None], k[None], v[None], None, **settings)
    return out[0].transpose(0, 1)


def plain(q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None = None) -> Tensor:
    """Each row by itself, its beginning in front of it."""
    out = torch.zeros_like(q)
    k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
    for row, length in enumerate(layout.lengths):
        whole = layout.shared + len(layout.branch(row)) + length
        places = torch.tensor([layout.place(row, position) for position in range(whole)])
        scores = q[:, places] @ k[:, places].transpose(1, 2) / q.shape[-1] ** 0.5
        back = torch.arange(len(places))[:, None] - torch.arange(len(places))
        hidden = torch.zeros_like(back, dtype=torch.bool)
        if layout.causal:
            hidden |= back < 0
        if window is not None:
            hidden |= back >= window
        out = out.index_copy(1, places, scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, places])
    return out


def qkv(layout: Layout, heads: int = 2, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    tokens = layout.shared + sum(layout.lengths)
    return [torch.randn(n, tokens, 4, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


LAYOUTS = {
    "mixed": Layout(3, (1, 4, 2, 7), True, CPU),
    "equal": Layout(2, (3, 3, 3), True, CPU),
    "nothing shared": Layout(0, (5, 2), True, CPU),
    "a single row": Layout(0, (6,), True, CPU),
    "a tree": pack(tree_rows(9, 0), causal=True, share=True, device=CPU).layout,
    "a tree of long rows": pack(tree_rows(9, 1, most=60), causal=True, share=True, device=CPU).layout,
    "a tree without a trunk": Layout(0, (4, 3, 0, 2), True, CPU, ((), (0, 1), (0, 1, 4), (0, 1, 4, 5))),
    "both ways": Layout(0, (5, 1, 3), False, CPU),
    "both ways, equal": Layout(0, (4, 4), False, CPU),
    "both ways, long": Layout(0, (40, 40, 40), False, CPU),
}


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_row_alone(name: str, window: int | None, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute it: written out, and torch's for long rows."""
    monkeypatch.setattr(packed, "LONGEST", 0 if long else 768)
    layout = LAYOUTS[name]
    inputs = qkv(layout, heads=4, kv_heads=2)
    out, expected = attend(*inputs, layout, sliding_window=window), plain(*inputs, layout, window)
    assert torch.allclose(out, expected, atol=1e-10)
    upstream = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(each, inputs, upstream) for each in (out, expected))
    for own, other in zip(found, wanted, strict=True):
        assert torch.allclose(own, other, atol=1e-10)


@pytest.mark.parametrize("name", ["mixed", "both ways", "a tree without a trunk"])
def test_gradcheck(name: str) -> None:
    layout = LAYOUTS[name]
    assert torch.autograd.gradcheck(lambda *inputs: attend(*inputs, layout), qkv(layout))


@pytest.mark.parametrize("name", ["mixed", "a tree"])
def test_rows_that_do_not_fit_one_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there are several groups, and all of them add to the gradients of trunk and branches."""
    monkeypatch.setattr(layouts, "SCORES", 60)
    layout = replace(LAYOUTS[name])
    assert len(layout.groups) > 2
    inputs = qkv(layout)
    out, expected = attend(*inputs, layout), plain(*inputs, layout)
    assert torch.allclose(out, expected, atol=1e-10)
    for own, other in zip(*(torch.autograd.grad(each.square().sum(), inputs) for each in (out, expected)), strict=True):
        assert torch.allclose(own, other, atol=1e-10)


def test_the_scale_is_the_architectures() -> None:
    layout = LAYOUTS["mixed"]
    q, k, v = qkv(layout)
    assert torch.allclose(attend(q, k, v, layout, scaling=0.1), plain(q * 0.2, k, v, layout), atol=1e-10)


def test_dropout() -> None:
    """Under a seed the same, gradients of the very shares that were dropped, and right on average."""
    layout = Layout(2, (3, 4), True, CPU)
    q, k, v = qkv(layout)
    state = torch.get_rng_state()

    def dropped(*inputs: Tensor) -> Tensor:
        torch.set_rng_state(state)
        return attend(*inputs, layout, dropout=0.4)

    assert torch.equal(dropped(q, k, v), dropped(q, k, v))
    assert not torch.allclose(dropped(q, k, v), plain(q, k, v, layout))
    assert torch.autograd.gradcheck(dropped, (q, k, v))
    with torch.no_grad():
        average = sum(attend(q, k, v, layout, dropout=0.4) for _ in range(2000)) / 2000
    assert torch.allclose(average, plain(q, k, v, layout), atol=0.15)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "head_mask"])
def test_what_it_does_not_compute_is_refused(name: str) -> None:
    layout = LAYOUTS["mixed"]
    with pytest.raises(UnsupportedAttentionError, match=f"Identity attends with {name}"):
        attend(*qkv(layout), layout, **{name: 1.0})


def test_no_layout_outside() -> None:
    layout = LAYOUTS["mixed"]
    attend(*qkv(layout), layout)
    with pytest.raises(LookupError):
        attention(nn.Identity(), *(part[None] for part in qkv(layout)), None)
