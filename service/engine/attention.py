"""Attention for a flattened batch: one row of tokens, many sequences, no padding.

Registered with transformers under the name ``tenora``, so unmodified models call it with the queries, keys and
values of every token in flight. It writes keys and values into the KV cache and attends per sequence:

    tokens    d d d | p p p p | c c c c c
              └ decode rows: one batched product over the cache, one query token each
                      └ prefill chunk: over its own row of the cache, causal
                                └ text to classify: over itself alone, nothing cached
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from service.engine.kv_cache import KVCache

NAME = "tenora"

# Arguments by which some architectures change the result in ways this function does not compute.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask", "cu_seq_lens_q")


class UnsupportedAttentionError(ValueError):
    """The architecture attends in a way the engine does not compute."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start:stop`` of the batch that belong to one sequence.

    ``row`` is the sequence's cache row and ``context`` the tokens already in it; a text to classify has no row.
    """

    start: int
    stop: int
    row: int | None = None
    context: int = 0


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The sequences that compute one token each.

    Shapes:
        tokens: ``[n]`` their places in the batch
        rows: ``[n]`` their cache rows
        lengths: ``[n]`` tokens in the cache, this one included
    """

    tokens: Tensor
    rows: Tensor
    lengths: Tensor
    max_row: int
    max_length: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """``[max_row + 1, 1, 1, max_length]``: which cached positions each row may attend to."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> Tensor:
        positions = torch.arange(self.max_length, device=self.rows.device)
        # Rows between those in use compute too and are thrown away; one position keeps them finite.
        lengths = torch.ones(self.max_row + 1, dtype=torch.long, device=self.rows.device)
        lengths[self.rows] = self.lengths
        allowed = positions < lengths[:, None]
        if window is not None:
            allowed &= positions >= lengths[:, None] - window
        return allowed[:, None, None, :]


class AttentionBatch:
    """Who attends to what in one step, as the different ways to compute it want to have it.

    Args:
        spans: The tokens of every sequence, in order.
        causal: Whether tokens see only what came before them.
        cache: Where the spans that have a row keep their keys and values.
        backend: Computes it.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        causal: bool,
        cache: KVCache | None,
        backend: "AttentionBackend",
        device: torch.device,
    ) -> None:
        self.spans = spans
        self.causal = causal
        self.cache = cache
        self.backend = backend
        self.device = device

    @cached_property
    def decode(self) -> DecodeRows | None:
        """The spans of one cached token."""
        found = [(span.start, span.row, span.context + 1) for span in self.spans if _decodes(span)]
        if not found:
            return None
        tokens, rows, lengths = zip(*found, strict=True)
        return DecodeRows(self._tensor(tokens), self._tensor(rows), self._tensor(lengths), max(rows), max(lengths))

    @cached_property
    def chunks(self) -> tuple[Span, ...]:
        """The other spans."""
        return tuple(span for span in self.spans if not _decodes(span))

    @cached_property
    def cached(self) -> tuple[Tensor, Tensor, Tensor]:
        """``[g]`` each: the tokens whose keys and values are kept, their cache rows, their positions there."""
        spans = [span for span in self.spans if span.row is not None]
        tokens = [token for span in spans for token in range(span.start, span.stop)]
        rows = [span.row for span in spans for _ in range(span.start, span.stop)]
        positions = [span.context + i for span in spans for i in range(span.stop - span.start)]
        return self._tensor(tokens), self._tensor(rows), self._tensor(positions)

    @cached_property
    def span_masks(self) -> dict[tuple[int, int, int | None], Tensor]:
        """Masks of chunks by queries, keys and window; the layers share them."""
        return {}

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def _decodes(span: Span) -> bool:
    return span.row is not None and span.stop - span.start == 1


_current: ContextVar[AttentionBatch] = ContextVar("tenora_attention_batch")


@contextmanager
def attending(batch: AttentionBatch) -> Iterator[None]:
    """Make ``batch`` the one that the attention function works on."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def current_batch() -> AttentionBatch:
    """The batch of the step that is computed now."""
    return _current.get()


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's call.

    Shapes:
        q: ``[heads, t, head_dim]``
        k, v: ``[kv_heads, t, head_dim]``
    """

    q: Tensor
    k: Tensor
    v: Tensor
    index: int
    scaling: float | None
    window: int | None


class AttentionBackend(Protocol):
    """A way to compute attention."""

    def attend(self, layer: Layer, batch: AttentionBatch) -> Tensor:
        """Keep the keys and values of what is cached, and attend: ``[t, heads, head_dim]``."""


