"""Systems take a step each on the same batch, A B C A B C …"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Step = Callable[[Sequence[Any]], float]


def take_turns(systems: Mapping[str, Step], batches: Sequence[Sequence[Any]]) -> dict[str, list[float]]:
    """Seconds of each system's steps, without its step on the first batch, which warms it."""
    seconds: dict[str, list[float]] = {key: [] for key in systems}
    for batch in batches:
        for key, step in systems.items():
            began = time.perf_counter()
            step(batch)
            seconds[key].append(time.perf_counter() - began)
    return {key: taken[1:] for key, taken in seconds.items()}


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """How many times longer the one took, batch by batch."""
    return [one / other for one, other in zip(slower, faster, strict=True)]
