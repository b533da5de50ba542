"""Keys and values of the running sequences: one contiguous row per sequence.

A row reserves the whole context, but the operating system commits a page only when it is written, so a short
sequence costs what it uses. In return decode attention is one batched product over ``[rows, ...]`` views, with
no gather and no block table.
"""

import torch
from torch import Tensor

from service.engine.memory import zeroed


class KVCache:
    """Rows of keys and values for every layer.

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
    ) -> None:
        shape = (rows, kv_heads, length, head_dim)
        # Zeroed, not empty: a masked position is multiplied by 0, and 0 * NaN would be NaN.
        self.keys = [zeroed(shape, dtype, device) for _ in range(layers)]
        self.values = [zeroed(shape, dtype, device) for _ in range(layers)]
        self.rows = rows
        self._free = list(range(rows))
        self._used: set[int] = set()

    @property
    def free(self) -> int:
        """Rows that no sequence holds."""
        return len(self._free)

    def allocate(self) -> int | None:
        """Take the lowest free row, so that the rows in use stay a dense block; None when all are taken."""
        if not self._free:
            return None
        row = self._free.pop(0)
        self._used.add(row)
        return row

    def release(self, row: int, *, scrub: int = 0) -> None:
        """Give a row back; ``scrub`` clears so many positions, for a sequence that may have computed NaN."""
        self._used.remove(row)
        if scrub:
            for tensor in (*self.keys, *self.values):
                tensor[row, :, :scrub].zero_()
        self._free.append(row)
        self._free.sort()

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
        assert sorted([*self._free, *self._used]) == list(range(self.rows)), "KV rows were lost or doubled"
