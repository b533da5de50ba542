"""LoRA's narrow products by the compiled kernels, against float64 on the rounded matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fences import fenced
from training.fast.native.lora import add_lora, can_add

pytestmark = pytest.mark.usefixtures("bf16_kernels")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    into=st.integers(1, 60).map(lambda half: 2 * half),
    out=st.integers(1, 60).map(lambda half: 2 * half),
    rank=st.sampled_from([1, 2, 7, 8, 16, 17, 40]),
    turned=st.booleans(),
    first=st.booleans(),
    seed=st.integers(0, 9),
)
def test_both_products(rows: int, into: int, out: int, rank: int, turned: bool, first: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(rows, into).bfloat16(), torch.randn(rows, out).bfloat16()
    down = torch.randn(into, rank).T if turned else torch.randn(rank, into)
    up = torch.randn(rank, out).T if turned else torch.randn(out, rank)
    x, found = fenced(x), fenced(y)
    narrow = add_lora(x, down, up, 0.5, found, scale_first=first)
    expected_narrow = x.double() @ down.bfloat16().double().T * (0.5 if first else 1)
    torch.testing.assert_close(narrow.double(), expected_narrow, rtol=2**-7, atol=2**-7)
    expected = y.double() + narrow.double() @ up.bfloat16().double().T * (1 if first else 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-7)


def test_what_it_is_for() -> None:
    x, y = torch.ones(3, 4).bfloat16(), torch.ones(3, 6).bfloat16()
    assert can_add(x, y)
    assert not can_add(x.float(), y)
    assert not can_add(x, y.float())
    assert not can_add(x[:, :3], y)
    assert not can_add(x, y[:, :5])
