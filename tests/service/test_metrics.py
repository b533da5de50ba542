"""Counts per tenant and adapter: of the busiest alone, never falling, and nobody's names for anybody else."""

import random
import re
from collections import Counter
from typing import Any

import httpx
import pytest

from adapters.names import AdapterName
from adapters.store import Store
from service.busiest import OTHER, TTFT_BUCKETS, Busiest, Counts, Outcome, Pair
from tests.service.conftest import ACME, ADMIN, ZETA, Home
from tests.service.running import RunningServer

WRITE: dict[str, Any] = {"prompt": "It was", "max_tokens": 4, "ignore_eos": True}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def totals(busiest: Busiest) -> Counter[str]:
    found: Counter[str] = Counter()
    for _, counts in busiest.counts(None):
        found += Counter(
            requests=counts.requests, prompt=counts.prompt_tokens, generated=counts.generated_tokens,
            cold=counts.cold_starts, errors=counts.errors.total(), ttft=sum(counts.ttft),
        )  # fmt: skip
    return found


def test_sums_are_exact_and_never_fall_whoever_comes_and_goes() -> None:
    clock, randomly = Clock(), random.Random(7)
    busiest = Busiest(3, clock)
    added: Counter[str] = Counter()
    rest = before = 0
    for step in range(3000):
        clock.now += randomly.expovariate(1 / 20)
        pair = (f"t{(step // 300 + randomly.randrange(4)) % 7}", f"a{randomly.randrange(3)}")
        outcome = Outcome(randomly.choice((200, 404, 503)), 3, 2, randomly.random() * 20, cold=step % 5 == 0)
        busiest.add(pair, outcome)
        added += Counter(requests=1, prompt=3, generated=2, cold=int(outcome.cold), ttft=1)
        added += Counter(errors=int(outcome.status >= 400))
        assert totals(busiest) == added
        series = dict(busiest.counts(None))
        assert len(series) <= 4
        assert series[OTHER].requests >= rest
        rest = series[OTHER].requests
        assert sum(counts.requests for counts in series.values()) > before
        before = sum(counts.requests for counts in series.values())
    assert rest > 0


def shown(busiest: Busiest) -> set[Pair]:
    return {pair for pair, _ in busiest.counts(None)} - {OTHER}


def test_the_busiest_of_late_are_shown() -> None:
    clock = Clock()
    busiest = Busiest(2, clock)
    for pair, times in ((("a", "x"), 50), (("b", "x"), 40), (("c", "x"), 30)):
        for _ in range(times):
            busiest.add(pair, Outcome(200))
    assert shown(busiest) == {("a", "x"), ("b", "x")}
    clock.now += 3600  # six halvings
    busiest.add(("c", "x"), Outcome(200))
    busiest.add(("c", "x"), Outcome(200))
    assert shown(busiest) == {("a", "x"), ("c", "x")}
    series = dict(busiest.counts(None))
    assert series["c", "x"].requests == 2  # those since it has a place; the 30 before are among the others
    assert series[OTHER].requests == 30 + 40
    assert sum(counts.requests for counts in series.values()) == 122


def test_two_alike_do_not_change_places_for_ever() -> None:
    busiest = Busiest(1, Clock())
    moves, before = 0, None
    for step in range(400):
        busiest.add((f"t{step % 2}", "x"), Outcome(200))
        moves += shown(busiest) != before
        before = shown(busiest)
    assert moves <= 3


def test_memory_is_bounded_whatever_comes() -> None:
    busiest = Busiest(2, Clock())
    for step in range(5000):
        busiest.add(("t", f"a{step}"), Outcome(200))
    assert len(busiest._scores) <= 18
    assert totals(busiest)["requests"] == 5000


def test_scores_stand_a_long_time() -> None:
    clock = Clock()
    busiest = Busiest(1, clock)
    clock.now = 3600.0 * 24 * 365 * 10
    busiest.add(("a", "x"), Outcome(200))
    busiest.add(("a", "x"), Outcome(200))
    assert shown(busiest) == {("a", "x")}


def test_a_first_token_falls_into_its_bucket() -> None:
    counts = Counts()
    for seconds in (0.01, 0.05, 0.3, 100.0):
        counts.add(Outcome(200, ttft_s=seconds))
    assert counts.ttft == [2, 0, 0, 1, 0, 0, 0, 1]
    assert len(counts.ttft) == len(TTFT_BUCKETS) + 1
    assert counts.ttft_sum == pytest.approx(100.36)


def page(server: RunningServer, key: str) -> str:
    return httpx.get(f"{server.url}/metrics", headers={"X-API-Key": key}).text


def ask(server: RunningServer, key: str, model: str, **body: Any) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/completions", json={"model": model, **WRITE, **body}, headers={"X-API-Key": key}, timeout=60
    )


def test_a_tenant_is_counted_and_sees_no_other(server: RunningServer) -> None:
    def mine(name: str, **labels: str) -> float:
        return server.metric(f"tenora_tenant_{name}", **labels)

    labels = {"tenant": "acme", "adapter": "acme/write"}
    names = ("requests_total", "generated_tokens_total", "prompt_tokens_total", "ttft_seconds_count")
    before = {name: mine(name, **labels) for name in names}
    failed = mine("errors_total", tenant="acme", adapter="none", status="4xx")
    assert ask(server, ACME, "acme/write").status_code == 200
    assert ask(server, ADMIN, "acme/write", stream=True).status_code == 200  # counts for the adapter's own tenant
    assert ask(server, ACME, "zeta/write").status_code == 404
    assert ask(server, ZETA, "zeta/write").status_code == 200
    assert mine("requests_total", **labels) == before["requests_total"] + 2
    assert mine("generated_tokens_total", **labels) == before["generated_tokens_total"] + 8
    assert mine("prompt_tokens_total", **labels) > before["prompt_tokens_total"]
    assert mine("ttft_seconds_count", **labels) == before["ttft_seconds_count"] + 2
    assert mine("errors_total", tenant="acme", adapter="none", status="4xx") == failed + 1

    acme, zeta, admin = (page(server, key) for key in (ACME, ZETA, ADMIN))
    assert 'tenant="acme"' in acme and "zeta" not in acme and '"other"' not in acme
    assert 'tenant="zeta"' in zeta and "acme" not in zeta
    assert {'tenant="acme"', 'tenant="zeta"', 'tenant="other"'} <= set(re.findall(r'tenant="\w+"', admin))
    assert "tenora_steps_total" in admin and "tenora_steps_total" not in acme  # sums tell of others' doings


def test_the_first_use_is_a_cold_start(server: RunningServer, home: Home) -> None:
    store, name = Store(home.store), AdapterName("gamma", "cold")  # nobody else's, so that nobody has used it
    store.publish(home.folders / "beta-head", name, home.base, labels=("no", "yes"))
    for _ in range(2):
        assert server.http.post("/v1/classify", json={"model": str(name), "input": "a"}).status_code == 200
    store.delete(name)
    labels = {"tenant": "gamma", "adapter": "gamma/cold"}
    assert server.metric("tenora_tenant_cold_starts_total", **labels) == 1
    assert server.metric("tenora_tenant_requests_total", **labels) >= 2
