"""One thing to measure."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.context import Bench


@dataclass(frozen=True, slots=True)
class Section:
    """Measures something and tells the bench's report.

    ``ratios`` are those that it fills in; a quick run leaves out a section that is not ``quick``.
    """

    name: str
    about: str
    run: Callable[[Bench], None]
    ratios: tuple[str, ...] = ()
    quick: bool = False
