"""The ways in which clients of other servers name a model: by version, alias and base, and by Ray Serve's header."""

from typing import Any

import httpx
import pytest

from tests.service.running import RunningServer

HEADER = "serve_multiplexed_model_id"
WRITE: dict[str, Any] = {"prompt": "It was", "max_tokens": 3, "ignore_eos": True}


def ask(server: RunningServer, path: str, body: dict[str, Any], header: str | None = None) -> httpx.Response:
    return server.http.post(path, json=body, headers={} if header is None else {HEADER: header})


def served(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-adapter-id"]


def test_forms_of_a_name(server: RunningServer) -> None:
    digest = ask(server, "/v1/completions", {**WRITE, "model": "acme/write"}).headers["x-tenora-digest"]
    adapter = ("acme/write", f"acme/write@{digest}", f"acme/write@{digest[:8]}", "acme/write:latest")
    for name in (*adapter, *(f"tiny-llama:{one}" for one in adapter)):
        assert served(ask(server, "/v1/completions", {**WRITE, "model": name})) == "acme/write"
        generated = ask(server, "/generate", {"inputs": "a", "parameters": {"adapter_id": name, "max_new_tokens": 2}})
        assert served(generated) == "acme/write"
    assert ask(server, "/v1/completions", {**WRITE, "model": "tiny-llama"}).headers["x-tenora-tier"] == "base"


@pytest.mark.parametrize(
    "name", ["other:acme/write", "tiny-llama:", "tiny-llama:tiny-llama", "acme/write:", "acme/write:nothing",
             "acme/write@0000000000", "tiny-llama@1", "tiny-llama:latest"],
)  # fmt: skip
def test_anything_else_is_404_and_never_the_base(server: RunningServer, name: str) -> None:
    assert ask(server, "/v1/completions", {**WRITE, "model": name}).status_code == 404
    assert ask(server, "/generate", {"inputs": "a", "parameters": {"adapter_id": name}}).status_code == 404
    assert ask(server, "/v1/completions", WRITE, name).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [("/v1/completions", WRITE, "acme/write"),
     ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}, "acme/chat"),
     ("/v1/classify", {"input": "good"}, "acme/label"),
     ("/v1/score", {"items": {"prompt": "a", "answer": "b"}}, "beta/reward"),
     ("/classify", {"inputs": "good", "parameters": None}, "acme/label"),
     ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}}, "acme/write"),
     ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 2}}, "acme/write"),
     ("/", {"inputs": "a", "parameters": {"max_new_tokens": 2, "adapter_id": None}}, "acme/write")],
)  # fmt: skip
def test_rays_header_names_the_model(server: RunningServer, path: str, body: dict[str, Any], model: str) -> None:
    assert served(ask(server, path, body, model)) == model


def test_rays_header_and_the_body_have_to_agree(server: RunningServer) -> None:
    body = {**WRITE, "model": "acme/write"}
    assert served(ask(server, "/v1/completions", body, "acme/write")) == "acme/write"
    other = ask(server, "/v1/completions", body, "acme/chat")
    assert other.status_code == 400
    assert other.json()["error"]["param"] == "model"
    assert other.headers["x-request-id"]
    tgi = {"inputs": "a", "parameters": {"adapter_id": "acme/write", "max_new_tokens": 2}}
    assert served(ask(server, "/generate", tgi, "acme/write")) == "acme/write"
    refused = ask(server, "/generate", tgi, "acme/chat")
    assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")


def test_what_is_no_object_is_refused_by_its_route(server: RunningServer) -> None:
    for content in (b"{", b"[]", b"5", b""):
        headers = {HEADER: "acme/write", "content-type": "application/json"}
        assert server.http.post("/v1/completions", content=content, headers=headers).status_code == 400
    wrong = ask(server, "/generate", {"inputs": "a", "parameters": 5}, "acme/write")
    assert wrong.status_code == 422


def test_routes_without_a_model_take_no_notice(server: RunningServer) -> None:
    assert server.http.get("/v1/models", headers={HEADER: "acme/nothing"}).status_code == 200


def test_a_body_beyond_the_limit_is_still_413(server: RunningServer) -> None:
    def endless() -> Any:
        for _ in range(200):
            yield b" " * 65536

    with httpx.Client(base_url=server.url, headers=server.http.headers, timeout=20) as client:
        try:
            response = client.post("/v1/completions", content=endless(), headers={HEADER: "acme/write"})
        except httpx.WriteError:
            return  # the server had closed before the client was through
    assert response.status_code == 413
