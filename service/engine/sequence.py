"""A sequence: the one object that carries a request's work through the engine."""

import time
from collections.abc import Sequence as Tokens

from adapters.adapter import Adapter
from service.engine.events import Tier
from service.engine.kv_cache import Content
from service.engine.sampling import SamplingParams


class Sequence:
    """One prompt to continue, or one text to classify, with the adapter it runs under.

    The adapter has been read and checked before the sequence is made; None is the base itself. What can be
    derived is derived: the stored state is the tokens, how many of them have been computed, and what the
    sequence holds (a KV row, a pinned adapter slot).
    """

    __slots__ = (
        "adapter", "admitted_at", "arrived_at", "computed", "deadline", "index", "place", "preempted", "priority",
        "prompt_tokens", "request_id", "reused", "row", "sampling", "scope", "share", "slot", "tier", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        prompt_ids: Tokens[int],
        *,
        index: int = 0,
        adapter: Adapter | None = None,
        sampling: SamplingParams | None = None,
        deadline: float | None = None,
        scope: str = "",
        share: float = 1.0,
        priority: int = 0,
    ) -> None:
        """Make a waiting sequence.

        Args:
            request_id: The request it belongs to; unique together with ``index``.
            prompt_ids: The prompt, or the text to classify; at least one token.
            index: Its place among the request's sequences.
            adapter: The adapter it runs under, or None for the base.
            sampling: How to generate; None classifies.
            deadline: When to give up, on the clock of ``time.monotonic``.
            scope: Whose it is: a tenant. Turns are taken between tenants, and only the same one may see by its speed
                that a prompt was computed before.
            share: How much service its tenant is due, relative to the other tenants.
            priority: Its place among the same tenant's sequences, lower first; other tenants never notice.
        """
        if not prompt_ids:
            raise ValueError("a sequence needs at least one token")
        if not share > 0:
            raise ValueError(f"a share must be more than 0, not {share}")
        self.request_id = request_id
        self.index = index
        self.adapter = adapter
        self.sampling = sampling
        self.deadline = deadline
        self.scope = scope
        self.share = share
        self.priority = priority
        self.tokens = list(prompt_ids)
        self.prompt_tokens = len(self.tokens)
        self.computed = 0
        """Tokens whose keys and values are in the cache."""
        self.reused = 0
        """Tokens of the prompt that were in the cache already."""
        self.row: int | None = None
        self.slot = 0
        self.tier: Tier = "base"
        self.place = 0
        """Its place in the order of arrival, given by the scheduler."""
        self.preempted = 0
        """How often it had to give up its row and wait again."""
        self.arrived_at = time.monotonic()
        self.admitted_at = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """What tells it apart from every other sequence in the engine."""
        return self.request_id, self.index

    @property
    def classifies(self) -> bool:
        """Whether it wants label probabilities instead of tokens."""
        return self.sampling is None

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters of a sequence that generates."""
        assert self.sampling is not None, "a text to classify has no sampling parameters"
        return self.sampling

    @property
    def pending(self) -> int:
        """Tokens still to be computed: 1 while decoding, more during prefill."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether the prompt has been computed and tokens are being generated."""
        return len(self.tokens) > self.prompt_tokens

    @property
    def order(self) -> tuple[int, int]:
        """Its order among the sequences of its tenant that wait."""
        return self.priority, self.place

    @property
    def wanted(self) -> Content:
        """What its cache row is to hold."""
        return Content(self._cached_under, self.tokens)

    @property
    def content(self) -> Content:
        """What its cache row holds now."""
        return Content(self._cached_under, self.tokens[: self.computed])

    @property
    def _cached_under(self) -> tuple[str, str | None]:
        """All that keys and values depend on beside the tokens, and who may share them."""
        return self.scope, self.adapter.digest if self.adapter is not None else None

    @property
    def completion(self) -> list[int]:
        """The tokens generated so far."""
        return self.tokens[self.prompt_tokens :]

    @property
    def completion_tokens(self) -> int:
        """How many tokens have been generated."""
        return len(self.tokens) - self.prompt_tokens

    def __repr__(self) -> str:
        task = "classify" if self.classifies else "generate"
        return f"Sequence({self.request_id}/{self.index} {task} {self.computed}/{len(self.tokens)})"
