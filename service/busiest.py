"""Counts per tenant and adapter for `/metrics`, of the busiest pairs only: a label must not grow with the tenants.

At most ``limit`` pairs have series of their own; everything else is counted together under ``other``. Who is busy is a
score that halves every ten minutes. A pair that becomes busier than the least busy one takes its place: what the
leaving pair counted moves into ``other``, and the new one begins at zero, as its past is in ``other`` already. So
nothing is counted twice, and neither ``other`` nor the sum over all series ever falls.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

Pair = tuple[str, str]
OTHER: Pair = ("other", "other")
TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
HALF_LIFE_S = 600.0
LEAD = 1.25
"""How much busier a pair has to be than the one whose place it takes, or two alike would change places for ever."""
CANDIDATES = 8
"""Pairs without series whose score is kept, as a multiple of those with."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one finished request adds."""

    status: int
    prompt_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float | None = None
    cold: bool = False

    @property
    def error_class(self) -> str | None:
        """4xx or 5xx; None if it went well."""
        return f"{self.status // 100}xx" if self.status >= 400 else None


@dataclass(slots=True)
class Counts:
    """What one pair, or all the others, have counted."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cold_starts: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ttft: list[int] = field(default_factory=lambda: [0] * (len(TTFT_BUCKETS) + 1))
    ttft_sum: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count a request."""
        self.requests += 1
        self.prompt_tokens += outcome.prompt_tokens
        self.generated_tokens += outcome.generated_tokens
        self.cold_starts += outcome.cold
        if outcome.error_class is not None:
            self.errors[outcome.error_class] += 1
        if outcome.ttft_s is not None:
            place = next((i for i, edge in enumerate(TTFT_BUCKETS) if outcome.ttft_s <= edge), len(TTFT_BUCKETS))
            self.ttft[place] += 1
            self.ttft_sum += outcome.ttft_s

    def absorb(self, counts: "Counts") -> None:
        """Add all that another pair has counted."""
        self.requests += counts.requests
        self.prompt_tokens += counts.prompt_tokens
        self.generated_tokens += counts.generated_tokens
        self.cold_starts += counts.cold_starts
        self.errors.update(counts.errors)
        self.ttft = [mine + theirs for mine, theirs in zip(self.ttft, counts.ttft, strict=True)]
        self.ttft_sum += counts.ttft_sum


class Busiest:
    """Counts of the busiest pairs.

    Args:
        limit: Pairs that have series of their own, at most.
        clock: Seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._began = clock()
        self._shown: dict[Pair, Counts] = {}
        self._scores: OrderedDict[Pair, float] = OrderedDict()
        """Logarithms of scores, all as of ``_began``: as they fall together, none has to be touched to halve it."""
        self._rest = Counts()

    def add(self, pair: Pair, outcome: Outcome) -> None:
        """Count a finished request of (tenant, adapter)."""
        if pair == OTHER:
            self._rest.add(outcome)
            return
        self._score(pair)
        if pair not in self._shown:
            self._admit(pair)
        self._shown.get(pair, self._rest).add(outcome)

    def counts(self, tenant: str | None) -> Iterator[tuple[Pair, Counts]]:
        """The series that a tenant may see: its own; None sees all, the rest too."""
        for pair, counts in self._shown.items():
            if tenant is None or pair[0] == tenant:
                yield pair, counts
        if tenant is None:
            yield OTHER, self._rest

    def _score(self, pair: Pair) -> None:
        gain = (self._clock() - self._began) / HALF_LIFE_S * math.log(2)
        before = self._scores.pop(pair, None)
        self._scores[pair] = gain if before is None else max(before, gain) + math.log1p(math.exp(-abs(before - gain)))
        if len(self._scores) > self._limit * (1 + CANDIDATES):
            del self._scores[next(old for old in self._scores if old not in self._shown)]

    def _admit(self, pair: Pair) -> None:
        if len(self._shown) >= self._limit:
            least = min(self._shown, key=self._scores.__getitem__)
            if self._scores[pair] < self._scores[least] + math.log(LEAD):
                return
            self._rest.absorb(self._shown.pop(least))
        self._shown[pair] = Counts()


def families(series: Sequence[tuple[Pair, Counts]]) -> Iterator[Metric]:
    """The metrics of some pairs."""
    labels = ["tenant", "adapter"]
    requests = CounterMetricFamily("tenora_tenant_requests", "Requests by tenant and adapter.", labels=labels)
    errors = CounterMetricFamily(
        "tenora_tenant_errors",
        "Requests that failed, by tenant, adapter and class of status.",
        labels=[*labels, "status"],
    )
    prompt = CounterMetricFamily("tenora_tenant_prompt_tokens", "Tokens of prompts and texts.", labels=labels)
    generated = CounterMetricFamily("tenora_tenant_generated_tokens", "Tokens that were generated.", labels=labels)
    cold = CounterMetricFamily(
        "tenora_tenant_cold_starts", "Requests that had to wait for their adapter to be read.", labels=labels
    )
    ttft = HistogramMetricFamily("tenora_tenant_ttft_seconds", "Time to the first token.", labels=labels)
    for pair, counts in series:
        requests.add_metric(pair, counts.requests)
        prompt.add_metric(pair, counts.prompt_tokens)
        generated.add_metric(pair, counts.generated_tokens)
        cold.add_metric(pair, counts.cold_starts)
        for kind in ("4xx", "5xx"):
            errors.add_metric([*pair, kind], counts.errors[kind])
        ttft.add_metric(pair, _buckets(counts.ttft), counts.ttft_sum)
    yield from (requests, errors, prompt, generated, cold, ttft)


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    edges = [*(str(edge) for edge in TTFT_BUCKETS), "+Inf"]
    return [(edge, sum(counts[: place + 1])) for place, edge in enumerate(edges)]
