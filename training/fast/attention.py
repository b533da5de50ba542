"""Attention for packed rows, registered with transformers under the name ``tenora_packed``.

It gets the queries, keys and values of all tokens of the flattened row, and gives each row its own again. The compiled
kernels do that in bfloat16, where they are there (:mod:`~training.fast.native.attention`). Else, on a CPU, forward and
backward are written out: for rows of up to a few hundred tokens the scores fit into the cache, and batched products
take a third of the time of torch's fused attention, whose backward pass is slow there. Longer rows, and a GPU, get
torch's, which keeps no scores.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from training.fast.dropout import Drop, draw
from training.fast.layout import Group, Layout
from training.fast.native.attention import attend, can_attend

NAME = "tenora_packed"

LONGEST = 768
"""Own tokens of a row up to which the scores are kept for the backward pass."""
# Arguments by which some architectures change the result in ways this function does not compute.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask", "cu_seq_lens_q")

_layout: ContextVar[tuple[Layout, bool]] = ContextVar("layout")


class UnsupportedAttentionError(ValueError):
    """The architecture attends in a way that packed rows do not."""


@contextmanager
def attending(layout: Layout, *, compiled: bool = False) -> Iterator[None]:
    """Have the models that run inside attend as ``layout`` says, by the compiled kernels where they can."""
    token = _layout.set((layout, compiled))
    try:
        yield
    finally:
        _layout.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. ``query`` is ``[1, heads, tokens, width]``; the answer ``[1, tokens, heads, width]``."""
    if unknown := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise UnsupportedAttentionError(f"{type(module).__name__} attends with {', '.join(unknown)}")
    # Rotary embeddings come in the type of the hidden states; the product is as exact as its narrowest part.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layout, compiled = _layout.get()
    parts = (query[0], key[0], value[0])
    if compiled and can_attend(*parts, layout, dropout, sliding_window):
        return attend(*parts, layout, scale, sliding_window, dropout)[None], None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    written_out = layout.device.type == "cpu" and max(layout.shared, *layout.lengths) <= LONGEST
    how = _How(layout, scale, dropout, sliding_window, compiled)
    gathers = any(group.span is None or group.front for group in layout.groups)
    # Gathering rows of tokens is quick where each head's lie together.
    query, key, value = (part[0].contiguous() if gathers else part[0] for part in (query, key, value))
    out: Tensor = (_Attention.apply if written_out else _torch_attention)(query, key, value, how)
    return out[None], None


class _How(NamedTuple):
    """What a layer's attention is beside its queries, keys and values."""

    layout: Layout
    scale: float
    dropout: float
    window: int | None
    compiled: bool


def _torch_attention(query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
    """The same by torch's fused attention and its own backward pass."""
    out = torch.zeros_like(query)
    for group in how.layout.groups:
        q, k, v = (
            part.view(len(query), len(group.lengths), -1, query.shape[-1])
            for part in (_rows(group, query), _behind(group, key), _behind(group, value))
        )
        mask = group.mask(how.window, q.dtype)
        mask = None if mask is None else mask.transpose(0, 1)
        part = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=how.scale, dropout_p=how.dropout)
        out = out.index_copy(1, group.targets, part.flatten(1, 2).index_select(1, group.back))
    return out.transpose(0, 1)


class _Saved(NamedTuple):
    """What the backward pass of a group needs: ``[heads · rows, longest, …]``, keys behind trunk and branch."""

    query: Tensor
    key: Tensor
    value: Tensor
    shares: Tensor


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · scale + mask) v for every row; ``[heads, tokens, width]``, and ``[tokens, heads, width]`` out."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        out = query.new_empty(query.shape[1], len(query), query.shape[2])
        saved: list[_Saved] = []
        ctx.drops = []
        for group in how.layout.groups:
            part, needed, drop = _forward(group, query, key, value, how)
            _put(group, out, part, group.back)
            if any(ctx.needs_input_grad[:3]):
                saved.append(needed)
                ctx.drops.append(drop)
        ctx.save_for_backward(*itertools.chain.from_iterable(saved))
        ctx.layout, ctx.scale = how.layout, how.scale
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        layout, size = ctx.layout, len(_Saved._fields)
        tensors = ctx.saved_tensors
        saved = [_Saved(*tensors[start : start + size]) for start in range(0, len(tensors), size)]
        dquery, dkey, dvalue = (dout.new_empty(dout.shape) for _ in range(3))
        fronts: list[tuple[Group, Tensor, Tensor]] = []
        for group, needed, drop in zip(layout.groups, saved, ctx.drops, strict=True):
            dq, dk, dv = _backward(group, needed, drop, dout, ctx.scale)
            _put(group, dquery, dq, group.back)
            _put(group, dkey, dk, group.seen_back)
            _put(group, dvalue, dv, group.seen_back)
            fronts.append((group, dk, dv))
        for group, dk, dv in fronts:  # once every token has been put: those of a branch belong to another row
            _add_front(group, dkey, dk)
            _add_front(group, dvalue, dv)
        return (*(part.transpose(0, 1) for part in (dquery, dkey, dvalue)), None)


