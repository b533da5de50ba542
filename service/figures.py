"""The figures of one version of a split, as they are counted, judged and shown."""

from collections import Counter, deque
from dataclasses import dataclass, field

KEPT = 1000
"""Requests of a version whose times are kept, the newest."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A request that was answered, or failed by no fault of its client's. All in seconds."""

    at: float
    total: float
    ttft: float | None = None
    failed: bool = False
    cold: bool = False
    """Whether its adapter had to be read from the store, which says nothing about the version."""


@dataclass(slots=True)
class Row:
    """One version's figures; all of them only grow, but for the newest samples."""

    requests: int = 0
    aborted: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    """Answers by what ended them."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    compared: int = 0
    equal: int = 0
    dropped: int = 0
    """Requests that were not run, as there was too much else to do; shadows only."""
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))

    def copy(self) -> "Row":
        """The figures as they are now."""
        return Row(
            self.requests, self.aborted, self.errors.copy(), self.finished.copy(), self.prompt_tokens,
            self.generated_tokens, self.compared, self.equal, self.dropped, self.samples.copy(),
        )  # fmt: skip
