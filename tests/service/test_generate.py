"""The routes that write, over a real server."""

from typing import Any

import pytest

from service.engine.events import TokenLogprob
from service.formats import COMPLETION, Choice
from service.generation import _sampling
from service.schemas import InstructRequest
from tests.service.running import RunningServer

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}


def post(server: RunningServer, path: str, **body: Any) -> dict[str, Any]:
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def chat(server: RunningServer, model: str = "acme/chat", **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "It was good."}], **GREEDY, **body}
    return post(server, "/v1/chat/completions", model=model, **body)


def test_chat_has_openais_shape(server: RunningServer) -> None:
    reply = chat(server)
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == "acme/chat"
    (choice,) = reply["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    usage = reply["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6


def test_each_model_answers_in_its_own_way(server: RunningServer) -> None:
    prompt = {"prompt": "The meal was", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    texts = {
        model: post(server, "/v1/completions", model=model, **prompt)["choices"][0]["text"]
        for model in ("tiny-llama", "acme/write", "acme/chat", "zeta/write")
    }
    assert len(set(texts.values())) == 4, texts


def test_reply_says_what_answered(server: RunningServer) -> None:
    body = {"model": "acme/write", "prompt": "a", "max_tokens": 1}
    first = server.http.post("/v1/completions", json=body)
    again = server.http.post("/v1/completions", json=body)
    name, _, digest = first.headers["x-tenora-adapter"].partition("@")
    assert name == "acme/write"
    assert len(digest) == 64
    assert again.headers["x-tenora-tier"] == "device"
    base = server.http.post("/v1/completions", json={**body, "model": "tiny-llama"})
    assert base.headers["x-tenora-adapter"] == "tiny-llama"
    assert base.headers["x-tenora-tier"] == "base"


def test_text_parts_are_joined(server: RunningServer) -> None:
    parts = [{"type": "text", "text": "It was "}, {"type": "text", "text": "good."}]
    whole = chat(server)["choices"][0]["message"]["content"]
    assert chat(server, messages=[{"role": "user", "content": parts}])["choices"][0]["message"]["content"] == whole


def test_a_developer_message_is_a_system_message(server: RunningServer) -> None:
    def answer(role: str) -> str:
        turns = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "It was good."}]
        return str(chat(server, messages=turns)["choices"][0]["message"]["content"])

    assert answer("developer") == answer("system")


def test_instruct_and_chat_render_the_same_alpaca_prompt(server: RunningServer) -> None:
    body = {"model": "acme/write", "instruction": "Rewrite the sentence.", "input": "The meal was good.", **GREEDY}
    instruct = post(server, "/v1/instruct", **body)
    assert instruct["object"] == "instruct"
    turns = [{"role": "system", "content": body["instruction"]}, {"role": "user", "content": body["input"]}]
    spoken = chat(server, "acme/write", messages=turns)
    assert instruct["choices"][0]["text"] == spoken["choices"][0]["message"]["content"]
    cached = [reply["usage"].pop("prompt_tokens_details")["cached_tokens"] for reply in (instruct, spoken)]
    assert instruct["usage"] == spoken["usage"]
    assert cached[1] == spoken["usage"]["prompt_tokens"] - 1  # one prompt: the second time only its end is computed


