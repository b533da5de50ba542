"""Many LoRA adapters over one linear layer on a GPU: the slots' matrices, and which tokens go together.

A step's tokens are ordered by slot. Those with an adapter are cut into tiles of at most ``TILE``, all of one slot:

    tokens     0  1  2  3 │ 4 │ 5 │ 6 … 21 │ 22 … 37 │ 38 39
    slot       0  0  0  0 │ 1 │ 2 │ 3    3 │ 3     3 │ 3   3

so a decode row is a tile of its own and a prompt is many, and one kernel computes both.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from adapters.weights import LoraPair
from service.engine.cuda.upload import upload
from service.engine.lora import LoraBatch, Segment

logger = logging.getLogger(__name__)

COMPILERS = ("gcc", "clang")
"""Which of them Triton looks for."""
TILE = 16
"""Tokens of a tile: the fewest that a matrix instruction takes."""

TileRow = tuple[int, int, int]
"""Slot, first token, number of tokens."""


def triton_computes(device: torch.device) -> bool:
    """Whether adapters are computed by the Triton kernels. Else torch does it.

    They are on a GPU, where Triton is installed and finds a C compiler: with it Triton builds what starts its kernels.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    if not any(map(shutil.which, COMPILERS)):
        logger.warning("adapters are computed by torch: Triton needs a C compiler, and there is no %s", COMPILERS[0])
        return False
    return True


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tokens of a batch that have an adapter, in tiles.

    Shapes:
        table: ``[3, n]``: slot, first token and number of tokens of each tile; without tokens, a tile is not computed
    """

    table: Tensor
    slots: frozenset[int] | None
    """The slots in use; None where only the device knows."""


def cut(segments: Sequence[Segment]) -> list[TileRow]:
    """Cut segments into tiles."""
    return [
        (segment.slot, start, min(TILE, segment.stop - start))
        for segment in segments
        for start in range(segment.start, segment.stop, TILE)
    ]


class Tiling:
    """The tiles of each batch, made once and shared by the tables of all modules."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tiles: WeakKeyDictionary[LoraBatch, Tiles] = WeakKeyDictionary()

    def of(self, batch: LoraBatch) -> Tiles:
        """The tiles of a batch."""
        tiles = self._tiles.get(batch)
        if tiles is None:
            rows = cut(batch.segments)
            columns = [[row[i] for row in rows] for i in range(3)]
            table = torch.stack(upload(columns, self._device))
            tiles = self._tiles[batch] = Tiles(table, frozenset(row[0] for row in rows))
        return tiles

    def prepare(self, batch: LoraBatch, tiles: Tiles) -> None:
        """Have ``batch`` computed by tiles made elsewhere."""
        self._tiles[batch] = tiles


class TritonLoraTable:
    """The A and B matrices of one module for every slot; beyond a slot's rank nothing is read.

    Shapes:
        a: ``[slots + 1, max_rank, in]``
        b: ``[slots + 1, max_rank, out]``, the scaling folded in; this way round, a small rank is one piece of memory
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
        tiling: Tiling,
    ) -> None:
        self.a = torch.zeros((slots + 1, max_rank, in_features), dtype=dtype, device=device)
        self.b = torch.zeros((slots + 1, max_rank, out_features), dtype=dtype, device=device)
        self.ranks = [0] * (slots + 1)
        self._device_ranks = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self._tiling = tiling

    def load(self, slot: int, pair: LoraPair | None) -> None:
        """Put a pair into a slot, or clear it."""
        rank = 0
        if pair is not None:
            rank = pair.a.shape[0]
            self.a[slot, :rank] = pair.a
            self.b[slot, :rank] = pair.b.to(self.b.device).float().T * pair.scaling
        self.ranks[slot] = rank
        self._device_ranks[slot] = rank

    def add(self, y: Tensor, x: Tensor, batch: LoraBatch) -> None:
        """Add every token's low-rank update to ``y`` in place.

        Shapes:
            y: ``[t, out]``
            x: ``[t, in]``
        """
        tiles = self._tiling.of(batch)
        if tiles.slots is not None and not any(self.ranks[slot] for slot in tiles.slots):
            return
        from service.engine.cuda.lora_kernels import add_lora

        # The kernels step through a row one number at a time.
        x = x if x.stride(1) == 1 else x.contiguous()
        add_lora(y, x, a=self.a, b=self.b, ranks=self._device_ranks, tiles=tiles.table)
