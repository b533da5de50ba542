"""The likeliest token by the kernel: as torch says, the first of equals, and none where a value is not finite."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.kernels import Kernels, choose_kernels
from service.engine.sampler import greedy

CPU = torch.device("cpu")
VALUES = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 1e-40, 0.5, 2.0, 2.0, 3e38])
WILD = st.sampled_from([torch.nan, -torch.nan, torch.inf, -torch.inf])


def kernels(dtype: torch.dtype) -> Kernels:
    return choose_kernels("native", dtype, CPU, slots=1, max_rank=8)


def first_of_equals(row: list[float]) -> int | None:
    values = torch.tensor(row, dtype=torch.bfloat16)
    if not values.isfinite().all():
        return None
    return values.tolist().index(max(values.tolist()))


@given(st.integers(1, 70).flatmap(lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_the_first_of_the_largest(dtype: torch.dtype, rows: list[list[float]]) -> None:
    assert kernels(dtype).argmax(torch.tensor(rows, dtype=dtype)) == [first_of_equals(row) for row in rows]


@given(st.integers(1, 70), st.data())
def test_a_value_that_is_not_finite_anywhere(dtype: torch.dtype, n: int, data: st.DataObject) -> None:
    rows = torch.randn(3, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    rows[1, data.draw(st.integers(0, n - 1))] = data.draw(WILD)
    found = kernels(dtype).argmax(rows)
    assert found[1] is None
    assert [found[0], found[2]] == [int(rows[0].argmax()), int(rows[2].argmax())]


def test_a_whole_vocabulary_and_views_of_it(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 3 * 32003, generator=torch.Generator().manual_seed(0)).to(dtype)
    for view in (logits[:, :32003], logits[1:3, ::3], logits[:1], logits[:0, :10]):
        assert kernels(dtype).argmax(view) == greedy(view)


@pytest.mark.parametrize("wider", [torch.float32, torch.float64])
def test_logits_that_the_model_has_widened(dtype: torch.dtype, wider: torch.dtype) -> None:
    """Some architectures compute the last steps to their logits in float32 whatever the base's type."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(wider)
    assert kernels(dtype).argmax(logits) == greedy(logits)
