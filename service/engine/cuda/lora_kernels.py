# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
"""The two products of a batch of adapters, in Triton: down to the rank (shrink), and up again (expand).

A tile is up to ``TILE`` consecutive tokens under one adapter. Both kernels take the tiles from a table on the device,
so a captured CUDA graph serves any mix of adapters; a tile without tokens, or whose slot holds nothing, ends at once.

Shrink divides a row's features into splits, so that few tokens still keep many processors busy, and writes each split's
part of the result; expand adds the parts up. No atomics, and no constant depends on the batch: a token's result is the
same, bit for bit, whatever else is computed beside it.

Import this module only where Triton is installed. With ``TRITON_INTERPRET=1`` in the environment it runs on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.cuda.lora import TILE

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_FEATURES = 128
"""Features that a program takes at a time: of the input in shrink, of the output in expand."""
_SPLIT_FEATURES = 512
_SPLITS = 8
"""Parts of a row at most; each has at least so many features."""
_RANKS = 64
"""Rank that a program computes at once, at most."""


@triton.jit
def _shrink(  # noqa: PLR0917 (a kernel's arguments are positions)
    x, a, ranks, tiles, parts, tile_count, tokens, in_features, max_rank, x_stride,
    tile: tl.constexpr, features: tl.constexpr, split_features: tl.constexpr, rank_block: tl.constexpr,
    dot: tl.constexpr,
):  # fmt: skip
    which, split, first = tl.program_id(0), tl.program_id(1), tl.program_id(2) * rank_block
    slot = tl.load(tiles + which).to(tl.int64)
    start = tl.load(tiles + tile_count + which)
    count = tl.load(tiles + 2 * tile_count + which)
    rank = tl.load(ranks + slot)
    if (count == 0) | (first >= rank):
        return
    rows = start + tl.arange(0, tile)
    here = tl.arange(0, tile) < count
    r = first + tl.arange(0, rank_block)
    part = tl.full((tile, rank_block), 0.0, tl.float32)
    for offset in range(0, split_features, features):
        f = split * split_features + offset + tl.arange(0, features)
        inside = f < in_features
        xs = tl.load(x + rows[:, None].to(tl.int64) * x_stride + f[None, :], here[:, None] & inside[None, :], 0.0)
        at = (slot * max_rank + r[None, :]) * in_features + f[:, None]
        weights = tl.load(a + at, (r < rank)[None, :] & inside[:, None], 0.0)
        part += tl.dot(xs.to(dot), weights.to(dot), input_precision="ieee")
    at = (split * tokens + rows[:, None]).to(tl.int64) * max_rank + r[None, :]
    tl.store(parts + at, part, here[:, None] & (r < rank)[None, :])


@triton.jit
def _expand(  # noqa: PLR0917
    y, b, ranks, tiles, parts, tile_count, tokens, out_features, max_rank, y_stride,
    tile: tl.constexpr, features: tl.constexpr, splits: tl.constexpr, rank_block: tl.constexpr, dot: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0)
    slot = tl.load(tiles + which).to(tl.int64)
    start = tl.load(tiles + tile_count + which)
    count = tl.load(tiles + 2 * tile_count + which)
    rank = tl.load(ranks + slot)
    if (count == 0) | (rank == 0):
        return
    rows = start + tl.arange(0, tile)
    here = tl.arange(0, tile) < count
    f = tl.program_id(1) * features + tl.arange(0, features)
    inside = f < out_features
    update = tl.full((tile, features), 0.0, tl.float32)
    for first in range(0, rank, rank_block):
        r = first + tl.arange(0, rank_block)
        low = tl.full((tile, rank_block), 0.0, tl.float32)
        for split in range(splits):
            at = (split * tokens + rows[:, None]).to(tl.int64) * max_rank + r[None, :]
            low += tl.load(parts + at, here[:, None] & (r < rank)[None, :], 0.0)
        at = (slot * max_rank + r[:, None]) * out_features + f[None, :]
        weights = tl.load(b + at, (r < rank)[:, None] & inside[None, :], 0.0)
        update += tl.dot(low.to(dot), weights.to(dot), input_precision="ieee")
    at = rows[:, None].to(tl.int64) * y_stride + f[None, :]
    mask = here[:, None] & inside[None, :]
    old = tl.load(y + at, mask, 0.0)
    tl.store(y + at, (old.to(tl.float32) + update).to(y.dtype.element_ty), mask)


def add_lora(y: Tensor, x: Tensor, *, a: Tensor, b: Tensor, ranks: Tensor, tiles: Tensor) -> None:
    """Add ``x @ A[slot].T @ B[slot]`` to every token of the tiles, in place, accumulating in float32.

    Shapes:
        y: ``[t, out]``
        x: ``[t, in]``
        a: ``[slots + 1, max_rank, in]``
        b: ``[slots + 1, max_rank, out]``
        ranks: ``[slots + 1]`` int32
        tiles: ``[3, n]`` int32 or int64: slot, first token and number of tokens of each
    """
    tokens, in_features = x.shape
    max_rank, out_features = b.shape[1:]
    count = tiles.shape[1]
    split_features = max(_SPLIT_FEATURES, _FEATURES * triton.cdiv(in_features, _SPLITS * _FEATURES))
    splits = triton.cdiv(in_features, split_features)
    rank_block = min(_RANKS, max(TILE, triton.next_power_of_2(max_rank)))
    parts = x.new_empty((splits, tokens, max_rank), dtype=torch.float32)
    # On a CPU there is only the interpreter, which multiplies the bits of bfloat16 as if they were integers.
    dot = _TYPES[x.dtype] if x.is_cuda else tl.float32
    _shrink[(count, splits, triton.cdiv(max_rank, rank_block))](
        x, a, ranks, tiles, parts, count, tokens, in_features, max_rank, x.stride(0),
        tile=TILE, features=_FEATURES, split_features=split_features, rank_block=rank_block, dot=dot,
    )  # fmt: skip
    _expand[(count, triton.cdiv(out_features, _FEATURES))](
        y, b, ranks, tiles, parts, count, tokens, out_features, max_rank, y.stride(0),
        tile=TILE, features=_FEATURES, splits=splits, rank_block=rank_block, dot=dot,
    )  # fmt: skip
