"""Bad input over a real server: each kind with its status, and the server serves on."""

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.conftest import ACME
from tests.service.running import RunningServer

CHAT, COMPLETIONS, INSTRUCT = "/v1/chat/completions", "/v1/completions", "/v1/instruct"
CLASSIFY, SCORE = "/v1/classify", "/v1/score"
ONE = {"items": {"prompt": "a", "answer": "b"}}
TURNS = [{"role": "user", "content": "hello"}]


def refused(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert error["param"] == param, error
    assert error["message"]
    return str(error["message"])


def chat(server: RunningServer, **body: Any) -> httpx.Response:
    return server.http.post(CHAT, json={"model": "acme/chat", "messages": TURNS, **body})


def complete(server: RunningServer, **body: Any) -> httpx.Response:
    return server.http.post(COMPLETIONS, json={"model": "acme/write", "prompt": "hello", **body})


@pytest.fixture(autouse=True)
def serves_on(server: RunningServer) -> Iterator[None]:
    """After whatever a test sends, the next request is answered and nothing is left in flight."""
    yield
    assert complete(server, max_tokens=1).status_code == 200
    assert server.metric("tenora_queue_length") == 0


@pytest.mark.parametrize(
    "model",
    ["acme/nothing", "nobody/write", "write", "", "acme/write@00000000", "acme/write:stable", "../../etc/passwd",
     "tiny", "acme/../zeta/write", "tiny-llama:acme/nothing", "ACME/WRITE", "acme/write@", "x" * 600, "é/ü",
     "acme/write\u0000"],
)  # fmt: skip
def test_unknown_adapter(server: RunningServer, model: str) -> None:
    response = chat(server, model=model)
    if model in ("", "x" * 600):
        refused(response, 400, "invalid_value", "model")
    else:
        refused(response, 404, "model_not_found", "model")


def test_another_tenants_adapter_is_an_unknown_one(server: RunningServer) -> None:
    body = {"messages": TURNS, "max_tokens": 1}
    with httpx.Client(base_url=server.url, headers={"X-API-Key": ACME}, timeout=30) as acme:
        foreign = acme.post(CHAT, json={"model": "zeta/write", **body})
        unknown = acme.post(CHAT, json={"model": "zeta/nothing", **body})
        own = acme.post(COMPLETIONS, json={"model": "write", "prompt": "a", "max_tokens": 1})
        label = acme.post(CLASSIFY, json={"model": "zeta/label", "input": "a"})
        listed = [entry["id"] for entry in acme.get("/v1/models").json()["data"]]
        shown = acme.get("/v1/models/zeta/write")
    assert refused(foreign, 404, "model_not_found", "model") == refused(
        unknown, 404, "model_not_found", "model"
    ).replace("nothing", "write")
    refused(label, 404, "model_not_found", "model")
    refused(shown, 404, "model_not_found", "model")
    assert own.status_code == 200
    assert listed == ["tiny-llama", "acme/chat", "acme/label", "acme/write"]


def test_streaming_does_not_hide_the_status(server: RunningServer) -> None:
    refused(chat(server, model="acme/nothing", stream=True), 404, "model_not_found", "model")
    refused(chat(server, model="acme/label", stream=True), 400, "wrong_task", "model")
    refused(chat(server, max_tokens=400, stream=True), 400, "context_length_exceeded", "max_tokens")


def test_wrong_task(server: RunningServer) -> None:
    for route, extra in [(CHAT, {"messages": TURNS}), (COMPLETIONS, {"prompt": "a"}), (INSTRUCT, {"instruction": "a"})]:
        message = refused(server.http.post(route, json={"model": "acme/label", **extra}), 400, "wrong_task", "model")
        assert "/v1/classify" in message
    message = refused(
        server.http.post(CLASSIFY, json={"model": "acme/write", "input": "a"}), 400, "wrong_task", "model"
    )
    assert "/v1/chat/completions" in message
    refused(server.http.post(CLASSIFY, json={"model": "tiny-llama", "input": "a"}), 400, "wrong_task", "model")


@pytest.mark.parametrize(
    ("route", "body", "model", "words"),
    [
        (SCORE, ONE, "acme/write", "writes and does not score: call /v1/chat/completions"),
        (SCORE, ONE, "acme/label", "classifies and does not score: call /v1/classify"),
        (SCORE, ONE, "tiny-llama", "has no scores: name an adapter that scores"),
        (CHAT, {"messages": TURNS}, "beta/reward", "scores and does not write: call /v1/score"),
        (COMPLETIONS, {"prompt": "a"}, "beta/reward", "scores and does not write: call /v1/score"),
        (INSTRUCT, {"instruction": "a"}, "beta/reward", "scores and does not write: call /v1/score"),
        (CLASSIFY, {"input": "a"}, "beta/reward", "scores and does not classify: call /v1/score"),
    ],
)
def test_wrong_task_for_a_reward_model(
    server: RunningServer, route: str, body: dict[str, Any], model: str, words: str
) -> None:
    assert words in refused(server.http.post(route, json={"model": model, **body}), 400, "wrong_task", "model")


@pytest.mark.parametrize(
    ("items", "code", "param", "words"),
    [
        ([], "invalid_value", "items", "at least 1"),
        ("text", "invalid_value", "items", "an item or a list of items"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a"}], "missing_field", "items[1].answer", "required"),
        ({"answer": "b"}, "invalid_value", "items", "one of prompt, messages and instruction"),
        ([{"prompt": "a", "instruction": "a", "answer": "b"}], "invalid_value", "items[0]", "one of prompt"),
        ({"prompt": "a", "input": "x", "answer": "b"}, "invalid_value", "items", "only for an instruction"),
        ({"prompt": "", "answer": "b"}, "invalid_value", "items.prompt", "at least 1 character"),
        ({"prompt": "a", "answer": 5}, "invalid_value", "items.answer", "string"),
        ({"messages": [{"role": "robot", "content": "a"}], "answer": "b"}, "invalid_value", "items.messages[0].role",
         "'system'"),
        ({"messages": [], "answer": "b"}, "invalid_value", "items.messages", "at least 1"),
        ({"prompt": "a", "answer": "b", "weight": 1}, "unknown_field", "items.weight", "not a field"),
    ],
)  # fmt: skip
def test_bad_items(server: RunningServer, items: object, code: str, param: str, words: str) -> None:
    response = server.http.post(SCORE, json={"model": "beta/reward", "items": items})
    assert words in refused(response, 400, code, param)


def test_what_is_scored_is_never_cut(server: RunningServer) -> None:
    long = {"prompt": "a", "answer": "word " * 300}
    response = server.http.post(SCORE, json={"model": "beta/reward", "items": [{"prompt": "a", "answer": "b"}, long]})
    message = refused(response, 400, "context_length_exceeded", "items[1]")
    assert "at most 256" in message
    (tokens,) = re.findall(r"have (\d+) tokens", message)
    assert int(tokens) > 256
    megabytes = {"prompt": "a" * 3_000_000, "answer": "b"}
    response = server.http.post(SCORE, json={"model": "beta/reward", "items": megabytes})
    assert "3000001 characters" in refused(response, 400, "context_length_exceeded", "items")


def test_a_conversation_that_the_template_cannot_take(server: RunningServer) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    response = server.http.post(SCORE, json={"model": "beta/reward", "items": {"messages": turns, "answer": "d"}})
    refused(response, 400, "template_error", "messages")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "0.5", True])
