"""Keys and values of the running sequences in blocks of a fixed size: a GPU's memory is taken when it is asked for.

    block table       row 0 │ 4 9 2 0 0        blocks  0  scratch: what pads a batch writes here
                      row 1 │ 7 0 0 0 0                2  the third block of row 0
                      …                                4  the first
                scratch row │ 0 0 0 0 0                …

A sequence gets all the blocks that its prompt and its answer may need when it is admitted. So a running sequence never
waits for a block; in return an answer that ends early has held blocks that it did not use.

A full block is never written again. What a finished sequence leaves in its full blocks stays until they are needed, and
a new sequence that begins with the same tokens under the same adapter shares them and computes the rest only.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from math import ceil

import torch
from torch import Tensor

from service.engine.kv_cache import Allocation, Content

BLOCK_TOKENS = 256
"""Tokens of a block: FlashAttention 2, which is the one that torch carries, takes multiples of 256 only."""
SCRATCH = 0
"""The block that no sequence owns."""

Beginning = tuple[Hashable, tuple[int, ...]]
"""What tells a full block from all others: the block before it, or the scope of a first one, and its tokens."""


class PagedKVCache:
    """A pool of blocks for every layer, and who holds which.

    Args:
        layers: Layers of the base.
        rows: Sequences at once.
        blocks: Blocks of the pool, the scratch block included.
        length: The longest sequence, in tokens.
        kv_heads: Key heads, and value heads, of a layer.
        head_dim: Numbers of a head.
        dtype: Of the keys and values.
        device: Where they are.
        reuse: Whether the contents of full blocks outlive their sequences.

    Shapes:
        keys, values: per layer ``[blocks, block_tokens, kv_heads, head_dim]``
        block_table: ``[rows + 1, blocks of the longest sequence]`` int32, scratch where a row holds no block
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        blocks: int,
        length: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        reuse: bool = True,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        shape = (blocks, block_tokens, kv_heads, head_dim)
        # Zeroed, not empty: a masked position is multiplied by 0, and 0 * NaN would be NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.block_table = torch.full(
            (rows + 1, ceil(length / block_tokens)), SCRATCH, dtype=torch.int32, device=device
        )
        self.rows = rows
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._free_rows = list(range(rows - 1, -1, -1))
        self._free_blocks = list(range(blocks - 1, SCRATCH, -1))
        self._held: dict[int, list[int]] = {}
        self._reuse = reuse
        self._users = [0] * blocks
        self._known: dict[Beginning, int] = {}
        self._beginning: dict[int, Beginning] = {}
        # Known blocks that nobody uses, the longest unused first; a block is never there before those that follow it.
        self._kept: OrderedDict[int, None] = OrderedDict()

    @classmethod
    def within(
        cls,
        max_bytes: int,
        *,
        layers: int,
        rows: int,
        length: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        reuse: bool = True,
        block_tokens: int = BLOCK_TOKENS,
    ) -> "PagedKVCache":
        """The cache of at most ``max_bytes`` that serves ``rows`` sequences, and never more blocks than they can hold.

        Raises:
            ValueError: one sequence of ``length`` tokens does not fit.
        """
        block_bytes = 2 * layers * block_tokens * kv_heads * head_dim * dtype.itemsize
        longest = ceil(length / block_tokens)
        blocks = min(max_bytes // block_bytes, 1 + rows * longest)
        if blocks < 1 + longest:
            raise ValueError(
                f"the KV cache of one sequence of {length} tokens takes {(1 + longest) * block_bytes} bytes (blocks of "
                f"{block_tokens} tokens, one to spare), more than kv_cache_bytes ({max_bytes}); raise it or lower "
                "max_model_len"
            )
        return cls(
            layers=layers,
            rows=rows,
            blocks=blocks,
            length=length,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
            reuse=reuse,
            block_tokens=block_tokens,
        )

    @property
    def free(self) -> int:
        """Rows that no sequence holds."""
        return len(self._free_rows)

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free_blocks) + len(self._kept)

    @property
    def scratch_row(self) -> int:
        """The row of the block table that pads a batch."""
        return self.rows

    def fits(self, tokens: int) -> bool:
        """Whether a sequence that comes to ``tokens`` tokens could be taken in now."""
        return bool(self._free_rows) and ceil(tokens / self.block_tokens) <= self.free_blocks

    def allocate(
        self,
        wanted: Content,
        most: int,
        running: Iterable[tuple[int, Content]] = (),
        *,
        tokens: int | None = None,
    ) -> Allocation | None:
        """Take a row and its blocks; None, with nothing taken, where either is missing.

        Args:
            wanted: The sequence's tokens.
            most: How many of them may be reused.
            running: Rows in use. They are not looked at: only of a sequence that has ended is it known to be finite.
            tokens: How many the sequence may come to; as many as a row can hold unless told.
        """
        width = self.block_table.shape[1]
        tokens = width * self.block_tokens if tokens is None else tokens
        needed = ceil(tokens / self.block_tokens)
        assert 0 < needed <= width, f"{tokens} tokens do not fit a row of {width} blocks of {self.block_tokens}"
        if not self.fits(tokens):
            return None
        shared = self._shared(wanted, most)
        for block in shared:
            self._kept.pop(block, None)
        blocks = shared + [self._take() for _ in range(needed - len(shared))]
        for block in blocks:
            self._users[block] += 1
        row = self._free_rows.pop()
        self._held[row] = blocks
        self.block_table[row] = torch.tensor(blocks + [SCRATCH] * (width - needed), dtype=torch.int32)
        return Allocation(row, len(shared) * self.block_tokens)

    def _shared(self, wanted: Content, most: int) -> list[int]:
        """The known blocks that a sequence begins with."""
        found: list[int] = []
        for beginning in self._beginnings(wanted, most, found):
            block = self._known.get(beginning)
            if block is None:
                break
            found.append(block)
        return found

    def _beginnings(self, content: Content, most: int, blocks: list[int]) -> Iterable[Beginning]:
        """What the full blocks of a sequence begin with, each behind the one before it in ``blocks``."""
        size = self.block_tokens
        for i in range(min(most, len(content.tokens)) // size):
            yield (blocks[i - 1] if i else ("first", content.scope)), tuple(content.tokens[i * size : (i + 1) * size])

    def _take(self) -> int:
        """A block that holds nothing; else the one unused for longest, whose content is forgotten."""
        if self._free_blocks:
            return self._free_blocks.pop()
        block, _ = self._kept.popitem(last=False)
        del self._known[self._beginning.pop(block)]
        return block

    def release(self, row: int, content: Content | None = None, *, scrub: int = 0) -> None:
        """Give a row and its blocks back.

        Args:
            row: The row.
            content: What is in it and may be kept; None keeps nothing.
            scrub: Positions to clear, for a sequence that may have computed NaN; others' blocks are not among them.
        """
        blocks = self._held.pop(row)
        if scrub:
            self._scrub(blocks[: ceil(scrub / self.block_tokens)])
        if content is not None and self._reuse:
            self._remember(content, blocks)
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._beginning:
                    self._kept[block] = None
                else:
                    self._free_blocks.append(block)
        self.block_table[row] = SCRATCH
        self._free_rows.append(row)

    def _scrub(self, blocks: list[int]) -> None:
        own = [block for block in blocks if block not in self._beginning]
        for tensor in (*self.keys, *self.values):
            tensor.index_fill_(0, torch.tensor(own, dtype=torch.long, device=tensor.device), 0)

    def _remember(self, content: Content, blocks: list[int]) -> None:
        """Make a sequence's full blocks known, up to the first whose like is known already: no chain has two ends."""
        for beginning, block in zip(self._beginnings(content, len(content.tokens), blocks), blocks, strict=False):
            if self._known.setdefault(beginning, block) != block:
                return
            self._beginning[block] = beginning

    def places(self, row: int, start: int, stop: int) -> list[int]:
        """Where in the pool, counted in tokens, the positions ``start:stop`` of a row are."""
        blocks, size, found = self._held[row], self.block_tokens, list[int]()
        while start < stop:
            block, offset = divmod(start, size)
            count = min(stop - start, size - offset)
            first = blocks[block] * size + offset
            found += range(first, first + count)
            start += count
        return found

    def scratch_places(self, count: int) -> list[int]:
        """Places for tokens that only pad a batch."""
        return [SCRATCH * self.block_tokens + i % self.block_tokens for i in range(count)]

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of ``n`` tokens.

        Shapes:
            places: ``[n]`` int64
            keys, values: ``[n, kv_heads, head_dim]``
        """
        self.keys[layer].flatten(0, 1).index_copy_(0, places, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, places, values)

    def check_integrity(self) -> None:
        """Assert that every row and every block is free or held, and that table, users and beginnings say so too."""
        held = Counter(block for blocks in self._held.values() for block in blocks)
        assert [held[block] for block in range(self.blocks)] == self._users, "blocks are held by others than it is said"
        blocks = sorted([*self._free_blocks, *self._kept, *held])
        assert blocks == list(range(SCRATCH + 1, self.blocks)), "blocks were lost or doubled"
        assert sorted([*self._free_rows, *self._held]) == list(range(self.rows)), "KV rows were lost or doubled"
        assert {block: beginning for beginning, block in self._known.items()} == self._beginning, "a block is misknown"
        assert set(self._kept) <= set(self._beginning), "a block is kept for nothing"
        for before, _ in self._known:
            assert isinstance(before, tuple) or before in self._beginning, "a block follows one that is forgotten"
        for row, entries in enumerate(self.block_table.tolist()):
            blocks = self._held.get(row, [])
            assert entries == blocks + [SCRATCH] * (len(entries) - len(blocks)), f"row {row} of the block table is off"
