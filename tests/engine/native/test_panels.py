"""The layout of matrices: what is packed comes back, and lies where kernels.c says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.native.panels import PANEL, pack, pack_all, unpack

pytestmark = pytest.mark.usefixtures("compiled")
SIZE = st.integers(1, 70)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def packed_size(n: int, k: int, dtype: torch.dtype) -> int:
    step = 4 // dtype.itemsize
    return (-(-n // PANEL) * PANEL if dtype == torch.float32 else n) * -(-k // step) * step


@given(SIZE, SIZE, DTYPES)
def test_what_is_packed_comes_back(n: int, k: int, dtype: torch.dtype) -> None:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n * k)).to(dtype)
    panels = pack(weight)
    assert panels.shape == (packed_size(n, k, dtype),)
    assert panels.dtype == dtype
    assert torch.equal(unpack(panels, n, k), weight)


@given(SIZE, SIZE, DTYPES)
def test_a_panel_holds_sixteen_rows_side_by_side(n: int, k: int, dtype: torch.dtype) -> None:
    """Units of four bytes: one float32, or two neighbours of a row in bfloat16; what is missing is zero."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n * k)).to(dtype)
    step = 4 // dtype.itemsize
    depth, panels, offset = -(-k // step), pack(weight), 0
    for first in range(0, n, PANEL):
        rows = weight[first : first + PANEL]
        width = PANEL if dtype == torch.float32 else len(rows)
        want = torch.zeros(width, depth * step, dtype=dtype)
        want[: len(rows), :k] = rows
        found = panels[offset : offset + width * depth * step].view(depth, width, step)
        assert torch.equal(found, want.view(width, depth, step).transpose(0, 1))
        offset += found.numel()
    assert offset == len(panels)


@given(SIZE, SIZE, DTYPES, st.sampled_from(["transposed", "strided"]))
def test_any_view_is_packed_where_it_is_told_and_nowhere_else(n: int, k: int, dtype: torch.dtype, view: str) -> None:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n * k)).to(dtype)
    seen = weight.T.contiguous().T if view == "transposed" else weight.repeat_interleave(2, 1)[:, ::2]
    buffer = torch.full((packed_size(n, k, dtype) + 20,), 7.0, dtype=dtype)
    into = buffer[10:-10]
    pack_all([seen], lambda count: into[:count])
    assert torch.equal(into, pack(weight))
    assert (buffer[:10] == 7).all()
    assert (buffer[-10:] == 7).all()


@given(st.lists(st.tuples(SIZE, SIZE), min_size=1, max_size=5), DTYPES)
def test_many_lie_one_behind_the_other(shapes: list[tuple[int, int]], dtype: torch.dtype) -> None:
    matrices = [torch.randn(shape).to(dtype) for shape in shapes]
    buffers: list[torch.Tensor] = []

    def allocate(count: int) -> torch.Tensor:
        buffers.append(torch.full((count,), 7.0, dtype=dtype))
        return buffers[-1]

    parts = pack_all(matrices, allocate)
    (buffer,) = buffers
    assert torch.equal(torch.cat(parts), buffer)
    assert parts[0].data_ptr() == buffer.data_ptr()
    for part, matrix in zip(parts, matrices, strict=True):
        assert torch.equal(part, pack(matrix))
