"""Clients of Text Generation Inference and LoRAX: the official one, and the shapes on the wire."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import InferenceTimeoutError, TextGenerationError, UnknownError, ValidationError

from service.errors import ErrorDetail
from service.tgi_errors import TgiError
from service.tgi_schemas import TgiParameters
from tests.service.conftest import ACME, ADMIN
from tests.service.running import RunningServer

PROMPT = "The meal was"
HOW: dict[str, Any] = {"adapter_id": "acme/write", "max_new_tokens": 6, "ignore_eos_token": True}


@pytest.fixture
def client(server: RunningServer) -> Iterator[InferenceClient]:
    yield InferenceClient(server.url, token=ADMIN)


def post(server: RunningServer, path: str = "/generate", **body: Any) -> httpx.Response:
    return server.http.post(path, json={"inputs": PROMPT, **body})


def events(server: RunningServer, path: str = "/generate_stream", **body: Any) -> list[dict[str, Any]]:
    response = post(server, path, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data:{") for line in lines)
    return [json.loads(line.removeprefix("data:")) for line in lines]


def refused(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "error_type"}
    assert body["error_type"] == kind
    return str(body["error"])


def test_the_official_client_writes(server: RunningServer, client: InferenceClient) -> None:
    text = client.text_generation(PROMPT, adapter_id="acme/write", max_new_tokens=6)
    body = {"model": "acme/write", "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    assert text == server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert text != client.text_generation(PROMPT, max_new_tokens=6)  # the base


def test_the_official_client_asks_for_details(client: InferenceClient) -> None:
    answer = client.text_generation(
        PROMPT, adapter_id="acme/write", max_new_tokens=6, details=True, do_sample=True, seed=5, top_n_tokens=2
    )
    details = answer.details
    assert details is not None and details.seed == 5
    assert details.finish_reason in ("length", "eos_token")
    assert details.generated_tokens == len(details.tokens) <= 6
    assert all(token.logprob <= 0 for token in details.tokens)
    assert details.top_tokens is not None and [len(top) for top in details.top_tokens] == [2] * len(details.tokens)


def test_the_official_client_streams(client: InferenceClient) -> None:
    asked: dict[str, Any] = {"adapter_id": "acme/write", "max_new_tokens": 9}
    whole = client.text_generation(PROMPT, **asked)
    assert "".join(client.text_generation(PROMPT, stream=True, **asked)) == whole
    pieces = list(client.text_generation(PROMPT, stream=True, details=True, **asked))
    assert [piece.index for piece in pieces] == list(range(1, len(pieces) + 1))
    assert [piece.generated_text for piece in pieces] == [None] * (len(pieces) - 1) + [whole]
    last = pieces[-1].details
    assert last is not None and last.generated_tokens == len(pieces) and last.input_length > 0


def test_the_official_client_raises_what_it_has_for_an_error(server: RunningServer, client: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="best_of"):
        client.text_generation(PROMPT, best_of=2)
    with pytest.raises(UnknownError, match="acme/nothing"):
        client.text_generation(PROMPT, adapter_id="acme/nothing")
    with pytest.raises((TextGenerationError, InferenceTimeoutError)):
        client.text_generation(PROMPT, adapter_id="acme/label", stream=True)
    other = InferenceClient(server.url, token=ACME)
    with pytest.raises(UnknownError, match="zeta/write"):
        other.text_generation(PROMPT, adapter_id="zeta/write")


def test_whole_answers(server: RunningServer) -> None:
    body = post(server, parameters=HOW).json()
    assert set(body) == {"generated_text"}
    full = post(
        server, parameters={**HOW, "details": True, "return_full_text": True, "return_k_alternatives": 2}
    ).json()
    assert full["generated_text"] == PROMPT + body["generated_text"]
    details = full["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 6, None)
    assert details["prefill"] == []
    for token in details["tokens"]:
        assert set(token) == {"id", "text", "logprob", "special", "alternative_tokens"}
        assert token["alternative_tokens"][0]["id"] == token["id"]  # greedy
    assert post(server, "/", parameters=HOW).json() == [body]


def test_streams(server: RunningServer) -> None:
    text = post(server, parameters=HOW).json()["generated_text"]
    told = events(server, parameters={**HOW, "details": True})
    assert events(server, "/", parameters={**HOW, "details": True}, stream=True) == told
    assert "".join(event["token"]["text"] for event in told) == text
    assert len(told) == 6
    assert all(set(event) == {"index", "token", "generated_text", "details"} for event in told)
    assert told[-1]["generated_text"] == text
    details = told[-1]["details"]
    assert details["finish_reason"] == "length" and details["prompt_tokens"] == details["input_length"] > 0
    assert events(server, parameters=HOW)[-1]["details"] is None


def test_reasons(server: RunningServer) -> None:
    text = post(server, parameters={**HOW, "max_new_tokens": 12}).json()["generated_text"]
    stop = text[len(text) // 2]
    how = {**HOW, "max_new_tokens": 12, "details": True, "stop": [stop]}
    stopped = post(server, parameters=how).json()
    assert stopped["generated_text"] == text[: text.index(stop)]
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    told = events(server, parameters=how)
    assert "".join(event["token"]["text"] for event in told) == stopped["generated_text"]
    assert told[-1]["details"]["finish_reason"] == "stop_sequence"
    assert not any(event["token"]["special"] for event in told)


def test_an_end_token(server: RunningServer) -> None:
    """Sampled from nearly uniform tokens some answer meets the end token, of a few hundred, before 200 others."""
    for seed in range(12):
        how = {"adapter_id": "acme/write", "max_new_tokens": 200, "temperature": 50.0, "seed": seed, "details": True}
        told = events(server, parameters=how)
        if told[-1]["details"]["finish_reason"] == "eos_token":
            whole = post(server, parameters=how).json()
            break
    else:
        pytest.fail("no answer ended by itself")
    last = told[-1]["token"]
    assert last["special"] and last["text"]
    shown = "".join(event["token"]["text"] for event in told if not event["token"]["special"])
    assert shown == told[-1]["generated_text"] == whole["generated_text"]
    assert whole["details"]["tokens"][-1]["special"]
    assert whole["details"]["seed"] == how["seed"]


def test_a_drawn_seed_is_told(server: RunningServer) -> None:
    how = {**HOW, "max_new_tokens": 12, "temperature": 1.5, "details": True}
    drawn = post(server, parameters=how).json()
    seed = drawn["details"]["seed"]
    assert isinstance(seed, int)
    assert post(server, parameters={**how, "seed": seed}).json()["generated_text"] == drawn["generated_text"]


@pytest.mark.parametrize(
    ("given", "samples"),
    [({}, False), ({"do_sample": True}, True), ({"temperature": 0.7}, True), ({"temperature": 1.0}, False),
     ({"temperature": 0.0, "do_sample": True}, False), ({"top_k": 5}, True), ({"top_p": 0.9}, True),
     ({"top_p": 1.0, "top_k": 0}, False)],
)  # fmt: skip
def test_what_samples(given: dict[str, Any], samples: bool) -> None:
    assert TgiParameters(**given).samples is samples


@pytest.mark.parametrize(
    ("field", "value"),
    [("best_of", 2), ("typical_p", 0.5), ("watermark", True), ("truncate", 5), ("decoder_input_details", True),
     ("grammar", {"type": "regex", "value": "a"}), ("response_format", {"type": "json_object"}),
     ("merged_adapters", {"ids": ["a"]}), ("api_token", "t"), ("apply_chat_template", True),
     ("adapter_source", "hub"), ("adapter_source", "s3")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_what_cannot_be_honoured_is_refused_by_name(server: RunningServer, path: str, field: str, value: Any) -> None:
    message = refused(post(server, path, parameters={field: value}), 422, "validation")
    assert f"parameters.{field}" in message


def test_values_that_ask_for_nothing_pass(server: RunningServer) -> None:
    """All that LoRAX's and TGI's own clients send when nothing is set."""
    nothing = {
        "adapter_id": None, "adapter_source": None, "merged_adapters": None, "api_token": None, "do_sample": False,
        "ignore_eos_token": False, "repetition_penalty": None, "return_full_text": False, "stop": [], "seed": None,
        "temperature": None, "top_k": None, "top_p": None, "truncate": None, "typical_p": None, "best_of": None,
        "watermark": False, "details": False, "decoder_input_details": False, "return_k_alternatives": None,
        "response_format": None, "frequency_penalty": None, "top_n_tokens": None, "grammar": None,
        "max_new_tokens": 3,
    }  # fmt: skip
    bare = post(server, parameters={"max_new_tokens": 3})
    for path in ("/generate", "/generate_stream", "/"):
        assert post(server, path, parameters=nothing).status_code == 200
    assert post(server, parameters=nothing).json() == bare.json()
    named = {"max_new_tokens": 3, "adapter_id": "__base_model__", "adapter_source": "local", "best_of": 1}
    assert post(server, parameters=named).json() == bare.json()
    assert post(server, parameters=None).status_code == 200


def test_wrong_requests(server: RunningServer) -> None:
    assert "inputs" in refused(server.http.post("/generate", json={}), 422, "validation")
    assert "inputs" in refused(server.http.post("/generate", json={"inputs": ""}), 422, "validation")
    assert "hurry" in refused(post(server, parameters={"hurry": 1}), 422, "validation")
    assert "seed" in refused(post(server, parameters={"seed": -1}), 422, "validation")
    assert "generate_stream" in refused(post(server, stream=True), 422, "validation")
    assert "/generate" in refused(post(server, "/generate_stream", stream=False), 422, "validation")
    assert "JSON" in refused(
        server.http.post("/", content=b"{", headers={"content-type": "application/json"}), 422, "validation"
    )
    for path in ("/generate", "/generate_stream"):
        refused(post(server, path, parameters={"adapter_id": "acme/nothing"}), 404, "model_not_found")
        refused(post(server, path, parameters={"adapter_id": "acme/label"}), 422, "validation")
        assert "context" in refused(post(server, path, parameters={"max_new_tokens": 5000}), 422, "validation")
    refused(server.http.get("/generate"), 405, "method_not_allowed")


def test_classify_in_loraxs_form(server: RunningServer) -> None:
    parameters = {"adapter_id": "zeta/label"}
    one = server.http.post("/classify", json={"inputs": "good", "parameters": parameters, "stream": False})
    assert one.status_code == 200, one.text
    assert one.headers["x-adapter-id"] == "zeta/label"
    reply = server.http.post("/classify", json={"model": "zeta/label", "input": "good"}).json()
    probabilities = dict(zip(reply["labels"], reply["data"][0]["probs"], strict=True))
    entities = one.json()
    assert {entity["entity"]: pytest.approx(entity["score"], abs=1e-6) for entity in entities} == probabilities
    assert entities[0]["entity"] == reply["data"][0]["label"]
    assert {(entity["word"], entity["start"], entity["end"]) for entity in entities} == {("good", 0, 4)}
    several = server.http.post("/v1/classify", json={"inputs": ["good", "bad"], "parameters": parameters}).json()
    assert [entities[0]["word"] for entities in several] == ["good", "bad"]


def test_classify_refuses_in_the_form_it_was_asked_in(server: RunningServer) -> None:
    assert "labels" in refused(server.http.post("/classify", json={"inputs": "good"}), 422, "validation")
    named = {"inputs": "good", "parameters": {"adapter_id": "acme/nothing"}}
    refused(server.http.post("/classify", json=named), 404, "model_not_found")
    assert "inputs" in refused(server.http.post("/classify", json={"inputs": 5}), 422, "validation")
    assert "model" in refused(
        server.http.post("/classify", json={"inputs": "a", "model": "acme/label"}), 422, "validation"
    )
    both = server.http.post("/classify", json={"inputs": "good", "input": "good", "model": "acme/label"})
    assert both.status_code == 400
    assert both.json()["error"]["param"] == "inputs"
    wrong = server.http.post("/classify", json={"input": 5, "model": "acme/label"})
    assert wrong.json()["error"]["param"] == "input"
    assert server.http.post("/v1/completions", json={}).json()["error"]["code"] == "missing_field"


def test_info_and_health(server: RunningServer) -> None:
    info = server.http.get("/info").json()
    base = server.http.get("/v1/base").json()
    assert (info["model_id"], info["model_sha"]) == (base["id"], base["fingerprint"])
    assert info["max_total_tokens"] == base["max_model_len"] == info["max_input_length"] + 1
    assert info["model_pipeline_tag"] == "text-generation"
    health = server.http.get("/health")
    assert (health.status_code, health.text) == (200, "")
    assert server.http.head("/health").status_code == 200
    assert server.http.get("/").status_code == 405


@pytest.mark.parametrize(
    ("status", "code", "told", "kind"),
    [(400, "invalid_value", 422, "validation"), (429, "queue_full", 429, "overloaded"),
     (500, "non_finite_logits", 424, "generation"), (500, "internal_error", 500, "internal_error"),
     (422, "adapter_invalid", 422, "adapter_invalid"), (503, "engine_failure", 503, "engine_failure")],
)  # fmt: skip
def test_errors_in_their_terms(status: int, code: str, told: int, kind: str) -> None:
    error = TgiError.of(ErrorDetail(status, "why", "any", code))
    assert (error.status, dict(error.body)) == (told, {"error": "why", "error_type": kind})
