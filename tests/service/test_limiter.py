"""What a tenant may ask for in a minute, at once and in memory; and what it is told when it asks for more."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RateLimitedError, describe
from service.handlers import ErrorResponse
from service.limits import Limiter, TenantLimits, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock)


def refused(act: Callable[[], object]) -> RateLimitedError:
    with pytest.raises(RateLimitedError) as caught:
        act()
    return caught.value


def test_without_limits_everything_is_admitted_and_nothing_is_told(limiter: Limiter) -> None:
    for _ in range(1000):
        permit = limiter.admit("acme", TenantLimits(), 10**9)
        assert permit.headers == {}
    assert limiter.in_flight("acme") == 1000


def test_requests_per_minute(limiter: Limiter, clock: Clock) -> None:
    limits = TenantLimits(requests_per_minute=3)
    told = [limiter.admit("acme", limits, 5).headers for _ in range(3)]
    assert told[0] == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
    }
    assert [headers["x-ratelimit-remaining-requests"] for headers in told] == ["2", "1", "0"]
    clock.now += 4.5
    error = refused(lambda: limiter.admit("acme", limits, 5))
    assert "requests per minute: 3" in error.message
    assert "Try again in 15.5s" in error.message
    assert error.retry_after == 16
    assert limiter.in_flight("acme") == 3, "what is refused counts for nothing"
    clock.now += 15.5
    limiter.admit("acme", limits, 5)
    assert refused(lambda: limiter.admit("acme", limits, 5)).retry_after == 20


def test_one_tenant_s_use_is_not_another_s(limiter: Limiter) -> None:
    limits = TenantLimits(requests_per_minute=1, tokens_per_minute=10, concurrent=1)
    limiter.admit("acme", limits, 10)
    refused(lambda: limiter.admit("acme", limits, 1))
    limiter.admit("zeta", limits, 10)


def test_tokens_are_estimated_and_then_settled(limiter: Limiter, clock: Clock) -> None:
    limits = TenantLimits(tokens_per_minute=600)
    permit = limiter.admit("acme", limits, 500)
    assert permit.headers == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "50s",
    }
    error = refused(lambda: limiter.admit("acme", limits, 200))
    assert "tokens per minute: 600; used 500, asked for 200. Try again in 10s" in error.message
    permit.settle(100)
    assert limiter.admit("acme", limits, 200).headers["x-ratelimit-remaining-tokens"] == "300"
    permit.settle(900)  # more than was thought: a debt
    assert refused(lambda: limiter.admit("acme", limits, 1)).retry_after == 51
    clock.now += 110
    assert limiter.admit("acme", limits, 600).headers["x-ratelimit-remaining-tokens"] == "0"


def test_what_can_never_fit_is_told_so(limiter: Limiter) -> None:
    error = refused(lambda: limiter.admit("acme", TenantLimits(tokens_per_minute=100), 101))
    assert "this request alone may take 101" in error.message
    assert error.retry_after is None
    assert "Retry-After" not in describe(error).headers()


def test_requests_at_once_are_given_back_whatever_happens(limiter: Limiter) -> None:
    limits = TenantLimits(concurrent=2)
    first = limiter.admit("acme", limits, 1)
    with pytest.raises(KeyError), limiter.admit("acme", limits, 1):
        error = refused(lambda: limiter.admit("acme", limits, 1))
        assert ("at once: 2" in error.message, error.retry_after) == (True, 1)
        raise KeyError
    assert limiter.in_flight("acme") == 1
    first.close()
    first.close()
    assert limiter.in_flight("acme") == 0


def test_changed_limits_hold_from_the_next_request(limiter: Limiter) -> None:
    limiter.admit("acme", TenantLimits(requests_per_minute=10), 1)
    refused(lambda: limiter.admit("acme", TenantLimits(requests_per_minute=1), 1))
    limiter.admit("acme", TenantLimits(), 10**6)
    limiter.admit("acme", TenantLimits(requests_per_minute=2, tokens_per_minute=2), 1)


def test_the_reply(limiter: Limiter) -> None:
    limits = TenantLimits(requests_per_minute=1)
    limiter.admit("acme", limits, 1)
    detail = describe(refused(lambda: limiter.admit("acme", limits, 1)))
    response = ErrorResponse(detail)
    assert response.status_code == 429
    assert json.loads(bytes(response.body))["error"]["code"] == "rate_limit_exceeded"
    assert {name: response.headers[name] for name in response.headers if "ratelimit" in name or "retry" in name} == {
        "retry-after": "60",
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "concurrent", "resident_bytes", "share"])
def test_a_limit_is_more_than_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be more than 0"):
        TenantLimits(**{name: 0})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (0.0001, "1ms"), (1, "1s"), (7.66, "7.66s"), (59.9995, "1m0s"), (360, "6m0s"),
     (61.2, "1m2s"), (3720, "1h2m0s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 60), st.integers(0, 60)), max_size=60))
def test_in_any_minute_at_most_two_minutes_worth_is_used(asked: list[tuple[float, int, int]]) -> None:
    """A whole bucket at once and what leaks meanwhile; and who waits as long as it was told is admitted."""
    clock, limits = Clock(), TenantLimits(tokens_per_minute=60)
    limiter, admitted = Limiter(clock), []
    for pause, tokens, truth in asked:
        clock.now += pause
        try:
            permit = limiter.admit("acme", limits, tokens)
        except RateLimitedError as error:
            assert error.retry_after is not None
            clock.now += error.retry_after
            permit = limiter.admit("acme", limits, tokens)
        permit.settle(min(tokens, truth))
        admitted.append((clock.now, min(tokens, truth)))
    for begin, _ in admitted:
        assert sum(used for at, used in admitted if begin <= at < begin + 60) <= 120
