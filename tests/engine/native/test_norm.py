"""RMSNorm by the kernel, and which modules it stands in for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from service.engine.native.norm import NativeRMSNorm, replaceable


def theirs(n: int, dtype: torch.dtype, eps: float = 1e-6) -> LlamaRMSNorm:
    made = LlamaRMSNorm(n, eps)
    nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(n))
    return made.to(dtype).requires_grad_(False)


@given(
    st.integers(1, 9),
    st.one_of(st.integers(1, 40), st.integers(41, 700)),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([1e-6, 1e-5, 0.1]),
    st.sampled_from([1, 1, 2]),
)
def test_any_rows_come_out_as_llamas(
    dtype: torch.dtype, rows: int, n: int, size: float, eps: float, threads: int
) -> None:
    x = (size * torch.randn(2, rows, n, generator=torch.Generator().manual_seed(rows))).to(dtype)
    module = theirs(n, dtype, eps)
    found, want = NativeRMSNorm(module.weight, eps, threads)(x), module(x)
    assert (found.shape, found.dtype) == (want.shape, dtype)
    # Where the sums differ in the last bit, the value that is rounded may fall to the other side: twice, in bfloat16.
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.0, "rtol": 2**-6}
    torch.testing.assert_close(found, want, **tolerance)


def test_a_view_of_a_row_is_normed_as_its_copy(dtype: torch.dtype) -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = NativeRMSNorm(theirs(17, dtype).weight, 1e-6, 1)
    assert torch.equal(norm(x[:, 5:22]), norm(x[:, 5:22].contiguous()))


def test_numbers_of_another_type_are_refused(dtype: torch.dtype) -> None:
    norm = NativeRMSNorm(theirs(8, dtype).weight, 1e-6, 1)
    with pytest.raises(ValueError, match=f"a kernel for {dtype} got torch.float16"):
        norm(torch.ones(1, 8, dtype=torch.float16))


def test_llamas_norm_is_replaceable(dtype: torch.dtype) -> None:
    assert replaceable(theirs(32, dtype), dtype)


def test_a_norm_that_is_kept_in_another_type_is_left_alone(dtype: torch.dtype) -> None:
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[dtype]
    assert not replaceable(theirs(32, dtype), other)


class OtherRMSNorm(LlamaRMSNorm):
    """By its name and parts it is one."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 1.1 * super().forward(hidden_states)


class GatedRMSNorm(LlamaRMSNorm):
    """Needs more than a row."""

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return gate * super().forward(hidden_states)


@pytest.mark.parametrize("kind", [OtherRMSNorm, GatedRMSNorm])
def test_what_computes_otherwise_is_left_alone(kind: type[LlamaRMSNorm], compiled: None) -> None:
    assert not replaceable(kind(16), torch.float32)


@pytest.mark.parametrize("module", [nn.LayerNorm(8), nn.RMSNorm(8), nn.Linear(8, 8), nn.Identity()], ids=repr)
def test_other_modules_are_left_alone(module: nn.Module, compiled: None) -> None:
    assert not replaceable(module, torch.float32)