def test_bad_thresholds(server: RunningServer, threshold: object) -> None:
    body = {"model": "beta/tags", "input": "a", "threshold": threshold}
    refused(server.http.post(CLASSIFY, json=body), 400, "invalid_value", "threshold")


def test_a_threshold_where_there_is_one_label(server: RunningServer) -> None:
    for model in ("acme/label", "beta/head"):
        response = server.http.post(CLASSIFY, json={"model": model, "input": "a", "threshold": 0.5})
        assert "no threshold to set" in refused(response, 400, "invalid_value", "threshold")


def test_empty_messages(server: RunningServer) -> None:
    refused(chat(server, messages=[]), 400, "invalid_value", "messages")


def test_missing_fields(server: RunningServer) -> None:
    refused(server.http.post(CHAT, json={"messages": TURNS}), 400, "missing_field", "model")
    refused(server.http.post(CHAT, json={"model": "acme/chat"}), 400, "missing_field", "messages")
    refused(server.http.post(INSTRUCT, json={"model": "acme/write"}), 400, "missing_field", "instruction")
    refused(server.http.post(CLASSIFY, json={"model": "acme/label"}), 400, "missing_field", "input")
    refused(server.http.post(CLASSIFY, json={"model": "acme/label", "input": []}), 400, "invalid_value", "input")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", "hello"), ("messages", [1]), ("messages", {"role": "user"}), ("model", 5), ("model", None),
        ("max_tokens", "12"), ("max_tokens", 1.5), ("max_tokens", True), ("temperature", "hot"), ("temperature", [0]),
        ("stream", "yes"), ("stream", 1), ("n", "2"), ("seed", 1.5), ("stop", 5), ("stop", [1]), ("stop", [""]),
        ("logprobs", 3), ("user", 5), ("metadata", "x"), ("stream_options", 5),
    ],
)  # fmt: skip
def test_wrong_types(server: RunningServer, field: str, value: object) -> None:
    response = chat(server, **{field: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == "invalid_value"
    assert error["param"].startswith(field), error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 0), ("max_completion_tokens", -5), ("temperature", -0.1),
        ("temperature", 2.1), ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("min_p", -0.1), ("min_p", 1.5),
        ("top_p", 1e-7), ("repetition_penalty", 0), ("repetition_penalty", 0.005),
        ("presence_penalty", 2.5), ("frequency_penalty", -2.5), ("n", 0), ("n", 129),
        ("seed", 2**63), ("stop", ["a"] * 17), ("top_logprobs", 21), ("timeout", 0), ("timeout", -1),
    ],
)  # fmt: skip
def test_out_of_range(server: RunningServer, field: str, value: float) -> None:
    extra = {"logprobs": True} if field == "top_logprobs" else {}
    refused(chat(server, **{field: value}, **extra), 400, "invalid_value", field)


