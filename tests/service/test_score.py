"""Scores over a real server, against PEFT's own model; several labels at once, and heads alone, beside them."""

import concurrent.futures
import dataclasses
import time
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from torch import nn

from adapters.adapter import load_adapter
from adapters.names import AdapterRef
from adapters.store import Store
from adapters.templates import PromptInput, PromptTemplate, scored_ids
from service.encode import Encoder
from service.errors import ContextLengthError
from service.messages import InstructPrompt, Score, ScoredAnswer
from tests.service.conftest import ACME, Home
from tests.service.running import RunningServer
from tests.service.test_batching import shared_steps
from tests.support.tiny import peft_model

PROMPT, ANSWERS = "Rewrite the sentence.", ["The meal was cooked.", "Not a fan.", "", "a"]


@pytest.fixture(scope="module")
def models(home: Home) -> dict[str, nn.Module]:
    """PEFT's own, by the adapter's name."""
    return {
        name: PeftModel.from_pretrained(
            peft_model(home.base.path, task="classify", num_labels=labels), home.folders / f"beta-{name}"
        ).eval()
        for name, labels in (("tags", 3), ("head", 2), ("reward", 1))
    }


def ask(server: RunningServer, route: str, **body: Any) -> dict[str, Any]:
    response = server.http.post(route, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def score(server: RunningServer, items: object) -> list[float]:
    return [entry["score"] for entry in ask(server, "/v1/score", model="beta/reward", items=items)["data"]]


@torch.no_grad()
def logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


def pefts_score(home: Home, model: nn.Module, prompt: PromptInput, answer: str) -> float:
    ids = scored_ids(PromptTemplate.named("alpaca"), home.base.tokenizer(), prompt, answer)
    return float(logits(model, ids))


def test_the_shape_of_a_reply(server: RunningServer, home: Home) -> None:
    items = [{"prompt": PROMPT, "answer": answer} for answer in ANSWERS]
    response = server.http.post("/v1/score", json={"model": "beta/reward", "items": items})
    reply = response.json()
    assert set(reply) == {"id", "object", "created", "model", "data", "usage"}
    assert reply["id"].startswith("score-")
    assert (reply["object"], reply["model"]) == ("list", "beta/reward")
    assert [set(entry) for entry in reply["data"]] == [{"index", "score"}] * 4
    assert [entry["index"] for entry in reply["data"]] == [0, 1, 2, 3]
    tokenizer, alpaca = home.base.tokenizer(), PromptTemplate.named("alpaca")
    asked = PromptInput.from_instruction(PROMPT)
    tokens = sum(len(scored_ids(alpaca, tokenizer, asked, answer)) for answer in ANSWERS)
    assert reply["usage"] == {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    assert response.headers["x-tenora-adapter"].startswith("beta/reward@")
    assert response.headers["x-tenora-tier"] in ("store", "host", "device")


def test_scores_are_pefts(server: RunningServer, home: Home, models: dict[str, nn.Module]) -> None:
    found = score(server, [{"prompt": PROMPT, "answer": answer} for answer in ANSWERS])
    asked = PromptInput.from_instruction(PROMPT)
    expected = [pefts_score(home, models["reward"], asked, answer) for answer in ANSWERS]
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01


def test_every_way_to_give_a_prompt(server: RunningServer, home: Home, models: dict[str, nn.Module]) -> None:
    user = {"role": "user", "content": "It was good."}
    system = {"role": "system", "content": "Say it."}
    items: list[tuple[dict[str, Any], PromptInput]] = [
        ({"prompt": "It was good."}, PromptInput.from_instruction("It was good.")),
        ({"instruction": "Say it.", "input": "It was good."}, PromptInput.from_instruction("Say it.", "It was good.")),
        ({"messages": [user]}, PromptInput.from_messages([user])),
        ({"messages": [system, user]}, PromptInput.from_messages([system, user])),
    ]
    expected = [pefts_score(home, models["reward"], prompt, "Yes.") for _, prompt in items]
    assert score(server, [{**item, "answer": "Yes."} for item, _ in items]) == pytest.approx(expected, abs=1e-4)
    for (item, _), wanted in zip(items, expected, strict=True):
        assert score(server, {**item, "answer": "Yes."}) == pytest.approx([wanted], abs=1e-4)
    assert len({round(number, 3) for number in expected}) == 2  # the first and third say the same, as do the others


def test_several_labels_at_once(server: RunningServer, home: Home, models: dict[str, nn.Module]) -> None:
    texts = ["It was good.", "Not a fan, don't recommend.", "a", "the quick brown fox"]
    reply = ask(server, "/v1/classify", model="beta/tags", input=texts)
    assert reply["labels"] == ["bill", "late", "rude"]
    assert reply["threshold"] == 0.5
    for text, entry in zip(texts, reply["data"], strict=True):
        assert set(entry) == {"index", "label", "probs", "num_classes", "selected"}
        expected = logits(models["tags"], home.base.tokenizer()(text)["input_ids"]).sigmoid().tolist()
        assert entry["probs"] == pytest.approx(expected, abs=1e-5)
        assert entry["selected"] == [name for name, p in zip(reply["labels"], expected, strict=True) if p >= 0.5]
        assert entry["label"] == reply["labels"][expected.index(max(expected))]
    assert len({len(entry["selected"]) for entry in reply["data"]}) > 1
    other = ask(server, "/classify", model="beta/tags", input=texts, threshold=reply["data"][0]["probs"][1])
    assert "late" in other["data"][0]["selected"]  # at the threshold counts
    assert ask(server, "/classify", model="beta/tags", input="a", threshold=1)["data"][0]["selected"] == []


def test_a_head_alone(server: RunningServer, home: Home, models: dict[str, nn.Module]) -> None:
    reply = ask(server, "/v1/classify", model="beta/head", input="It was good.")
    expected = logits(models["head"], home.base.tokenizer()("It was good.")["input_ids"]).softmax(-1).tolist()
    assert reply["data"][0]["probs"] == pytest.approx(expected, abs=1e-5)
    assert "threshold" not in reply
    assert Store(home.store).resolve(AdapterRef.parse("beta/head")).manifest.labels == ("no", "yes")


def test_a_head_alone_is_imported_over_http(server: RunningServer, home: Home) -> None:
    body = {"lora_name": "beta/imported", "lora_path": str(home.folders / "beta-head")}
    loaded = server.http.post("/v1/load_lora_adapter", json=body)
    assert loaded.status_code == 200, loaded.text
    replies = [ask(server, "/classify", model=f"beta/{name}", input="It was good.") for name in ("imported", "head")]
    assert replies[0]["labels"] == ["LABEL_0", "LABEL_1"]
    assert replies[0]["data"][0]["probs"] == replies[1]["data"][0]["probs"]
    Store(home.store).delete(AdapterRef.parse("beta/imported").name)


def test_scores_share_steps_with_other_tenants(server: RunningServer) -> None:
    items = [{"prompt": PROMPT, "answer": f"answer number {number}"} for number in range(60)]
    texts = [item["answer"] for item in items]
    written = {"prompt": "It was", "max_tokens": 150, "temperature": 0, "ignore_eos": True}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"model": "acme/write", **written}),
        ("/v1/completions", {"model": "zeta/write", **written}),
        ("/v1/score", {"model": "beta/reward", "items": items}),
        ("/v1/classify", {"model": "beta/tags", "input": texts}),
        ("/v1/classify", {"model": "beta/head", "input": texts}),
        ("/v1/classify", {"model": "acme/label", "input": texts}),
    ]
    alone = [ask(server, path, **body) for path, body in bodies]
    shared = shared_steps(server)
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        replies = list(pool.map(lambda asked: ask(server, asked[0], **asked[1]), bodies))
    assert shared_steps(server) - shared > 5
    for reply, expected in zip(replies[:2], alone[:2], strict=True):
        assert reply["choices"] == expected["choices"]
    for reply, expected in zip(replies[2:], alone[2:], strict=True):
        for entry, other in zip(reply["data"], expected["data"], strict=True):
            assert entry.get("score", 0) == pytest.approx(other.get("score", 0), abs=1e-4)
            assert entry.get("probs", []) == pytest.approx(other.get("probs", []), abs=1e-5)


