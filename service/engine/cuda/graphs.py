"""CUDA graphs for steps that only decode: the thousand small kernels of a pass are launched as one.

A graph replays the same kernels on the same memory, so each is captured for a number of rows (a bucket) over buffers
of its own. A step is copied into the buffers of the smallest bucket that holds it; the rows that are left over write
to the cache's scratch block, see only that, and run under no adapter:

    a step of 5 rows      d0 d1 d2 d3 d4
    the bucket of 8       d0 d1 d2 d3 d4  ·  ·  ·      ·: scratch block, length 1, slot 0

Every bucket is captured twice, with the adapters' kernels and without, so that the bare base does not pay for them.
Steps with a prompt, a text or more rows than the largest bucket run as they are.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from service.engine.attention import AttentionBatch, Span
from service.engine.batch import Batch
from service.engine.cuda.attention import CachedQueries, PagedAttention, Plan
from service.engine.cuda.lora import TileRow, Tiles, Tiling, cut
from service.engine.cuda.paged_cache import PagedKVCache
from service.engine.lora import LoraBatch
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence as EngineSequence

logger = logging.getLogger(__name__)

Outputs = tuple[Tensor, Tensor]
"""Logits of every row ``[size, vocabulary]``, and final hidden states ``[size, hidden]``."""
Forward = Callable[[Batch], tuple[Tensor | None, Tensor]]

_NO_TILE: TileRow = (0, 0, 0)


class Graph(Protocol):
    """Work recorded once and repeated."""

    def capture(self, run: Callable[[], Outputs]) -> Outputs:
        """Record ``run``; what it returns is written anew by every replay."""

    def replay(self) -> None:
        """Do it again."""


class CudaGraph:
    """The part that needs a device."""

    def __init__(self, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool  # of memory, a handle

    def capture(self, run: Callable[[], Outputs]) -> Outputs:
        """Record ``run``, once it has run twice aside: kernels are compiled, libraries have their workspaces."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self._graph, pool=self._pool):
            return run()

    def replay(self) -> None:
        """Launch it."""
        self._graph.replay()


def buckets(largest: int) -> tuple[int, ...]:
    """The numbers of rows that are captured: powers of two, and the largest."""
    sizes = [1]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return tuple(sorted({*sizes, largest}))


class StaticBatch:
    """A batch of ``size`` decode rows whose tensors stay where they are while their values change.

    Args:
        size: Rows.
        adapters: Whether the rows may have some.
        cache: Where keys and values are.
        attention: Told how to compute this batch.
        tiling: Told too, where adapters are computed from tiles.
    """

    def __init__(
        self, size: int, *, adapters: bool, cache: PagedKVCache, attention: PagedAttention, tiling: Tiling | None
    ) -> None:
        device = cache.block_table.device
        width = cache.block_table.shape[1]
        capacity = width * cache.block_tokens
        steps = torch.arange(size + 1, dtype=torch.int32, device=device)
        self.size = size
        self._cache = cache
        self._ids = torch.zeros((1, size), dtype=torch.long, device=device)
        self._positions = torch.zeros((1, size), dtype=torch.long, device=device)
        # One row each: places, rows of the block table, lengths; slot, start and count of tiles. Copied at once.
        self._numbers = torch.zeros((6, size), dtype=torch.long, device=device)
        self._lengths = torch.ones(size, dtype=torch.int32, device=device)
        self._table = torch.zeros((size, width), dtype=torch.int32, device=device)
        self._write([], [])
        spans = [Span(i, i + 1, cache.scratch_row) for i in range(size)]
        attended = AttentionBatch(spans, causal=True, cache=None, backend=attention, device=device)
        queries = CachedQueries(
            None, self._numbers[0], steps, self._lengths, self._table, steps * capacity, 1, capacity
        )
        attention.prepare(attended, Plan(queries, None))
        lora = LoraBatch([], device)
        if adapters and tiling is not None:
            tiling.prepare(lora, Tiles(self._numbers[3:], None))
        self.batch = Batch(
            input_ids=self._ids,
            position_ids=self._positions,
            attention=attended,
            lora=lora,
            sampled=(EngineSequence("graph", [0], sampling=SamplingParams()),),
            sampled_tokens=torch.arange(size, device=device),
            sampled_lora=lora,
            texts=(),
        )

    def fill(self, batch: Batch) -> None:
        """Take a step's values over; the rows beyond them become padding."""
        rows = batch.input_ids.shape[1]
        # What the rows beyond had before are ids and positions as good as any.
        self._ids[:, :rows].copy_(batch.input_ids)
        self._positions[:, :rows].copy_(batch.position_ids)
        self._write(batch.attention.spans, cut(batch.lora.segments))

    def _write(self, spans: Sequence[Span], tiles: Sequence[TileRow]) -> None:
        padding = self.size - len(spans)
        decoding = [(span.row, span.context) for span in spans if span.row is not None]
        places = [place for row, context in decoding for place in self._cache.places(row, context, context + 1)]
        padded = [*tiles, *[_NO_TILE] * (self.size - len(tiles))]
        columns = [
            places + self._cache.scratch_places(padding),
            [row for row, _ in decoding] + [self._cache.scratch_row] * padding,
            [context + 1 for _, context in decoding] + [1] * padding,
            *([tile[i] for tile in padded] for i in range(3)),
        ]
        numbers = torch.tensor(columns, dtype=torch.long, pin_memory=self._numbers.is_cuda)
        self._numbers.copy_(numbers, non_blocking=True)
        self._lengths.copy_(self._numbers[2])
        torch.index_select(self._cache.block_table, 0, self._numbers[1], out=self._table)


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Graph
    static: StaticBatch
    outputs: Outputs
    version: int