def _forward(group: Group, query: Tensor, key: Tensor, value: Tensor, how: _How) -> tuple[Tensor, _Saved, Drop | None]:
    """``[heads · rows, longest, width]``, and what its backward pass needs."""
    q = _rows(group, query) * how.scale
    k, v = _behind(group, key), _behind(group, value)
    scores = torch.bmm(q, k.transpose(1, 2))
    mask = group.mask(how.window, q.dtype)
    if mask is not None:
        scores.view(len(query), len(group.lengths), *scores.shape[1:]).add_(mask.transpose(0, 1))
    shares = scores.softmax(-1)  # which torch computes in float32 at least, whatever goes in and out
    drop = draw(shares, how.dropout, compiled=how.compiled)
    out = torch.bmm(shares if drop is None else drop.of(shares), v)
    return out, _Saved(q, k, v, shares), drop


def _backward(
    group: Group, saved: _Saved, drop: Drop | None, dout: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, ``[heads · rows, longest or front + longest, width]``."""
    q, k, v, shares = saved
    do = _rows_of_gradient(group, dout)
    dv = torch.bmm((shares if drop is None else drop.of(shares)).transpose(1, 2), do)
    dshares = torch.bmm(do, v.transpose(1, 2))
    if drop is not None:
        drop.into(dshares)
    dscores = torch._softmax_backward_data(dshares, shares, -1, q.dtype)
    dq = torch.bmm(dscores, k).mul_(scale)
    dk = torch.bmm(dscores.transpose(1, 2), q)
    return dq, dk, dv


def _put(group: Group, whole: Tensor, part: Tensor, places: Tensor) -> None:
    """Write a group's own tokens, which stand at ``places`` of its padded rows, into ``[tokens, heads, width]``."""
    if group.span is None:
        own = _end_to_end(whole, part).index_select(1, places)
        whole.index_copy_(0, group.targets, own.transpose(0, 1))
    else:
        whole[group.span] = part[:, -group.lengths[0] :].transpose(0, 1)


def _add_front(group: Group, whole: Tensor, part: Tensor) -> None:
    """Add what the rows of a group, ``[heads · rows, front + longest, width]``, say of their trunk and branches."""
    if group.shared:
        trunk = part.view(whole.shape[1], -1, *part.shape[1:])[:, :, : group.shared]
        whole[: group.shared] += trunk.sum(1).transpose(0, 1)
    places, tokens = group.branching
    if len(places):
        whole.index_add_(0, tokens, _end_to_end(whole, part).index_select(1, places).transpose(0, 1))


def _end_to_end(whole: Tensor, part: Tensor) -> Tensor:
    """``[heads · rows, length, width] -> [heads, rows · length, width]``, a view."""
    return part.view(whole.shape[1], -1, whole.shape[2])


def _rows(group: Group, part: Tensor) -> Tensor:
    """``[heads, tokens, width] -> [heads · rows, longest, width]``; a view of a single row."""
    return part[:, group.span] if group.span is not None else _gathered(part, group.tokens, len(group.lengths))


def _rows_of_gradient(group: Group, dout: Tensor) -> Tensor:
    """The same of an output's gradient. What stands at padding was nobody's output: its gradient is zero."""
    heads_first = dout.transpose(0, 1)
    if group.span is not None:
        return heads_first[:, group.span]
    padded = dout.new_zeros(len(heads_first), len(group.tokens), dout.shape[2])
    padded.index_copy_(1, group.back, dout.index_select(0, group.targets).transpose(0, 1))
    return padded.view(-1, group.longest, dout.shape[2])


def _behind(group: Group, part: Tensor) -> Tensor:
    """``[heads · rows, front + longest, width]``: each row's own keys or values behind those of trunk and branch."""
    return _gathered(part, group.seen, len(group.lengths)) if group.front else _rows(group, part)


def _gathered(part: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """``[heads, tokens, width] -> [heads · rows, length, width]`` by the tokens of all rows laid end to end."""
    return part.index_select(1, tokens).view(len(part) * rows, -1, part.shape[2])


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """The layout says who sees what."""


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _no_mask)