def test_another_tenants_reward_model_is_unknown(server: RunningServer) -> None:
    body = {"model": "beta/reward", "items": {"prompt": "a", "answer": "b"}}
    response = httpx.post(f"{server.url}/v1/score", json=body, headers={"X-API-Key": ACME}, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_the_list_of_models_tells_the_task(server: RunningServer) -> None:
    assert server.http.get("/v1/models/beta/reward").json()["task"] == "score"


def test_what_fits_is_counted_to_the_token(home: Home) -> None:
    """The bound is the length that the adapter was trained with, where the context would hold more."""
    version = Store(home.store).resolve(AdapterRef.parse("beta/reward"))
    adapter = load_adapter(version.path, home.base, digest=version.digest)
    item = ScoredAnswer(InstructPrompt("Say it.", "It was good."), "It was.", "items[7]")
    work = Score(None, "beta/reward", (item,), time.monotonic() + 30)
    asked = PromptInput.from_instruction("Say it.", "It was good.")
    ids = scored_ids(PromptTemplate.named("alpaca"), home.base.tokenizer(), asked, "It was.")
    for most in (len(ids), len(ids) - 1):
        shorter = version.manifest.model_copy(update={"max_length": most})
        encoder, bounded = Encoder(home.base, 256), dataclasses.replace(version, manifest=shorter)
        if most == len(ids):
            (sequence,) = encoder.sequences("r", work, bounded, adapter)
            assert (list(sequence.tokens), sequence.classifies) == (ids, True)
        else:
            with pytest.raises(ContextLengthError, match=f"{len(ids)} tokens.*at most {most}") as caught:
                encoder.sequences("r", work, bounded, adapter)
            assert caught.value.param == "items[7]"
