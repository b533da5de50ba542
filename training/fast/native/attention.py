"""Attention of packed rows by the compiled kernels.

Scores are computed block by block and never kept: of the forward pass one number for each query and head remains, from
which the backward pass computes the shares anew. Every row finds the tokens it begins with where they are, so nothing
is gathered, padded or masked.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adapters.native import library
from training.fast.layout import Layout


def can_attend(  # noqa: PLR0917
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, window: int | None
) -> bool:
    """Whether the kernels compute this attention: see :func:`attend` for the shapes that they read."""
    heads, *rest = query.shape
    return (
        query.dtype == key.dtype == value.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and key.shape == value.shape == (len(key), *rest)
        and heads % len(key) == 0
        and rest == [layout.shared + sum(layout.lengths), min(rest[1], library.MAX_HEAD)]
        and 0 <= dropout < 1
        and (window is None or layout.causal)
        and library.supports(torch.bfloat16)
    )


def attend(  # noqa: PLR0917
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None, dropout: float = 0.0
) -> Tensor:
    """Attention where :func:`can_attend` says yes.

    Args:
        query: ``[heads, tokens, width]``.
        key, value: ``[kv heads, tokens, width]``.
        scale: Of the scores.
        window: How far back a token sees, itself included; None: to the beginning.
        dropout: Of the shares, by a seed that torch's generator gives.

    Returns:
        ``[tokens, heads, width]``.
    """
    how = _How(layout, scale, window, library.Dropout.drawn(dropout))
    out: Tensor = _Attention.apply(query, key, value, how)  # type: ignore[no-untyped-call]
    return out


class _How(NamedTuple):
    """What an attention is beside its queries, keys and values."""

    layout: Layout
    scale: float
    window: int | None
    dropout: library.Dropout


class _Attention(torch.autograd.Function):
    """dropout(softmax(q kᵀ · scale)) v for every row.

    ``[heads, tokens, width]`` and ``[kv heads, tokens, width]`` in, ``[tokens, heads, width]`` out.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
        heads, tokens, width = query.shape
        out = query.new_empty(tokens, heads, width)
        logsum = torch.empty(tokens, heads, dtype=torch.float32, device="cpu") if any(ctx.needs_input_grad) else None
        call, packed = _attention(query, key, value, out, how), _packed(how, tokens, logsum)
        kernel = library.function("tenora_packed_attention", torch.bfloat16)
        kernel(ctypes.addressof(call), ctypes.addressof(packed))
        ctx.save_for_backward(query, key, value, out, logsum)
        ctx.how = how
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logsum = ctx.saved_tensors
        heads, tokens, width = query.shape
        dout = dout.contiguous()
        dquery, dkey, dvalue = (part.new_empty(tokens, len(part), width) for part in (query, key, value))
        wide = -(-width // library.WIDE) * library.WIDE
        sums = torch.empty(heads, tokens, 2, wide, dtype=torch.float32, device="cpu")
        call, packed = _attention(query, key, value, out, ctx.how), _packed(ctx.how, tokens, logsum)
        gradients = library.Gradients(*(part.data_ptr() for part in (dout, dquery, dkey, dvalue, sums)))
        kernel = library.function("tenora_packed_attention_back", torch.bfloat16)
        kernel(*map(ctypes.addressof, (call, packed, gradients)))
        return (*(part.transpose(0, 1) for part in (dquery, dkey, dvalue)), None)


def _attention(query: Tensor, key: Tensor, value: Tensor, out: Tensor, how: _How) -> library.Attention:
    heads, _, width = query.shape
    return library.Attention(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), None, None,
        query.stride(1), query.stride(0), key.stride(1), key.stride(0), value.stride(1), value.stride(0),
        heads, len(key), width, 0,
        how.layout.causal, how.window or 0, how.scale,
    )  # fmt: skip


def _packed(how: _How, tokens: int, logsum: Tensor | None) -> library.Packed:
    spans, paths = how.layout.spans
    return library.Packed(
        spans.data_ptr(), paths.data_ptr(), len(spans), tokens, torch.get_num_threads(),
        None if logsum is None else logsum.data_ptr(),
        how.dropout,
    )  # fmt: skip
