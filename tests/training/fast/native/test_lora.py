"""LoRA's narrow products by the compiled kernels, against float64 on the rounded matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.fences import fenced
from tests.training.fast.native.threads import assert_same_with_threads
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


def test_the_same_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    x, y, down, up = (
        torch.randn(50, 96).bfloat16(),
        torch.randn(50, 200).bfloat16(),
        torch.randn(9, 96),
        torch.randn(200, 9),
    )

    def both() -> list[Tensor]:
        into = y.clone()
        return [add_lora(x, down, up, 0.5, into), into]

    assert_same_with_threads(both)


def test_it_stays_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: fenced(torch.zeros(shape, dtype=self.dtype)))
    for rows, into, out, rank in ((1, 2, 2, 1), (9, 30, 34, 7), (17, 64, 66, 18)):
        x, y = fenced(torch.ones(rows, into).bfloat16()), fenced(torch.ones(rows, out).bfloat16())
        narrow = add_lora(x, fenced(torch.ones(rank, into)), fenced(torch.ones(out, rank)), 1.0, y)
        assert (narrow == into).all()
        torch.testing.assert_close(y, torch.full_like(y, 1 + into * rank), rtol=2**-8, atol=0)


def test_what_it_is_for() -> None:
    """What else it would misread: it sees addresses only."""
    x, down, up, y = torch.ones(3, 4).bfloat16(), torch.ones(2, 4), torch.ones(6, 2), torch.ones(3, 6).bfloat16()
    assert can_add(x, down, up, y)
    assert can_add(x, down.T.contiguous().T, up, y)
    assert not can_add(x.float(), down, up, y)
    assert not can_add(x, down, up, y.float())
    assert not can_add(x, down.bfloat16(), up, y)
    assert not can_add(x, down, up.double(), y)
    assert not can_add(x[:, :3], down[:, :3], up, y)
    assert not can_add(x, down, up, torch.ones(6, 3).bfloat16().T)
