"""Attention by the compiled kernels against every row alone in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.fences import fenced
from tests.training.fast.models import tree_rows
from tests.training.fast.native.threads import assert_same_with_threads
from tests.training.fast.test_attention import LAYOUTS, plain
from tests.training.fast.test_attention import attend as attend_by_torch
from training.fast import attention as packed
from training.fast.attention import attending, attention
from training.fast.layout import Layout, pack
from training.fast.native.attention import attend, can_attend

pytestmark = pytest.mark.usefixtures("bf16_kernels")
CPU = torch.device("cpu")
CLOSE = 1.5
"""How much further from the exact result than torch's products in bfloat16 the kernels may be."""


def qkv(layout: Layout, heads: int = 2, kv_heads: int = 2, width: int = 64, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    tokens = layout.shared + sum(layout.lengths)
    return [torch.randn(n, tokens, width).bfloat16().requires_grad_() for n in (heads, kv_heads, kv_heads)]


def results(inputs: list[Tensor], layout: Layout, upstream: Tensor, way: Any) -> list[Tensor]:
    """(output, gradients of queries, keys and values), as ``[heads, tokens, width]`` float64."""
    out = way(*inputs, layout)
    return [
        out.detach().double(),
        *(part.double() for part in torch.autograd.grad(out, inputs, upstream.to(out.dtype))),
    ]


def assert_as_close_as_torch(inputs: list[Tensor], layout: Layout, window: int | None = None) -> None:
    exact = [part.detach().double().requires_grad_() for part in inputs]
    upstream = torch.randn(inputs[0].shape, dtype=torch.float64).bfloat16()
    scale = inputs[0].shape[-1] ** -0.5
    expected = results(exact, layout, upstream, lambda q, k, v, of: plain(q, k, v, of, window))
    torchs = results(inputs, layout, upstream, lambda *args: attend_by_torch(*args, sliding_window=window))
    own = results(inputs, layout, upstream, lambda q, k, v, of: attend(q, k, v, of, scale, window).transpose(0, 1))
    for name, mine, other, right in zip(("out", "dq", "dk", "dv"), own, torchs, expected, strict=True):
        assert mine.isfinite().all()
        allowed = CLOSE * float((other - right).norm()) + 1e-3 * float(right.norm()) + 1e-9
        assert float((mine - right).norm()) <= allowed, name


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].causal])
def test_every_row_alone(name: str, window: int | None) -> None:
    assert_as_close_as_torch(qkv(LAYOUTS[name], heads=4, kv_heads=2), LAYOUTS[name], window)


@pytest.mark.parametrize("lengths", [(5, 1, 3), (64, 65, 129), (200,)])
def test_both_ways(lengths: tuple[int, ...]) -> None:
    layout = Layout(0, lengths, False, CPU)
    assert_as_close_as_torch(qkv(layout, heads=4, kv_heads=2), layout)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    most=st.sampled_from([9, 40, 150]),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    width=st.sampled_from([4, 7, 32, 33, 64, 80, 256]),
    window=st.sampled_from([None, 5, 70]),
)
def test_trees(seed: int, most: int, kv_heads: int, group: int, width: int, window: int | None) -> None:
    """Of rows longer than a block, behind branches longer than a block; any heads and widths."""
    layout = pack(tree_rows(6, seed, most=most), causal=True, share=True, device=CPU).layout
    assert_as_close_as_torch(qkv(layout, kv_heads * group, kv_heads, width, seed), layout, window)


@pytest.mark.parametrize("name", ["mixed", "a tree of long rows"])
def test_it_stays_within_its_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS[name]
    inputs = [fenced(part.detach()).requires_grad_() for part in qkv(layout, width=33)]
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: fenced(torch.zeros(shape, dtype=self.dtype)))
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device: fenced(torch.zeros(shape, dtype=dtype)))
    out = attend(*inputs, layout, 0.2, None)
    upstream = fenced(torch.ones(out.shape, dtype=out.dtype))
    assert all(part.isfinite().all() for part in (out, *torch.autograd.grad(out, inputs, upstream)))
    with torch.no_grad():  # and without the numbers for the backward pass
        assert torch.equal(attend(*inputs, layout, 0.2, None), out)


def test_heads_of_one_tensor() -> None:
    """Queries, keys and values as the parts of one product's output, as most models have them."""
    layout = LAYOUTS["mixed"]
    whole = torch.randn(layout.shared + sum(layout.lengths), 3, 2, 64).bfloat16().requires_grad_()
    parts = [whole[:, index].transpose(0, 1) for index in range(3)]
    found = attend(*parts, layout, 0.125, None)
    expected = attend(*(part.contiguous() for part in parts), layout, 0.125, None)
    assert torch.equal(found, expected)
    both = [torch.autograd.grad(each, whole, torch.ones_like(each))[0] for each in (found, expected)]
    assert torch.equal(*both)


def test_the_same_with_any_number_of_threads() -> None:
    layout = LAYOUTS["a tree of long rows"]
    inputs = qkv(layout, heads=6)

    def results_of() -> list[Tensor]:
        out = attend(*inputs, layout, 0.125, None)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    assert_same_with_threads(results_of)


@pytest.mark.parametrize("compiled", [True, False])
def test_who_computes(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels where they are wanted; they are for bfloat16, and heads they have room for."""
    called = []
    monkeypatch.setattr(packed, "attend", lambda *args: called.append(args) or attend(*args))
    layout = LAYOUTS["mixed"]
    inputs = [part[None] for part in qkv(layout)]
    with attending(layout, compiled=compiled):
        attention(torch.nn.Identity(), *inputs, None)
    assert len(called) == compiled


def test_what_they_are_for() -> None:
    """What else they would misread: they see addresses only."""
    layout = LAYOUTS["mixed"]
    q, k, v = qkv(layout, heads=4, kv_heads=2)
    assert can_attend(q, k, v, layout, 0.0, None)
    assert can_attend(q, k, v, layout, 0.0, 3)
    assert can_attend(q, k, v, layout, 0.1, None)
    assert not can_attend(q, k, v, layout, 1.0, None)
    for wrong in (
        (q.float(), k, v), (q, k, v.float()), (q[:3], k, v), (q, k, v[:1]), (q, k, v[..., :32]),
        (q, k[:, 1:], v[:, 1:]), tuple(part[:, 1:] for part in (q, k, v)),
        tuple(part.repeat(1, 1, 5) for part in (q, k, v)),
    ):  # fmt: skip
        assert not can_attend(*wrong, layout, 0.0, None)
    both_ways = LAYOUTS["both ways"]
    assert can_attend(*qkv(both_ways), both_ways, 0.0, None)
    assert not can_attend(*qkv(both_ways), both_ways, 0.0, 3)
