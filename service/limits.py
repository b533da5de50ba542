"""What a tenant may ask for: requests and tokens a minute, requests at once, and bytes of adapters in memory.

    permit = limiter.admit("acme", limits, prompt_tokens + n * max_tokens)     429, or the headers of the reply
    with permit:
        ...
        permit.settle(prompt_tokens + completion_tokens)

Requests and tokens are counted as in a bucket that leaks evenly: what was used is forgiven at the limit's own rate, so
a tenant that used nothing for a minute may use a minute's worth at once. Limits are given at each call, so that changed
ones hold from the next request on. Lives in the HTTP process and is used from its one thread; starts anew with it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Self

from service.errors import RateLimitedError

MINUTE = 60.0
CONCURRENT_RETRY_S = 1
"""When to come back for a request that ends nobody knows when."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use; None is without limit.

    Raises:
        ValueError: A limit or the share is not more than 0.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers."""
    concurrent: int | None = None
    """Requests in flight."""
    resident_bytes: int | None = None
    """Adapters in host memory; kept by the engine process (`quotas.py`)."""
    share: float = 1.0
    """Service that the tenant is due while others want some too, relative to theirs."""

    def __post_init__(self) -> None:
        for name in (limit.name for limit in fields(self) if limit.name != "priority"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0, not {value}; leave it out for no limit")


@dataclass(slots=True)
class _Bucket:
    """How much was used and is not forgiven yet; nothing is counted while there is no limit."""

    limit: int | None = None
    used: float = 0.0
    at: float = 0.0

    def leak(self, limit: int | None, now: float) -> None:
        """Forgive what ``limit`` a minute allows since the last time."""
        self.used = 0.0 if limit is None else max(0.0, self.used - (now - self.at) * limit / MINUTE)
        self.limit, self.at = limit, now

    def use(self, amount: int) -> None:
        """Count so much; a negative amount takes back what was counted too much."""
        if self.limit is not None:
            self.used = max(0.0, self.used + amount)


@dataclass(slots=True)
class _Usage:
    """What a tenant uses."""

    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    in_flight: int = 0


class Permit:
    """A request that was admitted. It is in flight until it is closed, whatever becomes of it.

    ``headers`` are OpenAI's x-ratelimit-* of the moment when it was admitted; empty for a tenant without such limits.
    """

    __slots__ = ("_open", "_tokens", "_usage", "headers")

    def __init__(self, usage: _Usage, tokens: int, headers: dict[str, str]) -> None:
        self._usage = usage
        self._tokens = tokens
        self._open = True
        self.headers = headers

    def settle(self, tokens: int) -> None:
        """Count what the request really used instead of what was estimated. The last of several calls holds.

        A request that is closed without it, because its client hung up, keeps its estimate.
        """
        self._usage.tokens.use(tokens - self._tokens)
        self._tokens = tokens

    def close(self) -> None:
        """The request is over. Closing twice does nothing."""
        if self._open:
            self._open = False
            self._usage.in_flight -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Limiter:
    """Counts what tenants use, and refuses what goes beyond their limits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usages: dict[str, _Usage] = {}

    def admit(self, tenant: str, limits: TenantLimits, tokens: int) -> Permit:
        """Count a request.

        Args:
            tenant: Whose it is.
            limits: Of the tenant, as they are now.
            tokens: What it will use, estimated: its prompt and its longest answers. The true count settles it.

        Raises:
            RateLimitedError: It goes beyond a limit. Nothing is counted then.
        """
        usage = self._leak(tenant, limits)
        if limits.concurrent is not None and usage.in_flight >= limits.concurrent:
            message = f"Limit of requests at once: {limits.concurrent}, all of them in flight. Wait for one to end."
            raise self._refusal(message, usage, CONCURRENT_RETRY_S)
        for what, bucket, amount in (("requests", usage.requests, 1), ("tokens", usage.tokens, tokens)):
            if bucket.limit is not None and bucket.used + amount > bucket.limit:
                message = f"Limit of {what} per minute: {bucket.limit}; "
                if amount > bucket.limit:
                    message += f"this request alone may take {amount}. Shorten it or lower its max_tokens."
                    raise self._refusal(message, usage, None)
                wait = (bucket.used + amount - bucket.limit) * MINUTE / bucket.limit
                message += f"used {ceil(bucket.used)}, asked for {amount}. Try again in {duration(wait)}."
                raise self._refusal(message, usage, max(1, ceil(wait)))
        usage.requests.use(1)
        usage.tokens.use(tokens)
        usage.in_flight += 1
        return Permit(usage, tokens, _headers(usage))

    def in_flight(self, tenant: str) -> int:
        """Requests of a tenant that were admitted and not closed."""
        usage = self._usages.get(tenant)
        return 0 if usage is None else usage.in_flight

    def _leak(self, tenant: str, limits: TenantLimits) -> _Usage:
        usage, now = self._usages.setdefault(tenant, _Usage()), self._clock()
        usage.requests.leak(limits.requests_per_minute, now)
        usage.tokens.leak(limits.tokens_per_minute, now)
        return usage

    @staticmethod
    def _refusal(message: str, usage: _Usage, retry_after: int | None) -> RateLimitedError:
        return RateLimitedError(message, retry_after=retry_after, headers=_headers(usage))


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: ``120ms``, ``7.66s``, ``6m0s``, ``1h2m0s``. Rounded up: never too soon."""
    milliseconds = ceil(round(seconds * 1000, 6))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(ceil(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def _headers(usage: _Usage) -> dict[str, str]:
    found: dict[str, str] = {}
    for what, bucket in (("requests", usage.requests), ("tokens", usage.tokens)):
        if bucket.limit is not None:
            found[f"x-ratelimit-limit-{what}"] = str(bucket.limit)
            found[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.limit - bucket.used)))
            found[f"x-ratelimit-reset-{what}"] = duration(bucket.used * MINUTE / bucket.limit)
    return found
