"""Many LoRA adapters over one frozen linear layer, in one batch.

Every target module of the base is replaced by a :class:`MultiLoraLinear`, which computes

    y[t] = base(x[t]) + B[slot(t)] @ A[slot(t)] @ x[t]

for all tokens ``t`` of the batch, each under its own adapter's slot. The base's weights are never written.

The tokens of a batch are ordered by slot, so an adapter's tokens are one contiguous segment. A wide segment (a
prompt, a text) is two products of its own; the narrow ones (decode rows) are padded to the widest of them and
share two batched products:

    tokens     0  1  2  3 | 4 | 5 | 6 ... 70
    slot       0  0  0  0 | 1 | 2 | 3 ... 3
                          └─┬─┘   └─ wide: x @ A[3].T @ B[3].T
                            └─ narrow: bmm over slots [1, 2]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from adapters.weights import LoraPair
from service.engine.memory import zeroed

TILE = 16
"""Tokens that the CPU kernels compute together, at most (kernels.c)."""
NARROW = 8
"""Segments of at most this many tokens are padded together; wider ones would waste more than they save."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens ``start:stop`` of a batch, all under the adapter in ``slot``."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class NarrowSegments:
    """The narrow segments of a batch, padded to a rectangle.

    Shapes:
        slots: ``[s]``
        index: ``[s, m]`` token of each cell; padding repeats the segment's first token
        rows, cells: ``[n]`` the tokens, and the flat cells of ``index`` that hold them
    """

    slots: Tensor
    index: Tensor
    rows: Tensor
    cells: Tensor
    slot_list: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Work items of the CPU kernels: an int64 array ``[count, 3]`` of slot, first and last + 1 token of each."""

    items: np.ndarray
    address: int
    count: int


class LoraBatch:
    """Which adapter each token of a batch runs under, as the different ways to compute it want to have it.

    Args:
        slots: The slot of each token, in ascending order; 0 for none.
    """

    def __init__(self, slots: Sequence[int], device: torch.device) -> None:
        self._device = device
        self._rows: Rows | None = None
        self.slots = slots
        self.segments = tuple(segment for segment in _segments(slots) if segment.slot)

    @cached_property
    def wide(self) -> tuple[Segment, ...]:
        """Segments that are multiplied on their own."""
        return tuple(segment for segment in self.segments if segment not in self._narrow)

    @cached_property
    def narrow(self) -> NarrowSegments | None:
        """The other segments, which share their products; None if there are none."""
        return _pad(self._narrow, self._device) if self._narrow else None

    @cached_property
    def _narrow(self) -> list[Segment]:
        narrow = [segment for segment in self.segments if segment.stop - segment.start <= NARROW]
        return narrow if len(narrow) > 1 else []

    @cached_property
    def token_slots(self) -> Tensor:
        """``[t]`` int32, the slot of each token."""
        return torch.tensor(self.slots, dtype=torch.int32, device=self._device)

    def rows(self, threads: int) -> Rows:
        """Pieces of the segments, small enough that every thread gets some."""
        if self._rows is None:
            self._rows = _work_items(self.segments, threads)
        return self._rows


def _segments(slots: Sequence[int]) -> Iterator[Segment]:
    start = 0
    for token in range(1, len(slots) + 1):
        if token == len(slots) or slots[token] != slots[start]:
            assert token == len(slots) or slots[token] > slots[start], "tokens must be ordered by slot"
            yield Segment(slots[start], start, token)
            start = token


def _work_items(segments: Sequence[Segment], threads: int) -> Rows:
    tokens = sum(segment.stop - segment.start for segment in segments)
    most = min(TILE, max(1, tokens // threads))
    items = [
        (segment.slot, start, min(start + most, segment.stop))
        for segment in segments
        for start in range(segment.start, segment.stop, most)
    ]
    array = np.array(items, dtype=np.int64).reshape(-1, 3)
    return Rows(array, array.ctypes.data, len(array))


def _pad(segments: Sequence[Segment], device: torch.device) -> NarrowSegments:
    width = max(segment.stop - segment.start for segment in segments)
    index: list[list[int]] = []
    rows: list[int] = []
    cells: list[int] = []
    for s, segment in enumerate(segments):
        tokens = list(range(segment.start, segment.stop))
        index.append(tokens + [segment.start] * (width - len(tokens)))
        rows += tokens
        cells += range(s * width, s * width + len(tokens))
    slots = [segment.slot for segment in segments]
    return NarrowSegments(
        slots=torch.tensor(slots, device=device),
        index=torch.tensor(index, device=device),
        rows=torch.tensor(rows, device=device),
        cells=torch.tensor(cells, device=device),
        slot_list=tuple(slots),
    )


class LoraContext:
    """The batch that the linears of one engine work on now; ``None`` outside a step."""

    __slots__ = ("batch",)

    def __init__(self) -> None:
        self.batch: LoraBatch | None = None

    @contextmanager
    def of(self, batch: LoraBatch) -> Iterator[None]:
        """Make ``batch`` the one that is worked on."""
        self.batch = batch
        try:
            yield
        finally:
            self.batch = None


class LoraTable:
    """The A and B matrices of one module for every slot; zero where a slot's adapter has none.

    Shapes:
        a: ``[slots + 1, max_rank, in]``
        b: ``[slots + 1, out, max_rank]``, the scaling folded in
    """

    def __init__(
        self,
        *,
        slots: int,
        max_rank: int,
        in_features: int,
        out_features: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.a = zeroed((slots + 1, max_rank, in_features), dtype, device)
        self.b = zeroed((slots + 1, out_features, max_rank), dtype, device)
        self.ranks = [0] * (slots + 1)

    def load(self, slot: int, pair: LoraPair | None) -> None:
        """Put a pair into a slot, or clear it; beyond a slot's rank everything stays zero."""
        rank, stale = 0, self.ranks[slot]
        if pair is not None:
            rank = pair.a.shape[0]
            self.a[slot, :rank] = pair.a
            self.b[slot, :, :rank] = pair.b.float() * pair.scaling
        if rank < stale:
            self.a[slot, rank:stale].zero_()
            self.b[slot, :, rank:stale].zero_()
        self.ranks[slot] = rank

    def add(self, y: Tensor, x: Tensor, batch: LoraBatch) -> None:
        """Add every token's low-rank update to ``y`` in place.

        Shapes:
            y: ``[t, out]``
            x: ``[t, in]``
        """
        for segment in batch.wide:
            if rank := self.ranks[segment.slot]:
                rows = slice(segment.start, segment.stop)
                a, b = self.a[segment.slot, :rank], self.b[segment.slot, :, :rank]
                y[rows] += (x[rows] @ a.T) @ b.T
        if batch.narrow is not None:
            self._add_narrow(y, x, batch.narrow)

    def _add_narrow(self, y: Tensor, x: Tensor, narrow: NarrowSegments) -> None:
        rank = max(self.ranks[slot] for slot in narrow.slot_list)
        if not rank:
            return
        a = self.a[narrow.slots, :rank]
        b = self.b[narrow.slots, :, :rank]
        update = torch.bmm(torch.bmm(x[narrow.index], a.mT), b.mT)
        y.index_add_(0, narrow.rows, update.flatten(0, 1)[narrow.cells])


