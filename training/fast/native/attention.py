"""Attention of packed rows by the compiled kernels.

Scores are computed block by block and never kept: of the forward pass one number for each query and head remains, from
which the backward pass computes the shares anew. Every row finds the tokens it begins with where they are, so nothing
is gathered, padded or masked.
"""

import ctypes
from typing import Any

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
        and not dropout
        and (window is None or layout.causal)
        and library.supports(torch.bfloat16)
    )


def attend(  # noqa: PLR0917
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    """Attention where :func:`can_attend` says yes.

    Args:
        query: ``[heads, tokens, width]``.
        key, value: ``[kv heads, tokens, width]``.
        scale: Of the scores.
        window: How far back a token sees, itself included; None: to the beginning.

    Returns:
        ``[tokens, heads, width]``.
    """
    out: Tensor = _Attention.apply(query, key, value, layout, scale, window)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v for every row.

    ``[heads, tokens, width]`` and ``[kv heads, tokens, width]`` in, ``[tokens, heads, width]`` out.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (torch's protocol)
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
    ) -> Tensor:
        query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
        heads, tokens, width = query.shape
        out = query.new_empty(tokens, heads, width)
        logsum = torch.empty(tokens, heads, dtype=torch.float32, device="cpu") if any(ctx.needs_input_grad) else None
        call = _attention(query, key, value, out, layout.causal, scale, window)
        packed = _packed(layout, tokens, logsum)
        kernel = library.function("tenora_packed_attention", torch.bfloat16)
        kernel(ctypes.addressof(call), ctypes.addressof(packed))
        ctx.save_for_backward(query, key, value, out, logsum)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
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
        call = _attention(query, key, value, out, ctx.layout.causal, ctx.scale, ctx.window)
        packed = _packed(ctx.layout, tokens, logsum)
        gradients = library.Gradients(*(part.data_ptr() for part in (dout, dquery, dkey, dvalue, sums)))
        kernel = library.function("tenora_packed_attention_back", torch.bfloat16)
        kernel(*map(ctypes.addressof, (call, packed, gradients)))
        return (*(part.transpose(0, 1) for part in (dquery, dkey, dvalue)), None, None, None)


def _attention(  # noqa: PLR0917 (the fields of one structure)
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, causal: bool, scale: float, window: int | None
) -> library.Attention:
    heads, _, width = query.shape
    return library.Attention(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(), None, None,
        query.stride(1), query.stride(0), key.stride(1), key.stride(0), value.stride(1), value.stride(0),
        heads, len(key), width, 0,
        causal, window or 0, scale,
    )  # fmt: skip


def _packed(layout: Layout, tokens: int, logsum: Tensor | None) -> library.Packed:
    spans, paths = layout.spans
    return library.Packed(
        spans.data_ptr(), paths.data_ptr(), len(spans), tokens, torch.get_num_threads(),
        None if logsum is None else logsum.data_ptr(),
    )  # fmt: skip
