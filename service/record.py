"""What is known of one HTTP request: the one object that reply headers, metrics, logs and traces are made of.

The middleware of `request_log.py` makes it when the request arrives, the exchange fills it in as the engine answers,
and it is read for the last time when the last byte has been sent. All times are on the clock of ``time.monotonic``.
"""

import time
import uuid
from dataclasses import dataclass, field
from urllib.parse import quote

from starlette.types import Scope

from service.engine.events import ClassifiedEvent, FinishedEvent, Tier, TokenEvent
from service.messages import Prepared

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 128
DIGEST_LENGTH = 64


@dataclass(slots=True)
class RequestRecord:
    """One request, as far as it is known."""

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.monotonic)
    prepared: Prepared | None = None
    tier: str | None = None
    """Where the adapter was: device, host, store or base."""
    admitted: float | None = None
    """When the first of its sequences got a place in the batch; known once that sequence is finished."""
    first_token: float | None = None
    last_output: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0

    @property
    def adapter(self) -> str | None:
        """``tenant/name`` of what answered; None for the base, and as long as nothing is known."""
        return self._parts()[0]

    @property
    def digest(self) -> str | None:
        """The version of what answered; None for the base."""
        return self._parts()[1]

    @property
    def queue_s(self) -> float | None:
        """Seconds until it was computed: its adapter read, its prompt rendered, its place in the batch waited for."""
        return None if self.admitted is None else max(0.0, self.admitted - self.began)

    @property
    def compute_s(self) -> float | None:
        """Seconds from there to the last output."""
        if self.admitted is None or self.last_output is None:
            return None
        return max(0.0, self.last_output - self.admitted)

    @property
    def ttft_s(self) -> float | None:
        """Seconds until the first token was chosen."""
        return None if self.first_token is None else max(0.0, self.first_token - self.began)

    def take(self, event: TokenEvent | FinishedEvent | ClassifiedEvent, *, counts_prompt: bool = True) -> None:
        """Note what an event says; the prompt of a further answer to the same prompt does not count again."""
        if isinstance(event, TokenEvent):
            self.first_token = event.at if self.first_token is None else self.first_token
            self.last_output = event.at
            self.generated_tokens += len(event.token_ids)
            return
        assert self.prepared is not None, "what is finished was prepared"
        admitted = self.prepared.at + event.queue_s
        self.admitted = admitted if self.admitted is None else min(self.admitted, admitted)
        self.tier = self._tier(event.tier)
        self.prompt_tokens += event.prompt_tokens * counts_prompt
        if isinstance(event, ClassifiedEvent):
            self.last_output = event.at

    def headers(self, *, whole: bool) -> dict[str, str]:
        """Reply headers: what answered; of a whole answer also what it took, in tokens and milliseconds."""
        if self.prepared is None:
            return {}
        headers = {"x-tenora-adapter": quote(self.prepared.served, safe="/@:+")}
        if self.adapter is not None and self.digest is not None:
            headers |= {"x-tenora-digest": self.digest, "x-adapter-id": quote(self.adapter, safe="/")}
        tier = self._early_tier() if self.tier is None else self.tier
        if tier is not None:
            headers["x-tenora-tier"] = tier
        return headers | (self._costs() if whole else {})

    def _costs(self) -> dict[str, str]:
        queue, compute = self.queue_s or 0.0, self.compute_s or 0.0
        headers = {
            "x-tenora-queue-ms": f"{queue * 1e3:.1f}",
            "x-tenora-compute-ms": f"{compute * 1e3:.1f}",
            "x-prompt-tokens": str(self.prompt_tokens),
            "x-generated-tokens": str(self.generated_tokens),
            "x-total-tokens": str(self.prompt_tokens + self.generated_tokens),
            "x-queue-time": _ms(queue),
            "x-inference-time": _ms(compute),
            "x-total-time": _ms(time.monotonic() - self.began),
        }
        if self.generated_tokens:
            # LoRAX's router and TGI call it by the first name, other parts of LoRAX by the second.
            each = _ms(compute / self.generated_tokens)
            headers |= {"x-time-per-token": each, "x-time-per-output-token": each}
        if self.ttft_s is not None:
            headers["x-time-to-first-token"] = _ms(self.ttft_s)
        return headers

    def _parts(self) -> tuple[str | None, str | None]:
        # A base's id may hold an @ too, but no digest behind it.
        name, _, digest = (self.prepared.served if self.prepared is not None else "").rpartition("@")
        return (name, digest) if len(digest) == DIGEST_LENGTH else (None, None)

    def _tier(self, tier: Tier) -> str:
        return "store" if self.prepared is not None and self.prepared.cold else tier

    def _early_tier(self) -> str | None:
        """What can be said before a sequence is finished."""
        assert self.prepared is not None
        return "store" if self.prepared.cold else "base" if self.adapter is None else None


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request; made now if no middleware has made it."""
    state = scope.setdefault("state", {})
    record: RequestRecord = state.setdefault("record", None) or RequestRecord()
    state["record"] = record
    return record


def request_id_from(value: str | None) -> str:
    """The client's own id if it is printable ASCII of a bearable length, else a new one."""
    sane = value is not None and 0 < len(value) <= MAX_REQUEST_ID and value.isascii() and value.isprintable()
    return value if sane and value is not None else uuid.uuid4().hex


def _ms(seconds: float) -> str:
    return str(round(seconds * 1e3))