@runtime_checkable
class Packed(Protocol):
    """A linear layer whose weight is not kept as it came."""

    def dense(self) -> Tensor:
        """The weight as it came, ``[out, in]``."""


class Table(Protocol):
    """One module's matrices in every adapter slot."""

    def load(self, slot: int, pair: LoraPair | None) -> None:
        """Put a pair into a slot, or clear it."""


class MultiLoraLinear(nn.Module):
    """A frozen linear layer (``nn.Linear`` or GPT-2's ``Conv1D``) under many adapters."""

    def __init__(self, base: nn.Module, context: LoraContext, new_table: Callable[[], "Table"] | None = None) -> None:
        super().__init__()
        self.base = base
        self.context = context
        self.table: Any = None
        """The module's :class:`Table`, of the kind that ``forward`` works with."""
        self._new_table = new_table

    def reserve(self) -> None:
        """Make the table before an adapter targets the module."""
        if self.table is None and self._new_table is not None:
            self.table = self._new_table()

    def load(self, slot: int, pair: LoraPair | None) -> None:
        """Put an adapter's pair for this module into a slot; None if it has none."""
        if pair is not None:
            # Made when the first adapter targets the module: most never touch, say, the vocabulary's projection.
            self.reserve()
        if self.table is not None:
            self.table.load(slot, pair)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``, each token under the adapter of its slot."""
        y: Tensor = self.base(x)
        batch = self.context.batch
        if self.table is not None and batch is not None:
            self.table.add(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), batch)
        return y

    def __getattr__(self, name: str) -> Any:
        # Models look at their linears' weights (`self.lm_head.weight`, `self.fc2.weight.dtype`).
        if name in ("weight", "bias", "in_features", "out_features"):
            return getattr(super().__getattr__("base"), name)
        return super().__getattr__(name)


class LoraBank:
    """The slots' weights over all target modules of a base.

    Args:
        linears: The modules, by name.
        slots: Number of adapter slots.
        pack: Lays an adapter's pairs out as the modules want them; may be called from any thread.
    """

    def __init__(
        self,
        linears: Mapping[str, MultiLoraLinear],
        *,
        slots: int,
        pack: Callable[[Mapping[str, LoraPair]], Mapping[str, LoraPair]],
    ) -> None:
        self.linears = linears
        self.slots = slots
        self.pack = pack
        self.loads = 0

    def load(self, slot: int, pairs: Mapping[str, LoraPair]) -> None:
        """Put an adapter's matrices into a slot, over whatever was there."""
        assert 0 < slot <= self.slots, f"slot {slot} is not one of 1..{self.slots}"
        pairs = self.pack(pairs)
        for name, linear in self.linears.items():
            linear.load(slot, pairs.get(name))
        self.loads += 1
