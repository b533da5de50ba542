"""Attention by the CPU kernels: every span of a batch in one call."""

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapters.native import library
from service.engine.attention import AttentionBatch, Layer, Span, TorchAttention, attend_span

LARGEST = 1 << 17
"""Queries times keys of a float32 span beyond which torch's blocked products beat the kernel's dot products.

In bfloat16 the kernel's products are blocked too, and faster at every length.
"""


@dataclass(frozen=True, slots=True)
class _Spans:
    """Spans for the kernel, an int64 array ``[count, 4]``, and those left to torch."""

    items: np.ndarray
    address: int
    count: int
    large: tuple[Span, ...]


class NativeAttention:
    """Attention over the contiguous KV cache for one type of number.

    Args:
        dtype: float32 or bfloat16.
        threads: Threads of the kernel.
    """

    def __init__(self, dtype: torch.dtype, threads: int) -> None:
        self._dtype = dtype
        self._threads = threads
        self._kernel = library.function("tenora_attention", dtype)
        self._largest = LARGEST if dtype == torch.float32 else None
        self._batch: AttentionBatch | None = None
        self._spans: _Spans | None = None
        self.seen: dict[int, tuple[float | None, int | None]] = {}
        """Scaling and window that every layer has asked for."""

    def attend(self, layer: Layer, batch: AttentionBatch) -> Tensor:
        """Keep the keys and values of what is cached, and attend: ``[t, heads, head_dim]``.

        Raises:
            ValueError: the layer's keys or values are of another shape than the cache's, or of another type.
        """
        heads, tokens, head_dim = layer.q.shape
        cache = batch.cache
        if cache is not None:
            _check_shapes(layer, cache.keys[layer.index])
        if head_dim > library.MAX_HEAD:
            return TorchAttention().attend(layer, batch)
        for tensor in (layer.q, layer.k, layer.v):
            library.check_dtype(tensor, self._dtype)
        spans = self.spans_of(batch)
        self.seen[layer.index] = (layer.scaling, layer.window)
        q, k, v = (_rows(tensor) for tensor in (layer.q, layer.k, layer.v))
        out = q.new_empty(tokens, heads, head_dim)
        call = library.Attention(
            q.data_ptr(), k.data_ptr(), v.data_ptr(),
            out.data_ptr(),
            cache.keys[layer.index].data_ptr() if cache is not None else None,
            cache.values[layer.index].data_ptr() if cache is not None else None,
            q.stride(1), q.stride(0), k.stride(1), k.stride(0), v.stride(1), v.stride(0),
            heads, k.shape[0], head_dim, cache.length if cache is not None else 0,
            batch.causal, (layer.window or 0) if batch.causal else 0,
            layer.scaling if layer.scaling is not None else head_dim**-0.5,
        )  # fmt: skip
        self._kernel(ctypes.addressof(call), spans.address, spans.count, self._threads)
        for span in spans.large:
            if cache is not None and span.row is not None:
                _keep(layer, span, cache.keys[layer.index], cache.values[layer.index])
            out[span.start : span.stop] = attend_span(layer, span, batch)
        return out

    def spans_of(self, batch: AttentionBatch) -> _Spans:
        """The batch's spans, laid out for its first layer and kept for the others."""
        if batch is not self._batch or self._spans is None:
            self._batch, self._spans = batch, _lay_out(batch, self._largest)
        return self._spans


def _lay_out(batch: AttentionBatch, largest: int | None) -> _Spans:
    small, large = [], []
    for span in batch.spans:
        count = span.stop - span.start
        if largest is not None and count > 1 and count * (span.context + count) > largest:
            large.append(span)
        else:
            small.append((span.start, count, -1 if span.row is None else span.row, span.context))
    items = np.array(small, dtype=np.int64).reshape(-1, 4)
    return _Spans(items, items.ctypes.data, len(items), tuple(large))


def _check_shapes(layer: Layer, keys: Tensor) -> None:
    """Refuse what the kernel would write over other rows of the cache, and beyond them."""
    found = {(tensor.shape[0], tensor.shape[-1]) for tensor in (layer.k, layer.v)}
    made_for = (keys.shape[1], keys.shape[-1])
    if found != {made_for}:
        raise ValueError(f"keys and values of {sorted(found)} heads and widths, and a cache for {made_for}")


def _rows(tensor: Tensor) -> Tensor:
    """The same with its last dimension contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _keep(layer: Layer, span: Span, keys: Tensor, values: Tensor) -> None:
    where, tokens = slice(span.context, span.context + span.stop - span.start), slice(span.start, span.stop)
    keys[span.row, :, where] = layer.k[:, tokens]
    values[span.row, :, where] = layer.v[:, tokens]