def test_numbers_that_are_none(server: RunningServer) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000):
        body = f'{{"model": "acme/chat", "messages": [], "temperature": {number}}}'
        response = server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text


def test_fields_that_contradict_each_other(server: RunningServer) -> None:
    for body in [
        {"stream_options": {"include_usage": True}},
        {"top_logprobs": 2},
        {"max_tokens": 3, "max_completion_tokens": 4},
    ]:
        refused(chat(server, **body), 400, "invalid_value")


def test_unknown_field(server: RunningServer) -> None:
    assert "temprature" in refused(chat(server, temprature=1), 400, "unknown_field", "temprature")
    nested = [{"role": "user", "content": "a", "mood": "good"}]
    refused(chat(server, messages=nested), 400, "unknown_field", "messages[0].mood")
    refused(
        server.http.post(CLASSIFY, json={"model": "acme/label", "input": "a", "top": 1}), 400, "unknown_field", "top"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}), ("functions", [{}]), ("audio", {"voice": "x"}), ("modalities", ["audio"]),
        ("store", True), ("prediction", {}), ("service_tier", "flex"), ("web_search_options", {}), ("echo", True),
        ("best_of", 2), ("suffix", "end"),
    ],
)  # fmt: skip
def test_unsupported_parameters_are_refused_by_name(server: RunningServer, field: str, value: object) -> None:
    message = refused(chat(server, **{field: value}), 400, "unsupported_parameter", field)
    assert field in message


def test_unsupported_parameters_that_ask_for_nothing_pass(server: RunningServer) -> None:
    off = {"tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "store": False,
           "parallel_tool_calls": True, "service_tier": "auto", "user": "u1", "metadata": {"a": "b"},
           "prompt_cache_key": "k", "safety_identifier": "s"}  # fmt: skip
    assert chat(server, max_tokens=1, **off).status_code == 200


def test_parts_that_are_not_text(server: RunningServer) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    assert chat(server, messages=image).status_code == 400
    tool = [{"role": "tool", "content": "a", "tool_call_id": "1"}]
    assert chat(server, messages=tool).status_code == 400
    called = [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]
    refused(chat(server, messages=called), 400, "unsupported_parameter", "messages[0].tool_calls")


def test_over_long_prompt_names_the_numbers(server: RunningServer) -> None:
    message = refused(complete(server, prompt="a" * 300), 400, "context_length_exceeded", "prompt")
    assert "300" in message
    assert "256" in message
    message = refused(complete(server, prompt=[5] * 250, max_tokens=7), 400, "context_length_exceeded", "max_tokens")
    for number in ("250", "7", "257", "256"):
        assert number in message
    assert complete(server, prompt=[5] * 250, max_tokens=6).status_code == 200


