"""How many threads compute must not show."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_same_with_threads(compute: Callable[[], Sequence[Tensor]]) -> None:
    """With one, two and three threads the same bits."""
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(compute())
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