def tenora_attention(  # noqa: PLR0917 (transformers fixes the signature)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of the current batch.

    Shapes:
        query: ``[1, heads, t, head_dim]``
        key, value: ``[1, kv_heads, t, head_dim]``
        returns: ``[1, t, heads, head_dim]``

    Raises:
        UnsupportedAttentionError: the architecture passes something that would change the result.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise UnsupportedAttentionError(f"{type(module).__name__} uses {name!r}, which the engine does not compute")
    batch = _current.get()
    # An encoder's layers need not know their number: nothing of theirs is cached.
    index = getattr(module, "layer_idx", None) or 0
    layer = Layer(query[0], key[0], value[0], index, scaling, sliding_window)
    return batch.backend.attend(layer, batch).unsqueeze(0), None


class TorchAttention:
    """Attention by PyTorch alone, on any device."""

    def attend(self, layer: Layer, batch: AttentionBatch) -> Tensor:
        """Keep the keys and values of what is cached, and attend: ``[t, heads, head_dim]``."""
        heads, tokens, head_dim = layer.q.shape
        out = layer.q.new_empty(tokens, heads, head_dim)
        if batch.cache is not None:
            keep(layer, batch, batch.cache)
            if batch.decode is not None:
                out[batch.decode.tokens] = _attend_decode(layer, batch.decode, batch.cache)
        for span in batch.chunks:
            out[span.start : span.stop] = attend_span(layer, span, batch)
        return out


def keep(layer: Layer, batch: AttentionBatch, cache: KVCache) -> None:
    """Put the step's keys and values into the cache."""
    tokens, rows, positions = batch.cached
    cache.write(layer.index, rows, positions, layer.k[:, tokens].transpose(0, 1), layer.v[:, tokens].transpose(0, 1))


def _attend_decode(layer: Layer, decode: DecodeRows, cache: KVCache) -> Tensor:
    """One query token per cache row, all rows in one product: ``[n, heads, head_dim]``.

    Query heads that share a KV head stand as query rows, so that nothing is repeated in memory.
    """
    heads, head_dim = layer.q.shape[0], layer.q.shape[-1]
    keys = cache.keys[layer.index][: decode.max_row + 1, :, : decode.max_length]
    values = cache.values[layer.index][: decode.max_row + 1, :, : decode.max_length]
    kv_heads = keys.shape[1]
    queries = layer.q.new_zeros(decode.max_row + 1, heads, head_dim)
    queries[decode.rows] = layer.q[:, decode.tokens].transpose(0, 1)
    queries = queries.view(-1, kv_heads, heads // kv_heads, head_dim)
    out = sdpa(queries, keys, values, attn_mask=decode.mask(layer.window), scale=layer.scaling)
    return out.reshape(-1, heads, head_dim)[decode.rows]


def attend_span(layer: Layer, span: Span, batch: AttentionBatch) -> Tensor:
    """A prefill chunk over its cache row, or a text over itself: ``[tokens, heads, head_dim]``."""
    tokens = slice(span.start, span.stop)
    if span.context:
        assert batch.cache is not None and span.row is not None
        length = span.context + span.stop - span.start
        keys = batch.cache.keys[layer.index][span.row, :, :length]
        values = batch.cache.values[layer.index][span.row, :, :length]
    else:
        keys, values = layer.k[:, tokens], layer.v[:, tokens]
    queries = layer.q[:, tokens]
    out = sdpa(
        queries[None],
        keys[None],
        values[None],
        attn_mask=_span_mask(queries.shape[1], keys.shape[1], layer.window, batch) if batch.causal else None,
        scale=layer.scaling,
        enable_gqa=queries.shape[0] != keys.shape[0],
    )
    return out[0].transpose(0, 1)


def _span_mask(queries: int, keys: int, window: int | None, batch: AttentionBatch) -> Tensor:
    """``[queries, keys]``: the last query is the last key, and each sees what came before it."""
    known = batch.span_masks.get((queries, keys, window))
    if known is not None:
        return known
    ends = torch.arange(keys - queries, keys, device=batch.device)[:, None]
    positions = torch.arange(keys, device=batch.device)
    allowed = positions <= ends
    if window is not None:
        allowed &= positions > ends - window
    return batch.span_masks.setdefault((queries, keys, window), allowed)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """The batch says who attends to whom; the model need not build a mask."""


AttentionInterface.register(NAME, tenora_attention)
AttentionMaskInterface.register(NAME, _no_mask)