def test_prompts_without_tokens(server: RunningServer) -> None:
    refused(complete(server, prompt=""), 400, "invalid_value", "prompt")
    refused(complete(server, prompt=[]), 400, "invalid_value", "prompt")
    refused(complete(server, prompt=[[]]), 400, "invalid_value", "prompt[0]")
    refused(complete(server, prompt=[10**6]), 400, "invalid_value", "prompt")
    refused(complete(server, prompt=[-1]), 400, "invalid_value", "prompt")


def test_a_template_refuses_what_it_cannot_say(server: RunningServer) -> None:
    turns = [*TURNS, {"role": "assistant", "content": "hi"}, *TURNS]
    assert "alpaca" in refused(chat(server, model="acme/write", messages=turns), 400, "template_error", "messages")


def test_invalid_utf8_and_broken_json(server: RunningServer) -> None:
    def send(content: bytes) -> httpx.Response:
        return server.http.post(CHAT, content=content, headers={"content-type": "application/json"})

    assert "not UTF-8" in refused(send(b'{"model": "\xff\xfe", "messages": []}'), 400, "invalid_json")
    assert "not JSON" in refused(send(b'{"model": "acme/chat", '), 400, "invalid_json")
    assert "nested too deep" in refused(send(b"[" * 100_000), 400, "invalid_json")
    assert "too many digits" in refused(send(b'{"n": ' + b"9" * 5000 + b"}"), 400, "invalid_json")
    refused(send(b"hello"), 400, "invalid_json")
    assert send(b"").status_code == 400
    assert send(b"[]").status_code == 400
    assert send(b"null").status_code == 400
    assert "application/json" in server.http.post(CHAT, content=b"{}").json()["error"]["message"]


def test_half_characters(server: RunningServer) -> None:
    def send(text: str) -> httpx.Response:
        return server.http.post(CHAT, content=text, headers={"content-type": "application/json"})

    turns = '"messages": [{"role": "user", "content": "\\ud800"}]'
    assert send(f'{{"model": "acme/chat", {turns}}}').status_code == 400
    assert send('{"model": "\\ud800", "messages": []}').status_code == 400
    assert send('{"model": "acme/chat", "\\ud800": 1, "messages": []}').status_code == 400
    whole = turns.replace("\\ud800", "\\ud83d\\ude42")
    assert send(f'{{"model": "acme/chat", "max_tokens": 1, {whole}}}').status_code == 200


def test_deep_nesting(server: RunningServer) -> None:
    for depth in (100, 1_000, 100_000):
        body = '{"model": "acme/chat", "messages": ' + "[" * depth + "]" * depth + "}"
        response = server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
        deep = '{"a":' * depth + "1" + "}" * depth
        body = f'{{"model": "acme/chat", "max_tokens": 1, "messages": {json.dumps(TURNS)}, "metadata": {deep}}}'
        response = server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400), response.text


def test_huge_body(server: RunningServer) -> None:
    huge = b'{"model": "' + b"x" * (5 << 20) + b'"}'
    announced = server.http.post(CHAT, content=huge, headers={"content-type": "application/json"})
    refused(announced, 413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(huge), 1 << 16):
            yield huge[start : start + (1 << 16)]

    refused(
        server.http.post(CHAT, content=chunks(), headers={"content-type": "application/json"}), 413, "body_too_large"
    )


def test_a_million_items_of_which_the_last_is_wrong(server: RunningServer) -> None:
    """A list is left at its first wrong item, and is checked against what it looks like alone."""
    began = time.monotonic()
    refused(complete(server, prompt=[1] * 900_000 + ["a"]), 400, "invalid_value", "prompt[900000]")
    refused(chat(server, messages=[1] * 900_000), 400, "invalid_value", "messages[0]")
    refused(complete(server, stop=[1] * 900_000), 400, "invalid_value", "stop[0]")
    refused(server.http.post(CLASSIFY, json={"model": "acme/label", "input": [""] * 70_000}), 400, "invalid_value",
            "input")  # fmt: skip
    refused(complete(server, **{f"x{number}": 1 for number in range(200_000)}), 400, "unknown_field", "x0")
    assert time.monotonic() - began < 8  # seconds less than it was for the first of them


