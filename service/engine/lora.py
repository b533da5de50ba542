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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.weights import LoraPair
from service.engine.memory import zeroed

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
class LoraBatch:
    """Which adapter each token of a batch runs under. Without adapters both parts are empty."""

    wide: tuple[Segment, ...]
    narrow: NarrowSegments | None

    @classmethod
    def of(cls, slots: Sequence[int], device: torch.device) -> "LoraBatch":
        """Group the tokens of a batch, given the slot of each in ascending order."""
        segments = [segment for segment in _segments(slots) if segment.slot]
        narrow = [segment for segment in segments if segment.stop - segment.start <= NARROW]
        if len(narrow) < 2:
            return cls(tuple(segments), None)
        wide = tuple(segment for segment in segments if segment.stop - segment.start > NARROW)
        return cls(wide, _pad(narrow, device))


def _segments(slots: Sequence[int]) -> Iterator[Segment]:
    start = 0
    for token in range(1, len(slots) + 1):
        if token == len(slots) or slots[token] != slots[start]:
            assert token == len(slots) or slots[token] > slots[start], "tokens must be ordered by slot"
            yield Segment(slots[start], start, token)
            start = token


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


class MultiLoraLinear(nn.Module):
    """A frozen linear layer (``nn.Linear`` or GPT-2's ``Conv1D``) under many adapters."""

    def __init__(self, base: nn.Module, context: LoraContext) -> None:
        super().__init__()
        self.base = base
        self.context = context
        self.table: LoraTable | None = None

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
    """The slots' weights over all target modules of a base."""

    def __init__(
        self,
        linears: Mapping[str, MultiLoraLinear],
        shapes: Mapping[str, tuple[int, int]],
        *,
        slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.linears = linears
        self.shapes = shapes
        self.slots = slots
        self.max_rank = max_rank
        self.dtype = dtype
        self.device = device
        self.loads = 0

    def load(self, slot: int, pairs: Mapping[str, LoraPair]) -> None:
        """Copy an adapter's matrices into a slot, over whatever was there."""
        assert 0 < slot <= self.slots, f"slot {slot} is not one of 1..{self.slots}"
        for name, linear in self.linears.items():
            pair = pairs.get(name)
            if linear.table is None:
                if pair is None:
                    continue
                linear.table = self._new_table(name)
            linear.table.load(slot, pair)
        self.loads += 1

    def _new_table(self, name: str) -> LoraTable:
        # Made when the first adapter targets the module: most never touch, say, the vocabulary's projection.
        in_features, out_features = self.shapes[name]
        return LoraTable(
            slots=self.slots,
            max_rank=self.max_rank,
            in_features=in_features,
            out_features=out_features,
            dtype=self.dtype,
            device=self.device,
        )
