"""What a step tells the world. Plain, picklable values: they cross a process border in batches."""

import time
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
Tier = Literal["base", "device", "host"]
"""Where the adapter was when its sequence was admitted: no adapter, in a slot, or in host memory."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One token the model might have chosen, with its log-probability."""

    token_id: int
    token: str
    bytes: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token's log-probability under the model (before penalties and temperature)."""

    token_id: int
    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Newly generated tokens of one sequence.

    ``text`` is whole characters only and never part of a stop string, so it may lag behind the tokens
    and be empty.
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    at: float = 0.0
    """When they were chosen, on the engine's clock."""


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The last event of a sequence that generated."""

    request_id: str
    index: int
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in the KV cache already."""
    completion_tokens: int
    queue_s: float
    tier: Tier
    by_stop_text: bool = False
    """Whether a stop text ended it, rather than an end token or its length."""


@dataclass(frozen=True, slots=True)
class ClassifiedEvent:
    """The only event of a text to classify: its labels' probabilities in their order, or its one score."""

    request_id: str
    index: int
    values: tuple[float, ...]
    prompt_tokens: int
    queue_s: float
    tier: Tier
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it was computed."""


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The last event of a sequence that could not be finished."""

    request_id: str
    index: int
    code: Literal["deadline_exceeded", "non_finite_logits", "adapter_too_large", "engine_failure"]
    message: str


Event = TokenEvent | FinishedEvent | ClassifiedEvent | FailedEvent