def test_n_answers_and_lists_of_prompts(server: RunningServer) -> None:
    body = {"model": "acme/write", "prompt": ["It was", "Not a fan"], "max_tokens": 5, "ignore_eos": True}
    reply = post(server, "/v1/completions", n=3, seed=7, **body)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    assert len({choice["text"] for choice in reply["choices"][:3]}) == 3
    assert reply["usage"]["completion_tokens"] == 30
    alone = post(server, "/v1/completions", **{**body, "prompt": "It was", "seed": 7})
    assert alone["choices"][0]["text"] == reply["choices"][0]["text"]
    single = [post(server, "/v1/completions", **{**body, "prompt": one}) for one in body["prompt"]]
    assert reply["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in single)


def test_a_choice_is_what_a_request_with_its_seed_writes(server: RunningServer) -> None:
    body = {"model": "acme/write", "max_tokens": 12, "temperature": 1.3, "ignore_eos": True}
    prompts = ["Not a fan", "It was"]
    choices = post(server, "/v1/completions", prompt=prompts, n=4, seed=7, **body)["choices"]
    alone = [
        post(server, "/v1/completions", prompt=prompt, seed=seed, **body)["choices"][0]["text"]
        for prompt in prompts
        for seed in (7, 8, 9, 10)
    ]
    assert [choice["text"] for choice in choices] == alone
    assert len(set(alone)) == 8


def test_a_tiny_temperature_is_greedy(server: RunningServer) -> None:
    def write(temperature: float) -> list[str]:
        body = {"model": "acme/write", "prompt": "It was", "n": 3, "max_tokens": 8, "ignore_eos": True}
        choices = post(server, "/v1/completions", temperature=temperature, **body)["choices"]
        return [choice["text"] for choice in choices]

    assert write(0.0009) == write(5e-324) == write(0)
    for asked, sampled in [(0.0009, 0.0), (5e-324, 0.0), (0.001, 0.001), (None, 1.0)]:
        assert _sampling(InstructRequest(model="m", instruction="i", temperature=asked), None).temperature == sampled


def test_text_offsets_are_places_in_the_text() -> None:
    choice = Choice()
    for text, token in [("It", "It"), ("", "\ufffd"), ("é", "\ufffd"), ("", "<|end|>"), (" was", " was")]:
        choice.add(text, [TokenLogprob(1, token, (), -1.0, ())])
    assert COMPLETION.logprobs(choice)["text_offset"] == [0, 2, 2, 3, 3]
    assert COMPLETION.logprobs(choice, 3)["text_offset"] == [3, 3]


def test_token_ids_are_a_prompt(server: RunningServer) -> None:
    body = {"model": "tiny-llama", "max_tokens": 4, "temperature": 0}
    reply = post(server, "/v1/completions", prompt=[5, 6, 7], **body)
    both = post(server, "/v1/completions", prompt=[[5, 6, 7], [8]], **body)
    assert reply["usage"]["prompt_tokens"] == 3
    assert both["usage"]["prompt_tokens"] == 4
    assert both["choices"][0]["text"] == reply["choices"][0]["text"]


def test_stop_ends_the_answer_and_is_no_part_of_it(server: RunningServer) -> None:
    body = {"model": "acme/write", "prompt": "It was", "temperature": 0, "ignore_eos": True}
    text = post(server, "/v1/completions", **body)["choices"][0]["text"]
    stop = text[len(text) // 2]
    (choice,) = post(server, "/v1/completions", stop=[stop, "never there"], **body)["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_defaults_of_max_tokens(server: RunningServer) -> None:
    completion = post(server, "/v1/completions", model="tiny-llama", prompt="It was", ignore_eos=True)
    assert completion["usage"]["completion_tokens"] == 16
    chosen = chat(server, max_tokens=None)  # the rest of a context of 256, as 256 is the server's own default
    assert chosen["usage"]["total_tokens"] == 256


def test_chat_logprobs(server: RunningServer) -> None:
    reply = chat(server, max_tokens=3, logprobs=True, top_logprobs=2)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == 3
    for entry in entries:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == pytest.approx(entry["logprob"], abs=1e-5)  # greedy


def test_completion_logprobs(server: RunningServer) -> None:
    body = {"model": "acme/write", "prompt": "It was", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    logprobs = post(server, "/v1/completions", logprobs=1, **body)["choices"][0]["logprobs"]
    assert {len(logprobs[key]) for key in logprobs} == {3}
    assert logprobs["text_offset"][0] == 0
    assert set(logprobs["top_logprobs"][0]) == {logprobs["tokens"][0]}


def test_same_seed_same_text(server: RunningServer) -> None:
    def write(seed: int) -> str:
        return str(chat(server, seed=seed, temperature=1.5, max_tokens=12)["choices"][0]["message"]["content"])

    assert write(3) == write(3) != write(4)