def test_a_wrong_kind_is_told_in_one_sentence(server: RunningServer) -> None:
    for response, field, wanted in [
        (complete(server, prompt=5), "prompt", "a text, a list of token ids, or a list of either"),
        (complete(server, stop={}), "stop", "a text or a list of texts"),
        (chat(server, messages=[{"role": "user", "content": 5}]), "messages[0].content", "a list of text parts"),
        (server.http.post(CLASSIFY, json={"model": "acme/label", "input": 5}), "input", "a text or a list of texts"),
    ]:
        message = refused(response, 400, "invalid_value", field)
        assert wanted in message
        assert ";" not in message


def test_texts_have_characters_and_nested_fields_a_path(server: RunningServer) -> None:
    assert "at least 1 character" in refused(chat(server, model=""), 400, "invalid_value", "model")
    assert "at least 1 character" in refused(complete(server, stop=""), 400, "invalid_value", "stop")
    named = [*TURNS, {"role": "user", "content": "a", "name": "x"}]
    message = refused(chat(server, messages=named), 400, "unsupported_parameter", "messages[1].name")
    assert "messages[1].name" in message


def test_a_compressed_body_is_415(server: RunningServer) -> None:
    packed = gzip.compress(json.dumps({"model": "acme/chat", "messages": TURNS}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused(server.http.post(CHAT, content=packed, headers=headers), 415, "unsupported_encoding")


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(server: RunningServer) -> None:
    huge = "word " * 600_000
    for response, field in [
        (complete(server, prompt=huge), "prompt"),
        (chat(server, messages=[{"role": "user", "content": huge}]), "messages"),
        (server.http.post(INSTRUCT, json={"model": "acme/write", "instruction": "a", "input": huge}), "instruction"),
    ]:
        message = refused(response, 400, "context_length_exceeded", field)
        assert "characters" in message
        assert "256" in message


def test_answers_without_a_route_are_counted_under_their_path(server: RunningServer) -> None:
    labels = [(CHAT, "413"), ("/docs", "200"), ("/openapi.json", "200")]
    before = [server.metric("tenora_requests_total", route=route, status=status) for route, status in labels]
    server.http.post(CHAT, content=b"x" * (5 << 20), headers={"content-type": "application/json"})
    server.http.get("/docs")
    server.http.get("/openapi.json")
    after = [server.metric("tenora_requests_total", route=route, status=status) for route, status in labels]
    assert after == [count + 1 for count in before]


def test_unknown_routes_and_methods(server: RunningServer) -> None:
    refused(server.http.get("/v1/nothing"), 404, "route_not_found")
    refused(server.http.get(CHAT), 405, "method_not_allowed")
    assert server.http.get(CHAT).headers["allow"] == "POST"
    assert "GET" in server.http.post("/healthz").headers["allow"]
    for slashed in ("/v1/base/", "/healthz/", CHAT + "/"):
        refused(server.http.get(slashed), 404, "route_not_found")
    for path in ("/healthz", "/readyz", "/metrics"):
        head = server.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
    for stock in ("/litserve/health", "/litserve/info", "/predict"):
        assert server.http.get(stock).status_code == 404


def test_not_http_at_all(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"400" in raw.recv(1000)


@pytest.mark.parametrize("protocol", ["websocket", "WebSocket", "h2c"])
def test_another_protocol_is_declined_at_once(server: RunningServer, protocol: str) -> None:
    """Who asks for one is answered in HTTP, as the standard has it: nothing here speaks another."""
    asked = (
        f"Host: x\r\nConnection: Upgrade, close\r\nUpgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    for path, status in (("/healthz", b"200"), ("/v1/models", b"401"), ("/nowhere", b"401")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\n{asked}".encode())
            assert raw.recv(1000).startswith(b"HTTP/1.1 " + status)
    assert "upgrade" not in server.output().lower()  # strangers do not fill the log


@pytest.mark.parametrize("count", [-1, 0])
def test_max_tokens_below_one(server: RunningServer, count: int) -> None:
    assert "1" in refused(complete(server, max_tokens=count), 400, "invalid_value", "max_tokens")
