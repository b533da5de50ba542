"""What tenants may use, on a running server: refused with the figures, counted truly, given back."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from service.engine.sampling import SamplingParams
from service.estimate import estimated_tokens
from service.messages import (
    ChatPrompt,
    Classify,
    Generate,
    InstructPrompt,
    Prompt,
    Score,
    ScoredAnswer,
    TextPrompt,
    TokenPrompt,
)
from tests.service.conftest import Home
from tests.service.running import RunningServer, eventually, running
from tests.service.test_tenants import OPERATOR, make_key, new_tenant

LIMITED = {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"}


@pytest.fixture(scope="module")
def owned(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("quotas")
    home.copied(folder / "store")
    settings = {**home.settings, "store": str(folder / "store"), "max_queue": 8}
    with running(folder / "log", key=OPERATOR, api_keys={OPERATOR: "*"}, **settings) as started:
        yield started
        assert "Traceback" not in started.output(), started.output()


def client(server: RunningServer, **limits: object) -> httpx.Client:
    """A tenant's, which may use acme/write and has limits."""
    tenant = new_tenant(server, **limits)
    assert server.http.put(f"/admin/v1/adapters/acme/write/grants/{tenant}").status_code == 200
    _, headers = make_key(server, tenant)
    return httpx.Client(base_url=server.url, headers=headers, timeout=30)


def write(http: httpx.Client, tokens: int = 2, prompt: str = "hello", model: str = "acme/write") -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    return http.post("/v1/completions", json=body)


def test_requests_a_minute(owned: RunningServer) -> None:
    with client(owned, requests_per_minute=2) as http:
        first = write(http)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert write(http).status_code == 200
        refused = write(http)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "Limit of requests per minute: 2" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers.keys() >= LIMITED
        assert http.get("/v1/models").status_code == 200


def test_tokens_are_settled_with_what_was_used(owned: RunningServer) -> None:
    with client(owned, tokens_per_minute=400) as http:
        assert write(http, tokens=150).status_code == 200
        for _ in range(3):
            assert write(http, tokens=2).status_code == 200
        left = int(write(http, tokens=1).headers["x-ratelimit-remaining-tokens"])
        assert 0 < left < 400 - 150
        refused = write(http, tokens=250)
        assert refused.status_code == 429
        assert "Limit of tokens per minute: 400" in refused.json()["error"]["message"]
        alone = write(http, tokens=200, prompt="word " * 1000)
        assert (alone.status_code, alone.headers.get("retry-after")) == (429, None)
        assert "this request alone" in alone.json()["error"]["message"]


def test_a_refused_request_costs_no_tokens(owned: RunningServer) -> None:
    with client(owned, tokens_per_minute=300) as http:
        for _ in range(4):
            assert write(http, tokens=200, model="acme/none").status_code == 404
        assert write(http, tokens=200).status_code == 200


def test_requests_at_once(owned: RunningServer) -> None:
    with client(owned, concurrent=1) as http:
        body = {"model": "acme/write", "prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            refused = write(http)
            assert refused.status_code == 429
            assert "at once: 1" in refused.json()["error"]["message"]
        eventually(lambda: write(http).status_code == 200, what="the permit's return")


def test_bytes_in_memory(owned: RunningServer) -> None:
    acme = {"resident_bytes": 100}
    assert owned.http.patch("/admin/v1/tenants/acme", json=acme).status_code == 200
    try:
        _, headers = make_key(owned, "acme")
        with httpx.Client(base_url=owned.url, headers=headers, timeout=30) as http:
            time.sleep(2)  # the engine process looks every second; what is in memory by then stays
            refused = write(http, model="acme/chat")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            error = refused.json()["error"]
            assert "100 bytes; acme/chat alone takes" in error["message"]
    finally:
        owned.http.patch("/admin/v1/tenants/acme", json={"resident_bytes": None})


def test_a_queue_that_others_filled_has_room_for_a_tenants_part(owned: RunningServer) -> None:
    """Eight places: a flood takes all of them, and somebody who has nothing in flight is let in."""
    with client(owned) as flood, client(owned) as polite:
        body = {"model": "acme/write", "prompt": "x", "max_tokens": 220, "ignore_eos": True, "n": 8, "temperature": 1}
        done: list[int] = []
        sender = threading.Thread(target=lambda: done.append(flood.post("/v1/completions", json=body).status_code))
        sender.start()
        eventually(lambda: owned.metric("tenora_queue_length") >= 8, what="a full queue")
        refused = write(flood)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert write(polite).status_code == 200
        sender.join()
        assert done == [200]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (TextPrompt("x" * 9), 3), (TokenPrompt((1, 2, 3)), 3), (InstructPrompt("abcd", "efg"), 2),
        (ChatPrompt((("user", "abcd"), ("assistant", "efghi"))), 3),
    ],
)  # fmt: skip
def test_an_estimate(prompt: Prompt, tokens: int) -> None:
    generate = Generate("acme", "m", (prompt, prompt), 3, SamplingParams(), 5, 256, 0.0)
    assert estimated_tokens(generate) == 2 * tokens + 6 * 5


def test_estimates_of_texts_and_answers() -> None:
    assert estimated_tokens(Classify("acme", "m", ("abcd", "e"), 0.0)) == 2
    assert estimated_tokens(Score("acme", "m", (ScoredAnswer(TextPrompt("abcd"), "e", "items"),), 0.0)) == 2  # type: ignore[arg-type]
