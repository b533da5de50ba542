"""Dropout by the compiled kernels: of tensors, and attention's against the same places dropped in float64."""

import pytest
import torch
from torch import Tensor

from tests.support.fences import fenced
from tests.training.fast.models import tree_rows
from tests.training.fast.native.threads import assert_same_with_threads
from training.fast.layout import Layout, pack
from training.fast.native.attention import attend, can_attend
from training.fast.native.dropout import Counted, can_drop

pytestmark = pytest.mark.usefixtures("bf16_kernels")
CPU = torch.device("cpu")
RATE, SCALE = 0.3, 0.2
TREE = pack(tree_rows(6, 0, most=90), causal=True, share=True, device=CPU).layout
LAYOUTS = {
    "a tree": TREE,
    "both ways": Layout(0, (5, 130, 64, 1), False, CPU),
    "one after the other": Layout(0, (70, 9), True, CPU),
}


def qkv(layout: Layout, width: int = 64, heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    tokens = layout.shared + sum(layout.lengths)
    return [torch.randn(n, tokens, width).bfloat16().requires_grad_() for n in (heads, kv_heads, kv_heads)]


def seen_by(layout: Layout) -> Tensor:
    """``[tokens, tokens]``: whose key a token's query sees, from the rows themselves."""
    tokens = layout.shared + sum(layout.lengths)
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    seen[: layout.shared, : layout.shared] = torch.ones(layout.shared, layout.shared).tril().bool()
    for row, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        front = [*range(layout.shared), *layout.branch(row)]
        own = range(start, start + length)
        for place, token in enumerate(own):
            seen[token, [*front, *(own[: place + 1] if layout.causal else own)]] = True
    return seen


def places(layout: Layout, seed: int, heads: int = 4, rate: float = RATE) -> Tensor:
    """``[heads, tokens, tokens]``: what each share is multiplied with, asked of the kernels.

    All scores are zero and a value says whose it is, so an output is a query's shares, and shares are all the same.
    """
    tokens, seen = layout.shared + sum(layout.lengths), seen_by(layout)
    found = torch.zeros(heads, tokens, tokens)
    zero = torch.zeros(heads, tokens, 64, dtype=torch.bfloat16)
    for first in range(0, tokens, 64):
        value = torch.zeros(heads, tokens, 64, dtype=torch.bfloat16)
        part = range(first, min(first + 64, tokens))
        value[:, part, range(len(part))] = 1
        torch.manual_seed(seed)
        out = attend(zero, zero, value, layout, SCALE, None, rate).transpose(0, 1).float()
        found[:, :, part] = out[:, :, : len(part)]
    return found * seen.sum(1)[:, None]


@pytest.mark.parametrize("name", LAYOUTS)
def test_kept_shares_are_scaled_and_as_many_as_the_rate_leaves(name: str) -> None:
    layout = LAYOUTS[name]
    seen = seen_by(layout)
    factors = places(layout, seed=1)
    assert not factors[:, ~seen].any()
    of_seen = factors[:, seen]
    kept = of_seen != 0
    torch.testing.assert_close(of_seen[kept], torch.full((int(kept.sum()),), 1 / (1 - RATE)), rtol=1e-2, atol=0)
    count = of_seen.numel()
    assert abs(float(kept.double().mean()) - (1 - RATE)) < 5 * (RATE * (1 - RATE) / count) ** 0.5
    # Neither heads nor neighbours nor seeds go together.
    for one, other in ((kept[0], kept[1]), (kept[:, 1:], kept[:, :-1]), (kept, places(layout, 2)[:, seen] != 0)):
        both = float((one & other).double().mean())
        assert abs(both - (1 - RATE) ** 2) < 6 * (0.25 / one.numel()) ** 0.5


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_and_gradients(name: str) -> None:
    """Those of softmax, the same places dropped, and the product, written out in float64."""
    layout = LAYOUTS[name]
    inputs = qkv(layout)
    factors, seen = places(layout, seed=3), seen_by(layout)
    factors = (factors != 0) / (1 - RATE)
    upstream = torch.randn(inputs[0].shape).bfloat16()
    torch.manual_seed(3)
    out = attend(*inputs, layout, SCALE, None, RATE).transpose(0, 1)
    found = [out.detach(), *torch.autograd.grad(out, inputs, upstream)]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    key, value = (part.repeat_interleave(2, 0) for part in exact[1:])
    scores = (exact[0] @ key.transpose(1, 2) * SCALE).masked_fill(~seen, -torch.inf)
    expected_out = (scores.softmax(-1) * factors.double()) @ value
    expected = [expected_out.detach(), *torch.autograd.grad(expected_out, exact, upstream.double())]
    for what, mine, right in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert float((mine.double() - right).norm() / right.norm()) < 1e-2, what


def test_the_seed_decides_and_threads_do_not() -> None:
    inputs = qkv(TREE)

    def of(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        out = attend(*inputs, TREE, SCALE, None, RATE)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    assert_same_with_threads(lambda: of(1))
    assert all(torch.equal(one, again) for one, again in zip(of(1), of(1), strict=True))
    assert not torch.equal(of(1)[0], of(2)[0])
    # One number of torch's generator a call, and none where nothing is dropped.
    torch.manual_seed(1)
    attend(*inputs, TREE, SCALE, None, 0.0)
    assert torch.equal(attend(*inputs, TREE, SCALE, None, RATE), of(1)[0])


@pytest.mark.parametrize("rate", [1e-12, 0.5, 1 - 1e-12])
def test_rates_at_the_borders(rate: float) -> None:
    layout = LAYOUTS["one after the other"]
    kept = places(layout, seed=5, rate=rate)[:, seen_by(layout)] != 0
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=0.03)
    assert not can_attend(*qkv(layout), layout, 1.0, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_tensors(rate: float, dtype: torch.dtype) -> None:
    """Longer than a part that has one seed; as many dropped as should be, neighbours and parts apart."""
    torch.manual_seed(0)
    ones = torch.ones(3, 70_001, dtype=dtype)
    left = Counted(rate).of(ones)
    assert (left.shape, left.dtype) == (ones.shape, dtype)
    dropped = (left == 0).double().flatten()
    assert float(dropped.mean()) == pytest.approx(rate, abs=5 * (rate * (1 - rate) / dropped.numel()) ** 0.5)
    assert left.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    for away in (1, 2, 16, 65_536):
        together = torch.corrcoef(torch.stack((dropped[:-away], dropped[away:])))[0, 1]
        assert abs(float(together)) < 0.02


@pytest.mark.parametrize("count", [1, 15, 16, 17, 65_537])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_any_size_stay_within_their_memory(dtype: torch.dtype, count: int) -> None:
    x = fenced(torch.randn(count).to(dtype))
    drop = Counted(0.5)
    expected = drop.of(x.clone())
    for before in (False, True):
        assert torch.equal(drop.into(fenced(x, before=before)), expected)
    assert set((expected != 0).tolist()) <= {True, False}
    kept = expected != 0
    torch.testing.assert_close(expected[kept], (x * 2)[kept])


def test_tensors_with_gaps_and_threads() -> None:
    x = torch.randn(300, 800)
    drop = Counted(0.3)
    assert torch.equal(drop.of(x.T), drop.of(x.T.contiguous()))
    with pytest.raises(AssertionError):
        drop.into(x.T)
    assert_same_with_threads(lambda: [drop.of(x)])
    assert can_drop(x)
    assert not can_drop(x.double())
    torch.manual_seed(4)
    first, second = Counted(0.3).of(x), Counted(0.3).of(x)
    torch.manual_seed(4)
    assert torch.equal(Counted(0.3).of(x), first)
    assert not torch.equal(first, second)
