"""Work for the step thread: a request as sequences."""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from service.comparison import Part
from service.engine.events import Event
from service.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Ready:
    """A prepared request: what the engine has to run for it."""

    request_id: str
    sequences: Many[Sequence]
    answers: int
    """How many of them answer one and the same prompt."""
    cold: bool
    """Whether its adapter was read from the store for it."""
    part: Part | None = None
    """What it counts as, if its adapter's requests are split between versions."""
    sink: Callable[[Event], None] | None = None
    """Takes the events of work that no client asked for, on the step thread."""
    charged: bool = True
    """Whether it is somebody's use."""
