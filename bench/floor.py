"""What a step cannot be faster than: its matrix products alone, and its bytes at the speed of memory."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

BUFFER_BYTES = 1 << 29
"""Much larger than any cache."""


class Floor:
    """The linears of a base with random weights, and the ways that torch has to multiply by them.

    Args:
        shapes: (in, out) of every linear, each once a step.
        rows: Rows of a step.
        dtype: Of the weights.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], rows: int, dtype: torch.dtype) -> None:
        inputs = {size: torch.randn(rows, size).to(dtype) for size in {shape[0] for shape in shapes}}
        self._pairs = [(inputs[i], torch.empty(o, i, dtype=dtype).normal_(0, 0.02)) for i, o in shapes]
        self.weight_bytes = sum(weight.nbytes for _, weight in self._pairs)
        self._packed = self._pack(rows)
        self._buffer = torch.ones(BUFFER_BYTES // 4)

    def ways(self) -> dict[str, Callable[[], None]]:
        """Each way to compute all linears once, by its name."""
        found: dict[str, Callable[[], None]] = {"torch linear": self._plain}
        if self._packed is not None:
            found["oneDNN, weights packed"] = self._prepacked
        return found

    def linears_ms(self) -> dict[str, float]:
        """Milliseconds that all linears take, each way."""
        with torch.inference_mode():
            return {name: _time(way) for name, way in self.ways().items()}

    def bandwidth(self) -> float:
        """Bytes a second that all threads read together; the fastest of several ways to read."""
        bits = self._buffer.view(torch.int32)
        half = self._buffer.view(torch.bfloat16).view(-1, 4096)
        vector = torch.ones(1, 4096, dtype=torch.bfloat16)
        ways: tuple[Callable[[], Tensor], ...] = (
            self._buffer.sum,
            self._buffer.max,
            bits.max,
            lambda: functional.linear(vector, half),
        )
        with torch.inference_mode():
            return max(BUFFER_BYTES / (_time(way, 3) / 1e3) for way in ways)

    def _plain(self) -> None:
        for x, weight in self._pairs:
            functional.linear(x, weight)

    def _prepacked(self) -> None:
        assert self._packed is not None
        for x, weight in self._packed:
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    def _pack(self, rows: int) -> list[tuple[Tensor, Tensor]] | None:
        try:
            return [(x, torch.ops.mkldnn._reorder_linear_weight(weight, rows)) for x, weight in self._pairs]
        except (RuntimeError, AttributeError):
            return None  # this build of torch, or this processor, has no oneDNN for the type


def _time(work: Callable[[], object], repeats: int = 7) -> float:
    """Median milliseconds, the first time left out."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken[1:])
