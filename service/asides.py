"""Work that the engine process gives itself, in the same batches as everybody's: what a gate wants to know."""

import queue
import time
import uuid
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from service.engine.events import ClassifiedEvent, Event, FailedEvent, FinishedEvent, TokenEvent
from service.engine.sequence import Sequence
from service.errors import DeadlineExceededError
from service.ready import Ready


@dataclass(slots=True)
class Outcome:
    """What became of one sequence."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of the chosen tokens, if the sequence asked for them."""
    reason: str | None = None
    """stop or length, if it generated."""
    values: tuple[float, ...] | None = None
    """Probabilities or a score, if it went through a head."""
    failure: str | None = None
    seconds: float = 0.0
    """From handing over to its last event."""


class Asides:
    """Runs sequences on the engine and waits for them; any thread but the step thread may ask."""

    def __init__(self) -> None:
        self._hand_over: Callable[[Ready], None] | None = None

    def connect(self, hand_over: Callable[[Ready], None]) -> None:
        """Say who takes work for the step thread, once there is one."""
        self._hand_over = hand_over

    def run(self, make: Callable[[str], Many[Sequence]], *, within: float) -> list[Outcome]:
        """Run the sequences that ``make`` builds for a request id, and return what became of each, by index.

        Raises:
            DeadlineExceededError: It took longer than ``within`` seconds.
        """
        assert self._hand_over is not None, "the step thread is there before anybody can ask"
        request_id = f"aside-{uuid.uuid4().hex}"
        sequences = make(request_id)
        outcomes = [Outcome() for _ in sequences]
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        began = time.monotonic()
        self._hand_over(Ready(request_id, sequences, 1, cold=False, sink=events.put))
        owed = len(sequences)
        while owed:
            left = began + within - time.monotonic()
            try:
                event = events.get(timeout=max(left, 0.001))
            except queue.Empty:
                raise DeadlineExceededError(f"The engine did not finish the checks within {within:g} s.") from None
            outcome = outcomes[event.index]
            _take(outcome, event)
            if isinstance(event, FailedEvent):  # takes its whole request with it
                for other in outcomes:
                    other.failure = other.failure or event.message
                return outcomes
            if not isinstance(event, TokenEvent):
                owed -= 1
                outcome.seconds = time.monotonic() - began
        return outcomes


def _take(outcome: Outcome, event: Event) -> None:
    match event:
        case TokenEvent():
            outcome.text += event.text
            outcome.token_ids += event.token_ids
            outcome.logprobs += [one.logprob for one in event.logprobs or ()]
        case FinishedEvent():
            outcome.reason = event.reason
        case ClassifiedEvent():
            outcome.values = event.values
        case FailedEvent():
            outcome.failure = event.message