class DecodeGraphs:
    """Computes steps that only decode by graphs.

    Args:
        forward: The pass itself, as the runner computes it.
        cache: Where keys and values are.
        attention: The base's attention.
        tiling: The adapters' tiles; None where adapters are not computed from tiles, and then such steps are not ours.
        largest: Most rows of a step.
        version: A number that changes when the pass has other kernels, as when a module gets its first adapter.
        new_graph: Makes an empty graph.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        cache: PagedKVCache,
        attention: PagedAttention,
        tiling: Tiling | None,
        largest: int,
        version: Callable[[], int],
        new_graph: Callable[[], Graph],
    ) -> None:
        self.sizes = buckets(largest)
        self.replays = 0
        self._forward = forward
        self._cache = cache
        self._attention = attention
        self._tiling = tiling
        self._version = version
        self._new_graph = new_graph
        self._captured: dict[tuple[int, bool], _Captured] = {}
        self._possible = True

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every bucket, the largest first, whose memory the others share. Done once, before serving."""
        for adapters in (False, True) if self._tiling is not None else (False,):
            for size in reversed(self.sizes):
                if self._possible:
                    self._graph(size, adapters)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[Tensor | None, Tensor] | None:
        """The pass over a step; None where no graph fits it. What it returns holds until the next call."""
        adapters = bool(batch.lora.segments)
        if not self._fits(batch) or (adapters and self._tiling is None):
            return None
        rows = batch.input_ids.shape[1]
        captured = self._graph(next(size for size in self.sizes if size >= rows), adapters)
        if captured is None:
            return None
        captured.static.fill(batch)
        captured.graph.replay()
        self.replays += 1
        logits, hidden = captured.outputs
        if not batch.sampled:
            return None, hidden[:rows]
        every = len(batch.sampled) == rows
        return logits[:rows] if every else logits[batch.sampled_tokens], hidden[:rows]

    def _fits(self, batch: Batch) -> bool:
        spans = batch.attention.spans
        return (
            self._possible
            and len(spans) <= self.sizes[-1]
            and all(span.row is not None and span.stop - span.start == 1 for span in spans)
        )

    def _graph(self, size: int, adapters: bool) -> _Captured | None:
        captured, version = self._captured.get((size, adapters)), self._version()
        if captured is not None and captured.version == version:
            return captured
        static = StaticBatch(size, adapters=adapters, cache=self._cache, attention=self._attention, tiling=self._tiling)
        graph = self._new_graph()
        try:
            outputs = graph.capture(lambda: self._run(static.batch))
        except RuntimeError as error:
            # An architecture may do what a graph cannot record. It is slower without, but it is served.
            logger.warning("decode steps are computed without CUDA graphs: %s", error)
            self._possible = False
            self._captured.clear()
            return None
        captured = self._captured[size, adapters] = _Captured(graph, static, outputs, version)
        return captured

    def _run(self, batch: Batch) -> Outputs:
        logits, hidden = self._forward(batch)
        assert logits is not None
        return logits, hidden
