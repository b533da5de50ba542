"""Keys and values of the running sequences: one contiguous row per sequence.

A row reserves the whole context, but the operating system commits a page only when it is written, so a short
sequence costs what it uses. In return decode attention is one batched product over ``[rows, ...]`` views, with
no gather and no block table.

What a finished sequence leaves in its row stays until the row is needed. A new sequence that begins with the same
tokens under the same adapter takes that row and computes the rest only; if the row is still in use, it gets a copy.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from service.engine.memory import zeroed

WORTH_COPYING = 16
"""Tokens of a common beginning below which computing them again is as quick as copying."""


@dataclass(frozen=True, slots=True)
class Content:
    """Tokens whose keys and values lie in a row; ``scope`` is the adapter, and who may share what it computed."""

    scope: Hashable
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A row for a sequence, and how many of its first tokens are in it already."""

    row: int
    reused: int


class Cache(Protocol):
    """What the scheduler asks of a KV cache."""

    rows: int

    @property
    def free(self) -> int:
        """Sequences that could still be taken in."""

    def fits(self, tokens: int) -> bool:
        """Whether a sequence that comes to ``tokens`` tokens could be taken in now."""

    def allocate(
        self,
        wanted: Content,
        most: int,
        running: Iterable[tuple[int, Content]] = (),
        *,
        tokens: int | None = None,
    ) -> Allocation | None:
        """Take a row for a sequence."""

    def release(self, row: int, content: Content | None = None, *, scrub: int = 0) -> None:
        """Give a row back."""

    def check_integrity(self) -> None:
        """Assert that nothing was lost or doubled."""


class KVCache:
    """Rows of keys and values for every layer.

    Args:
        reuse: Whether the contents of rows outlive their sequences.

    Shapes:
        keys, values: per layer ``[rows, kv_heads, length, head_dim]``
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        kv_heads: int,
        length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        reuse: bool = True,
    ) -> None:
        shape = (rows, kv_heads, length, head_dim)
        # Zeroed, not empty: a masked position is multiplied by 0, and 0 * NaN would be NaN.
        self.keys = [zeroed(shape, dtype, device) for _ in range(layers)]
        self.values = [zeroed(shape, dtype, device) for _ in range(layers)]
        self.rows = rows
        self.length = length
        self._reuse = reuse
        self._empty = list(range(rows))
        self._kept: OrderedDict[int, Content] = OrderedDict()  # free rows with contents, the longest unused first
        self._used: set[int] = set()

    @classmethod
    def within(
        cls,
        max_bytes: int,
        *,
        layers: int,
        rows: int,
        kv_heads: int,
        length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        reuse: bool = True,
    ) -> "KVCache":
        """The cache of at most ``max_bytes``, with fewer than ``rows`` rows where they would take more.

        Raises:
            ValueError: one row does not fit.
        """
        row_bytes = 2 * layers * kv_heads * length * head_dim * dtype.itemsize
        if row_bytes > max_bytes:
            raise ValueError(
                f"the KV cache of one sequence of {length} tokens takes {row_bytes} bytes, more than kv_cache_bytes "
                f"({max_bytes}); raise it or lower max_model_len"
            )
        return cls(
            layers=layers,
            rows=min(rows, max_bytes // row_bytes),
            kv_heads=kv_heads,
            length=length,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
            reuse=reuse,
        )

    @property
    def free(self) -> int:
        """Rows that no sequence holds."""
        return len(self._empty) + len(self._kept)

    def fits(self, tokens: int) -> bool:
        """Whether there is a row: each holds the longest sequence."""
        return bool(self.free)

    def allocate(
        self,
        wanted: Content,
        most: int,
        running: Iterable[tuple[int, Content]] = (),
        *,
        tokens: int | None = None,
    ) -> Allocation | None:
        """Take a row for a sequence; None when all are taken.

        Args:
            wanted: The sequence's tokens.
            most: How many of them may be reused.
            running: Rows in use, with what is in them.
            tokens: How many the sequence may come to; a row has room for any.
        """
        if not self.free:
            return None
        source, shared = self._longest(wanted, most, running)
        kept = self._kept.get(source)
        if kept is not None and 2 * shared >= len(kept.tokens):
            del self._kept[source]
            self._used.add(source)
            return Allocation(source, shared)
        row = self._take()
        self._used.add(row)
        if row != source:
            shared = shared if shared >= WORTH_COPYING else 0
            self._copy(source, row, shared)
        return Allocation(row, shared)

    def _longest(self, wanted: Content, most: int, running: Iterable[tuple[int, Content]]) -> tuple[int, int]:
        """The row that begins like the sequence for the most tokens, and for how many; (-1, 0) if none does."""
        if not self._reuse:
            return -1, 0
        alike = (
            (common(content.tokens, wanted.tokens, most), row)
            for row, content in (*self._kept.items(), *running)
            if content.scope == wanted.scope
        )
        shared, row = max(alike, default=(0, -1))
        return (row, shared) if shared else (-1, 0)

    def _take(self) -> int:
        """The lowest row that was never used, so that those in use stay dense; else the one unused for longest."""
        return self._empty.pop(0) if self._empty else self._kept.popitem(last=False)[0]

    def _copy(self, source: int, target: int, tokens: int) -> None:
        if tokens:
            for tensor in (*self.keys, *self.values):
                tensor[target, :, :tokens] = tensor[source, :, :tokens]

    def release(self, row: int, content: Content | None = None, *, scrub: int = 0) -> None:
        """Give a row back.

        Args:
            row: The row.
            content: What is in it and may be kept; None keeps nothing.
            scrub: Positions to clear, for a sequence that may have computed NaN.
        """
        self._used.remove(row)
        if scrub:
            for tensor in (*self.keys, *self.values):
                tensor[row, :, :scrub].zero_()
        if content is not None and content.tokens and self._reuse:
            self._kept[row] = content
        else:
            self._empty.append(row)
            self._empty.sort()

    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of ``n`` tokens.

        Shapes:
            rows, positions: ``[n]``
            keys, values: ``[n, kv_heads, head_dim]``
        """
        self.keys[layer][rows, :, positions] = keys
        self.values[layer][rows, :, positions] = values

    def check_integrity(self) -> None:
        """Assert that every row is either free or in use, once."""
        rows = sorted([*self._empty, *self._kept, *self._used])
        assert rows == list(range(self.rows)), "KV rows were lost or doubled"


def common(left: Sequence[int], right: Sequence[int], most: int) -> int:
    """How many first elements two sequences share, at most ``most``."""
    low, high = 0, min(len(left), len(right), most)
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
