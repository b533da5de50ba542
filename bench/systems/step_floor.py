"""An engine and its floor in one process, so that both have the same threads and the same neighbours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.floor import Floor
from bench.systems.tenora_engine import TenoraEngine


class StepAndFloor(TenoraEngine):
    """An engine that also knows what its steps cannot be faster than."""

    def __init__(self, *, base: str, adapters: Sequence[Path], rows: int, **config: Any) -> None:
        super().__init__(base=base, adapters=adapters, **config)
        shapes = list(self.source.linear_shapes().values())
        self._floor = Floor(shapes, rows, self.engine.base.model.dtype)

    def sizes(self) -> dict[str, int]:
        """Bytes that a step has to read."""
        return {"weights": self._floor.weight_bytes, "adapters": self.adapter_bytes()}

    def linears_ms(self) -> dict[str, float]:
        """Milliseconds of the base's linears alone, each way."""
        return self._floor.linears_ms()

    def bandwidth(self) -> float:
        """Bytes a second."""
        return self._floor.bandwidth()
