"""Server-sent events, and the official client, unmodified."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.service.conftest import ACME
from tests.service.running import RunningServer

TURNS = [{"role": "user", "content": "It was good."}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}


def events(server: RunningServer, path: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, which has to end in [DONE]."""
    with server.http.stream("POST", path, json={"stream": True, **GREEDY, **body}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-tenora-adapter"]
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_chat_stream(server: RunningServer) -> None:
    chunks = events(server, "/v1/chat/completions", model="acme/chat", messages=TURNS)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    body = {"model": "acme/chat", "messages": TURNS, **GREEDY}
    whole = server.http.post("/v1/chat/completions", json=body).json()
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]


def test_usage_comes_last(server: RunningServer) -> None:
    options = {"stream_options": {"include_usage": True}}
    chunks = events(server, "/v1/chat/completions", model="acme/chat", messages=TURNS, **options)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert "usage" not in events(server, "/v1/chat/completions", model="acme/chat", messages=TURNS)[0]


@pytest.mark.parametrize(
    ("path", "prompt", "name"),
    [
        ("/v1/completions", {"prompt": "It was"}, "text_completion"),
        ("/v1/instruct", {"instruction": "Say it."}, "instruct.chunk"),
    ],
)
def test_text_streams(server: RunningServer, path: str, prompt: dict[str, str], name: str) -> None:
    chunks = events(server, path, model="acme/write", logprobs=1, **prompt)
    assert {chunk["object"] for chunk in chunks} == {name}
    whole = server.http.post(path, json={"model": "acme/write", "logprobs": 1, **prompt, **GREEDY}).json()["choices"][0]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    offsets = [at for chunk in chunks if (found := chunk["choices"][0]["logprobs"]) for at in found["text_offset"]]
    assert offsets == whole["logprobs"]["text_offset"]


def test_several_choices_in_one_stream(server: RunningServer) -> None:
    chunks = events(server, "/v1/completions", model="acme/write", prompt=["It was", "Not"], n=2, seed=1, temperature=1)
    ended = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(ended) == [0, 1, 2, 3]


def test_characters_are_never_cut(server: RunningServer) -> None:
    """The tiny base writes bytes at random; what arrives is whole characters all the same."""
    chunks = events(
        server, "/v1/completions", model="zeta/write", prompt="你好 🙂", max_tokens=120, temperature=1.5, seed=5
    )
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    body = {"model": "zeta/write", "prompt": "你好 🙂", **GREEDY, "max_tokens": 120, "temperature": 1.5, "seed": 5}
    assert server.http.post("/v1/completions", json=body).json()["choices"][0]["text"] == text


# ── the official client ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ACME, max_retries=0) as made:
        yield made


def test_openai_chats(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="acme/chat",
        messages=[{"role": "user", "content": "It was good."}],
        max_completion_tokens=5,
        temperature=0,
    )
    assert reply.choices[0].message.role == "assistant"
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 5


def test_openai_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="write",
        messages=[{"role": "user", "content": "It was good."}],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def test_openai_completes_and_reports_logprobs(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="write", prompt="It was", max_tokens=3, logprobs=2)
    assert reply.choices[0].logprobs is not None
    chat = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "a"}], max_tokens=2, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 3


def test_openai_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-llama", "acme/chat", "acme/label", "acme/write"]
    assert client.models.retrieve("acme/write").owned_by == "acme"


def test_openai_raises_its_own_errors(client: openai.OpenAI, server: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "a"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="chat", messages=[])
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-somebody", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    wrong.close()
