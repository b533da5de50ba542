"""Reply headers: who was asked, what answered, and what it took."""

import re
from typing import Any

import pytest
from starlette.datastructures import Headers

from service.engine.events import ClassifiedEvent, FinishedEvent, TokenEvent
from service.messages import Prepared
from service.record import RequestRecord, request_id_from
from tests.service.running import RunningServer

WRITE: dict[str, Any] = {"model": "acme/write", "prompt": "It was", "max_tokens": 4, "ignore_eos": True}
COSTS = {
    "x-tenora-queue-ms", "x-tenora-compute-ms", "x-prompt-tokens", "x-generated-tokens", "x-total-tokens",
    "x-queue-time", "x-inference-time", "x-total-time", "x-time-per-token", "x-time-per-output-token",
    "x-time-to-first-token",
}  # fmt: skip


def test_what_a_whole_answer_took(server: RunningServer) -> None:
    response = server.http.post("/v1/completions", json={**WRITE, "n": 2})
    headers, usage = response.headers, response.json()["usage"]
    assert set(headers) >= COSTS
    assert headers["x-tenora-adapter"] == f"acme/write@{headers['x-tenora-digest']}"
    assert headers["x-adapter-id"] == "acme/write"
    assert headers["x-tenora-tier"] in ("device", "host", "store")
    assert int(headers["x-prompt-tokens"]) == usage["prompt_tokens"]
    assert int(headers["x-generated-tokens"]) == usage["completion_tokens"] == 8
    assert int(headers["x-total-tokens"]) == usage["total_tokens"]
    queue, compute = float(headers["x-tenora-queue-ms"]), float(headers["x-tenora-compute-ms"])
    assert compute > 0
    assert queue + compute <= int(headers["x-total-time"]) + 2
    assert int(headers["x-queue-time"]) == pytest.approx(queue, abs=1)
    assert int(headers["x-inference-time"]) == pytest.approx(compute, abs=1)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/instruct", {"model": "acme/write", "instruction": "Say it.", "max_tokens": 2}),
     ("/v1/chat/completions", {"model": "acme/chat", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
     ("/v1/classify", {"model": "acme/label", "input": "good"}),
     ("/classify", {"inputs": "good", "parameters": {"adapter_id": "acme/label"}}),
     ("/v1/score", {"model": "beta/reward", "items": {"prompt": "a", "answer": "b"}}),
     ("/generate", {"inputs": "a", "parameters": {"adapter_id": "acme/write", "max_new_tokens": 2}})],
)  # fmt: skip
def test_every_route_that_answers_says_so(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    headers = server.http.post(path, json=body).headers
    assert re.fullmatch("[0-9a-f]{64}", headers["x-tenora-digest"])
    assert {"x-tenora-adapter", "x-tenora-tier", "x-tenora-queue-ms", "x-request-id"} <= set(headers)
    assert int(headers["x-prompt-tokens"]) > 0
    assert ("x-time-per-token" in headers) == (int(headers["x-generated-tokens"]) > 0)


def test_a_stream_says_what_is_known_at_its_first_event(server: RunningServer) -> None:
    for path, body in (
        ("/v1/completions", {**WRITE, "stream": True}),
        ("/generate_stream", {"inputs": "a", "parameters": {"adapter_id": "acme/write", "max_new_tokens": 2}}),
    ):
        headers = server.http.post(path, json=body).headers
        assert headers["x-tenora-adapter"] == f"acme/write@{headers['x-tenora-digest']}"
        assert not COSTS & set(headers)


def test_the_base_has_no_adapter(server: RunningServer) -> None:
    headers = server.http.post("/v1/completions", json={**WRITE, "model": "tiny-llama"}).headers
    assert headers["x-tenora-adapter"] == "tiny-llama"
    assert headers["x-tenora-tier"] == "base"
    assert not {"x-tenora-digest", "x-adapter-id"} & set(headers)
    streamed = server.http.post("/v1/completions", json={**WRITE, "model": "tiny-llama", "stream": True}).headers
    assert streamed["x-tenora-tier"] == "base"


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/completions", 200), ("/v1/chat/completions", 400), ("/generate", 422), ("/nowhere", 404)]
)
def test_the_clients_own_request_id_comes_back(server: RunningServer, path: str, status: int) -> None:
    response = server.http.post(path, json=WRITE, headers={"x-request-id": "order 66/a"})
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["order 66/a"]


def test_each_reply_has_a_request_id(server: RunningServer) -> None:
    import httpx

    replies = [server.http.get("/healthz"), httpx.get(f"{server.url}/v1/models"), server.http.get("/metrics")]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert [reply.status_code for reply in replies] == [200, 401, 200]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize("value", [None, "", "é", "a\tb", "x" * 129, "a\x7f"])
def test_other_ids_are_replaced(value: str | None) -> None:
    assert re.fullmatch("[0-9a-f]{32}", request_id_from(value))


def test_ids_that_pass() -> None:
    assert request_id_from("x" * 128) == "x" * 128
    assert request_id_from(Headers({"x-request-id": "a-1"}).get("x-request-id")) == "a-1"


def finished(index: int, queue_s: float) -> FinishedEvent:
    return FinishedEvent("r", index, "stop", 5, 0, 2, queue_s, "host")


def test_times_are_from_the_first_place_in_the_batch_to_the_last_output() -> None:
    record = RequestRecord(began=100.0, prepared=Prepared("r", "a/b@" + "0" * 64, cold=True, at=101.0))
    for index, at in ((0, 103.0), (1, 104.0), (0, 105.0)):
        record.take(TokenEvent("r", index, "x", (1,), None, at))
    record.take(finished(0, queue_s=1.5))
    record.take(finished(1, queue_s=0.5), counts_prompt=False)
    assert (record.queue_s, record.compute_s, record.ttft_s) == (1.5, 3.5, 3.0)
    assert (record.prompt_tokens, record.generated_tokens, record.tier) == (5, 3, "store")


def test_a_text_to_classify_has_no_first_token() -> None:
    record = RequestRecord(began=100.0, prepared=Prepared("r", "a/b@" + "0" * 64, cold=False, at=100.5))
    record.take(ClassifiedEvent("r", 0, (0.5, 0.5), 7, 0.25, "device", at=101.0))
    assert (record.queue_s, record.compute_s, record.ttft_s, record.tier) == (0.75, 0.25, None, "device")


def test_a_revision_in_the_bases_id_is_no_digest() -> None:
    record = RequestRecord(prepared=Prepared("r", "org/base@" + "0" * 40, cold=False))
    assert (record.adapter, record.digest) == (None, None)
