"""Attention over the paged KV cache: every sequence of a step in one call, decode rows and prefill chunks alike.

    tokens            d │ p p p p │ c c c c c │ d          d: decode row, p: prefill chunk, c: text to classify
    cached sequences  ┬   ┬─────                ┬          one call over the block table
    texts                           ┬────────              one call over themselves

A call goes to FlashAttention through torch's ``varlen_attn`` where :func:`flash_computes` says that it can, else to
:func:`attend_paged` and :func:`attend_texts`, plain torch, which are also what the tests hold it against.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.torch_version import TorchVersion

from service.engine.attention import AttentionBatch, Layer, Span
from service.engine.cuda.paged_cache import PagedKVCache
from service.engine.cuda.upload import upload

_SPLITS = 1
"""Parts that a sequence's keys are worked on in. FlashAttention 2 loses rows of a paged call with more than one
(pytorch#194167), also where it chooses the number itself; and one makes a result independent of the batch."""


@lru_cache
def flash_computes(dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """Whether FlashAttention 2, as torch carries it, computes these with a block table.

    It wants 16-bit numbers, heads of a multiple of 8 up to 256, and Ampere or later; and a torch that takes the block
    table and the number of splits, which begins with 2.13.
    """
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and TorchVersion(torch.__version__) >= "2.13"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@dataclass(frozen=True, slots=True)
class Form:
    """How the queries of a call see their keys."""

    causal: bool
    window: int | None
    scaling: float | None


@dataclass(frozen=True, slots=True)
class CachedQueries:
    """Sequences that attend over what they have in the cache, the step's own tokens included.

    Shapes:
        tokens: ``[g]`` their places in the batch; None when those are all its tokens
        places: ``[g]`` int64, where their keys and values go in the pool
        starts: ``[n + 1]`` int32, where each sequence begins among the ``g``
        lengths: ``[n]`` int32, tokens in the cache after this step
        table: ``[n, blocks]`` int32, rows of the block table
        capacities: ``[n + 1]`` int32, multiples of what a row of the block table can hold
    """

    tokens: Tensor | None
    places: Tensor
    starts: Tensor
    lengths: Tensor
    table: Tensor
    capacities: Tensor
    longest: int
    """Most queries of a sequence."""
    capacity: int
    """Tokens that a row of the block table can hold."""


@dataclass(frozen=True, slots=True)
class TextQueries:
    """Sequences that attend over themselves alone.

    Shapes:
        tokens: ``[g]`` their places in the batch; None when those are all its tokens
        starts: ``[n + 1]`` int32, where each begins among the ``g``
    """

    tokens: Tensor | None
    starts: Tensor
    longest: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's calls."""

    cached: CachedQueries | None
    texts: TextQueries | None


class _Tokens(NamedTuple):
    """Tokens of a batch.

    Shapes:
        q: ``[t, heads, head_dim]``
        k, v: ``[t, kv_heads, head_dim]``
    """

    q: Tensor
    k: Tensor
    v: Tensor

    def at(self, places: Tensor) -> "_Tokens":
        """Some of them."""
        return _Tokens(self.q[places], self.k[places], self.v[places])


class PagedAttention:
    """Attention with a paged cache; for a base that does not generate, without any.

    Args:
        cache: Where the keys and values of all batches are; that of a batch itself is for contiguous ones.
    """

    def __init__(self, cache: PagedKVCache | None = None) -> None:
        self.cache = cache
        self._plans: WeakKeyDictionary[AttentionBatch, Plan] = WeakKeyDictionary()

    def attend(self, layer: Layer, batch: AttentionBatch) -> Tensor:
        """Keep the keys and values of what is cached, and attend: ``[t, heads, head_dim]``."""
        plan = self._plan(batch)
        tokens = _Tokens(*(tensor.transpose(0, 1) for tensor in (layer.q, layer.k, layer.v)))
        form = Form(batch.causal, layer.window if batch.causal else None, layer.scaling)
        if plan.texts is None:
            assert plan.cached is not None, "a batch without tokens"
            return _attend_cached(tokens, layer.index, self._paged, plan.cached, form)
        if plan.cached is None:
            return _attend_texts(tokens, plan.texts, form)
        out, cached, texts = tokens.q.new_empty(tokens.q.shape), plan.cached.tokens, plan.texts.tokens
        assert cached is not None and texts is not None
        out[cached] = _attend_cached(tokens.at(cached), layer.index, self._paged, plan.cached, form)
        out[texts] = _attend_texts(tokens.at(texts), plan.texts, form)
        return out

    @property
    def _paged(self) -> PagedKVCache:
        assert self.cache is not None, "an encoder does not generate"
        return self.cache

    def prepare(self, batch: AttentionBatch, plan: Plan) -> None:
        """Have ``batch`` computed by a plan made elsewhere."""
        self._plans[batch] = plan

    def _plan(self, batch: AttentionBatch) -> Plan:
        """The batch's plan, made for its first layer and kept for the others."""
        plan = self._plans.get(batch)
        if plan is None:
            cached = [span for span in batch.spans if span.row is not None]
            texts = [span for span in batch.spans if span.row is None]
            plan = self._plans[batch] = Plan(
                plan_cached(cached, self._paged, every=not texts) if cached else None,
                plan_texts(texts, batch.device, every=not cached) if texts else None,
            )
        return plan


def plan_cached(spans: Sequence[Span], cache: PagedKVCache, *, every: bool) -> CachedQueries:
    """Lay out the sequences that are cached; ``every`` says that they are the whole batch."""
    capacity = cache.block_table.shape[1] * cache.block_tokens
    counts = [span.stop - span.start for span in spans]
    columns = (
        [] if every else _tokens(spans),
        [place for span in spans for place in cache.places(_row(span), span.context, _length(span))],
        [_row(span) for span in spans],
        [0, *accumulate(counts)],
        [_length(span) for span in spans],
        range(0, (len(spans) + 1) * capacity, capacity),
    )
    tokens, places, rows, starts, lengths, capacities = upload(columns, cache.block_table.device)
    return CachedQueries(
        tokens=None if every else tokens,
        places=places,
        starts=starts.int(),
        lengths=lengths.int(),
        table=cache.block_table[rows],
        capacities=capacities.int(),
        longest=max(counts),
        capacity=capacity,
    )


def plan_texts(spans: Sequence[Span], device: torch.device, *, every: bool) -> TextQueries:
    """Lay out the texts; ``every`` says that they are the whole batch."""
    counts = [span.stop - span.start for span in spans]
    tokens, starts = upload(([] if every else _tokens(spans), [0, *accumulate(counts)]), device)
    return TextQueries(None if every else tokens, starts.int(), max(counts))


def _row(span: Span) -> int:
    assert span.row is not None
    return span.row


def _length(span: Span) -> int:
    """Tokens in the cache after this step."""
    return span.context + span.stop - span.start


def _tokens(spans: Sequence[Span]) -> list[int]:
    return [token for span in spans for token in range(span.start, span.stop)]


def _attend_cached(tokens: _Tokens, layer: int, cache: PagedKVCache, queries: CachedQueries, form: Form) -> Tensor:
    q, k, v = tokens
    cache.write(layer, queries.places, k, v)
    attend = flash_paged if flash_computes(q.dtype, q.shape[-1], q.device) else attend_paged
    return attend(q, cache.keys[layer], cache.values[layer], queries, form)


def _attend_texts(tokens: _Tokens, queries: TextQueries, form: Form) -> Tensor:
    q, k, v = tokens
    attend = flash_texts if flash_computes(q.dtype, q.shape[-1], q.device) else attend_texts
    return attend(q, k, v, queries, form)


def flash_paged(q: Tensor, keys: Tensor, values: Tensor, queries: CachedQueries, form: Form) -> Tensor:
    """FlashAttention over the block table.

    Shapes:
        q: ``[g, heads, head_dim]``
        keys, values: ``[blocks, block_tokens, kv_heads, head_dim]``
        returns: ``[g, heads, head_dim]``
    """
    from torch.nn.attention.varlen import varlen_attn

    # A single query is its sequence's last key, so causal and full are the same; and only the full kernel reads a KV
    # head once for all the query heads that share it.
    full = queries.longest == 1 and form.window is None
    return cast(
        Tensor,
        varlen_attn(
            q,
            keys,
            values,
            queries.starts,
            queries.capacities,
            queries.longest,
            queries.capacity,
            scale=form.scaling,
            window_size=(-1, -1) if full else _window(form),
            enable_gqa=q.shape[1] != keys.shape[2],
            seqused_k=queries.lengths,
            block_table=queries.table,
            num_splits=_SPLITS,
        ),
    )


def flash_texts(q: Tensor, k: Tensor, v: Tensor, queries: TextQueries, form: Form) -> Tensor:
    """FlashAttention within each text.

    Shapes:
        q: ``[g, heads, head_dim]``
        k, v: ``[g, kv_heads, head_dim]``
        returns: ``[g, heads, head_dim]``
    """
    from torch.nn.attention.varlen import varlen_attn

    return cast(
        Tensor,
        varlen_attn(
            q,
            k,
            v,
            queries.starts,
            queries.starts,
            queries.longest,
            queries.longest,
            scale=form.scaling,
            window_size=_window(form),
            enable_gqa=q.shape[1] != k.shape[1],
            num_splits=_SPLITS,
        ),
    )


def _window(form: Form) -> tuple[int, int]:
    """FlashAttention's window, which counts the keys on each side of a query and leaves its own out."""
    if not form.causal:
        return (-1, -1)
    return (-1 if form.window is None else form.window - 1, 0)


def attend_paged(q: Tensor, keys: Tensor, values: Tensor, queries: CachedQueries, form: Form) -> Tensor:
    """The same as :func:`flash_paged` by torch alone: sequences with as many queries as one another go together."""
    out = q.new_empty(q.shape)
    starts, lengths = queries.starts.tolist(), queries.lengths.tolist()
    for count, members in _alike(starts).items():
        longest = max(lengths[member] for member in members)
        index = torch.tensor(members, device=q.device)
        blocks = queries.table[index, : -(-longest // keys.shape[1])]
        tokens = _spread(starts, members, count, q.device)
        out[tokens] = _attend(
            q[tokens],
            keys[blocks].flatten(1, 2)[:, :longest],
            values[blocks].flatten(1, 2)[:, :longest],
            queries.lengths[index],
            form,
        )
    return out


def attend_texts(q: Tensor, k: Tensor, v: Tensor, queries: TextQueries, form: Form) -> Tensor:
    """The same as :func:`flash_texts` by torch alone: texts as long as one another go together."""
    out = q.new_empty(q.shape)
    starts = queries.starts.tolist()
    for count, members in _alike(starts).items():
        tokens = _spread(starts, members, count, q.device)
        lengths = torch.full((len(members),), count, device=q.device)
        out[tokens] = _attend(q[tokens], k[tokens], v[tokens], lengths, form)
    return out


def _alike(starts: list[int]) -> dict[int, list[int]]:
    """Which sequences have how many queries."""
    members = defaultdict(list)
    for i in range(len(starts) - 1):
        members[starts[i + 1] - starts[i]].append(i)
    return members


def _spread(starts: list[int], members: list[int], count: int, device: torch.device) -> Tensor:
    """``[members, count]``: the tokens of each member."""
    first = torch.tensor([starts[member] for member in members], device=device)
    return first[:, None] + torch.arange(count, device=device)


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, form: Form) -> Tensor:
    """Attention of padded sequences, the last query of each being its last key.

    Shapes:
        q: ``[n, queries, heads, head_dim]``
        k, v: ``[n, keys, kv_heads, head_dim]``
        lengths: ``[n]`` keys of each
        returns: ``[n, queries, heads, head_dim]``
    """
    positions = torch.arange(k.shape[1], device=q.device)
    allowed = (positions < lengths[:, None])[:, None].expand(-1, q.shape[1], -1)
    if form.causal:
        ends = lengths[:, None, None] - q.shape[1] + torch.arange(q.shape[1], device=q.device)[:, None]
        allowed = positions <= ends
        if form.window is not None:
            allowed = allowed & (positions > ends - form.window)
    out = sdpa(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=allowed[:, None],
        scale=form.scaling,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
