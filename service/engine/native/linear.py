"""Linear layers and their adapters, computed by the CPU kernels."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from adapters.native import library
from adapters.weights import LoraPair
from service.engine.lora import LoraContext, MultiLoraLinear
from service.engine.native.memory import Arena, streamed
from service.engine.native.panels import pack, pack_all, unpack
from service.engine.quantize import Int8Weight, round_weight

_SLOT = np.dtype([("rank", np.int64), ("a", np.uint64), ("b", np.uint64)])


@dataclass(frozen=True, slots=True)
class PackedPair(LoraPair):
    """A pair as the kernels read it: ``a`` and ``b`` in panels, the scaling folded into ``b``."""

    packed_rank: int = 0

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.packed_rank


def pack_pairs(
    pairs: Mapping[str, LoraPair],
    dtype: torch.dtype,
    allocate: Callable[[int, torch.dtype], Tensor] = streamed,
) -> dict[str, LoraPair]:
    """All pairs of an adapter in one buffer of ``dtype`` from ``allocate``; takes a little longer than copying them."""
    if not pairs:
        return {}
    matrices = [matrix for pair in pairs.values() for matrix in (pair.a.to(dtype), _scaled(pair, dtype))]
    parts = pack_all(matrices, lambda count: allocate(count, dtype))
    halves = zip(parts[::2], parts[1::2], strict=True)
    return {
        name: PackedPair(a, b, 1.0, packed_rank=pair.rank)
        for (name, pair), (a, b) in zip(pairs.items(), halves, strict=True)
    }


def _scaled(pair: LoraPair, dtype: torch.dtype) -> Tensor:
    """B times the scaling, rounded once."""
    if pair.scaling == 1.0:
        return pair.b.to(dtype)
    if pair.b.dtype == dtype:  # torch multiplies bfloat16 by a number in float32 too, in a third of the time
        return pair.b * pair.scaling
    return (pair.b.float() * pair.scaling).to(dtype)


class NativeTable:
    """One module's pairs in every adapter slot: addresses only, the matrices stay where they are.

    Args:
        slots: Number of slots.
        module: Told where the addresses are as long as there are any, so that nobody looks for adapters in vain.
    """

    def __init__(self, slots: int, module: library.Module) -> None:
        self._entries = np.zeros(slots + 1, _SLOT)
        self._pairs: list[LoraPair | None] = [None] * (slots + 1)  # keeps alive what the addresses point to
        self._module = module

    def load(self, slot: int, pair: LoraPair | None) -> None:
        """Point a slot at a packed pair, or at nothing."""
        assert pair is None or isinstance(pair, PackedPair), "the kernels read packed pairs"
        self._pairs[slot] = pair
        self._entries[slot] = (0, 0, 0) if pair is None else (pair.rank, pair.a.data_ptr(), pair.b.data_ptr())
        self._module.slots = self._entries.ctypes.data if any(self._pairs) else None


class PackedLinear(nn.Module):
    """A frozen linear layer whose weight lies in panels.

    Args:
        weight: ``[out, in]``; its memory is not needed afterwards.
        bias: ``[out]`` or None.
        int8: Round the weight to int8; x is then rounded to eight bits too, row by row.
        arena: Where the panels go.
    """

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None, *, int8: bool = False, arena: Arena | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.padding = self.in_features % 2 if weight.dtype == torch.bfloat16 else 0  # bfloat16 is read in pairs
        rounded = round_weight(weight) if int8 else None
        self.panels = pack(weight if rounded is None else rounded.values, arena)
        self.scales = None if rounded is None else rounded.scales
        self._sums = None if rounded is None else rounded.sums()
        self.bias = bias
        self._struct = library.Linear(
            n=self.out_features,
            k=self.in_features + self.padding,
            apart=0 if int8 else _apart(self.in_features + self.padding, weight.itemsize),
            weight=self.panels.data_ptr(),
            bias=_address(bias),
            scale=_address(self.scales),
            sums=_address(self._sums),
        )
        self.address = ctypes.addressof(self._struct)
        # Models look at a weight's shape and type; its values nobody can have but through the product.
        self.weight = torch.empty(weight.shape, dtype=weight.dtype, device="meta")

    @property
    def copied_bytes(self) -> int:
        """Bytes that a row of x takes in the copy that the kernels read; 0 where they read x itself."""
        if self.scales is None:
            return int(self._struct.apart) * self.weight.itemsize
        return self.in_features + self.padding + library.ROUNDED_EXTRA

    def dense(self) -> Tensor:
        """The weight that it computes with, ``[out, in]``."""
        weight = unpack(self.panels, self.out_features, self.in_features)
        return weight if self.scales is None else Int8Weight(weight, self.scales).dense()


def _apart(k: int, itemsize: int) -> int:
    """How many values rows of k are to be apart: one cache line further where they would meet in the cache, else 0."""
    return k + library.LINE // itemsize if k * itemsize % library.SAME_SETS == 0 else 0


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class PackedLoraLinear(MultiLoraLinear):
    """A packed linear layer and its adapters in one call of the kernels."""

    base: PackedLinear

    def __init__(self, base: PackedLinear, context: LoraContext, *, slots: int, threads: int) -> None:
        super().__init__(base, context)
        self.struct = library.Module(linear=base.address)
        self.table = NativeTable(slots, self.struct)
        self._address = ctypes.addressof(self.struct)
        self._threads = threads
        self._kernel = library.function("tenora_linear", base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``.

        Raises:
            ValueError: x is of another type than the weights.
        """
        library.check_dtype(x, self.base.weight.dtype)
        x = nn.functional.pad(x, (0, 1)) if self.base.padding else x.contiguous()
        y = x.new_empty((*x.shape[:-1], self.base.out_features))
        total, batch = x.numel() // x.shape[-1], self.context.batch
        copy = torch.empty(total * self.base.copied_bytes, dtype=torch.uint8)
        struct = library.Batch(total=total, threads=self._threads, copy=copy.data_ptr())
        if batch is not None:
            assert total == len(batch.slots), f"{total} rows for a batch of {len(batch.slots)} tokens"
            rows = batch.rows(self._threads)
            struct.rows, struct.row = rows.count, rows.address
        self._kernel(self._address, ctypes.addressof(struct), x.data_ptr(), y.data_ptr())
        return y
