"""The kernels read and write what is theirs and not a byte beside it, whatever the shapes: there is a fence."""

import ctypes
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapters.native import library
from service.engine.lora import LoraBatch, LoraContext
from service.engine.native.linear import PackedLinear, PackedLoraLinear
from service.engine.native.panels import pack
from tests.engine.native.bases import fused, logprobs, open_engine, save_base
from tests.engine.native.test_attention import Case, cache, cases, layer, spans
from tests.support.fences import fenced

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fences are pages of Linux")
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 70]))
SIDES = st.booleans()


@settings(max_examples=60)
@given(SIZES, SIZES, st.integers(1, 35), st.integers(1, 40), SIDES, st.sampled_from([0, 0, 1, 32]))
def test_linear_layers(dtype: torch.dtype, n: int, k: int, rank: int, rows: int, before: bool, further: int) -> None:
    k += k % 2  # as PackedLinear pads it
    x, y, bias = (fenced(torch.ones(shape, dtype=dtype), before=before) for shape in ((rows, k), (rows, n), (n,)))
    weight = fenced(pack(torch.ones(n, k, dtype=dtype)), before=before)
    a = fenced(pack(torch.ones(rank, k, dtype=dtype)), before=before)
    b = fenced(pack(torch.ones(n, rank, dtype=dtype)), before=before)
    further += further % 2  # whole pairs of bfloat16
    copy = fenced(torch.zeros(rows * (k + further), dtype=dtype), before=before)
    linear = library.Linear(
        n=n, k=k, apart=k + further if further else 0, weight=weight.data_ptr(), bias=bias.data_ptr()
    )
    slots = np.array([(0, 0, 0), (rank, a.data_ptr(), b.data_ptr())], dtype=np.uint64)
    module = library.Module(linear=ctypes.addressof(linear), slots=slots.ctypes.data)
    items = LoraBatch([1] * rows, torch.device("cpu")).rows(1)
    batch = library.Batch(total=rows, rows=items.count, row=items.address, threads=1, copy=copy.data_ptr())
    kernel = library.function("tenora_linear", dtype)
    kernel(ctypes.addressof(module), ctypes.addressof(batch), x.data_ptr(), y.data_ptr())
    torch.testing.assert_close(y.float(), torch.full((rows, n), float(1 + k + k * rank)), atol=0, rtol=2**-6)


@settings(max_examples=60)
@given(cases(), SIDES)
def test_attention(dtype: torch.dtype, case: Case, before: bool) -> None:
    kept, asked = cache(case, dtype, 0.0), layer(case, dtype)
    q, k, v = (fenced(part.transpose(0, 1).contiguous(), before=before) for part in (asked.q, asked.k, asked.v))
    out = fenced(torch.empty_like(q), before=before)
    stored = [fenced(part[0], before=before) for part in (kept.keys, kept.values)] if kept is not None else []
    items = np.array([(s.start, s.stop - s.start, -1 if s.row is None else s.row, s.context) for s in spans(case)])
    call = library.Attention(
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), out=out.data_ptr(),
        key_cache=stored[0].data_ptr() if stored else None, value_cache=stored[1].data_ptr() if stored else None,
        q_token=q.stride(0), q_head=q.stride(1), k_token=k.stride(0), k_head=k.stride(1),
        v_token=v.stride(0), v_head=v.stride(1), heads=q.shape[1], kv_heads=k.shape[1], head_dim=q.shape[2],
        length=stored[0].shape[2] if stored else 0, causal=case.causal, window=case.window or 0, scale=0.1,
    )  # fmt: skip
    library.function("tenora_attention", dtype)(ctypes.addressof(call), items.ctypes.data, len(items), case.threads)
    assert out.isfinite().all()


@given(st.integers(1, 7), st.integers(1, 100), SIDES)
def test_norms(dtype: torch.dtype, rows: int, n: int, before: bool) -> None:
    x, y, weight = (fenced(torch.ones(shape, dtype=dtype), before=before) for shape in ((rows, n), (rows, n), (n,)))
    library.function("tenora_rms_norm", dtype)(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, n, 0.0, 1)
    assert (y == 1).all()


@given(st.integers(1, 4), st.integers(1, 100), SIDES)
def test_argmax(dtype: torch.dtype, rows: int, n: int, before: bool) -> None:
    if dtype != torch.bfloat16:
        return
    logits, best = fenced(torch.zeros(rows, n, dtype=dtype), before=before), fenced(torch.ones(rows, dtype=torch.long))
    library.function("tenora_argmax", dtype)(logits.data_ptr(), rows, n, best.data_ptr(), 1)
    assert best.tolist() == [0] * rows


def new_empty(self: torch.Tensor, *size: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """As torch's, but fenced, and NaN all over."""
    shape = size[0] if isinstance(size[0], tuple) else size
    kind = dtype or self.dtype
    return fenced(torch.full(shape, torch.nan if kind.is_floating_point else 0, dtype=kind))


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """As :func:`new_empty`."""
    return new_empty(torch.zeros(1, dtype=dtype), *shape)


@settings(max_examples=60)
@given(SIZES, SIZES, st.integers(1, 40))
def test_products_in_int8(dtype: torch.dtype, n: int, k: int, rows: int) -> None:
    if not library.supports_int8():
        return
    weight, bias = torch.ones(n, k, dtype=dtype), nn.Parameter(fenced(torch.ones(n, dtype=dtype)), requires_grad=False)
    with patch.object(torch.Tensor, "new_empty", new_empty):
        made = PackedLoraLinear(PackedLinear(weight, bias, int8=True), LoraContext(), slots=1, threads=1)
    with patch.object(torch.Tensor, "new_empty", new_empty), patch.object(torch, "empty", empty):
        found = made(fenced(torch.ones(rows, k, dtype=dtype)))
    torch.testing.assert_close(found.float(), torch.full((rows, n), float(1 + k)), atol=0, rtol=2**-6)


@pytest.mark.parametrize("reads", ["x", "copies", "int8"])
@pytest.mark.parametrize(
    "sizes",
    [{"intermediate_size": 8}, {"intermediate_size": 200}, {"num_key_value_heads": 4}, {"num_attention_heads": 16}],
    ids=str,
)
def test_whole_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, sizes: dict[str, int], reads: str
) -> None:
    """The space for what lies between the parts of a layer is as large as the kernel says."""
    if reads == "int8" and not library.supports_int8():
        return
    if reads == "copies":
        monkeypatch.setattr(library, "SAME_SETS", 4)
    quantize = "int8" if reads == "int8" else "none"
    folder = save_base(tmp_path, "llama", **sizes)
    engine = open_engine(folder, kernels="native", dtype=str(dtype).removeprefix("torch."), quantize=quantize)
    assert fused(engine)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch, "empty", empty)
    assert logprobs(engine, list(range(2, 39))).isfinite().all()
