"""Classification over a real server, against PEFT's own model."""

import dataclasses
import time
from typing import Any

import pytest
import torch
from peft import PeftModel

from adapters.adapter import load_adapter
from adapters.names import AdapterRef
from adapters.store import Store
from adapters.templates import encode_text
from service.client import TenoraClient
from service.encode import Encoder
from service.messages import Classify
from tests.service.conftest import ADMIN, Home
from tests.service.running import RunningServer
from tests.support.tiny import peft_model


def classify(server: RunningServer, route: str = "/v1/classify", **body: Any) -> dict[str, Any]:
    response = server.http.post(route, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_vllms_shape(server: RunningServer) -> None:
    reply = classify(server, model="acme/label", input=["It was good.", "Not a fan"])
    assert reply["id"].startswith("classify-")
    assert reply["object"] == "list"
    assert reply["model"] == "acme/label"
    assert [entry["index"] for entry in reply["data"]] == [0, 1]
    for entry in reply["data"]:
        assert set(entry) == {"index", "label", "probs", "num_classes"}
        assert entry["num_classes"] == 2
        assert sum(entry["probs"]) == pytest.approx(1, abs=1e-5)
        assert entry["label"] == reply["labels"][entry["probs"].index(max(entry["probs"]))]
    assert reply["labels"] == ["bad", "good"]
    usage = reply["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] > 2
    assert usage["completion_tokens"] == 0


def test_both_routes_and_single_texts(server: RunningServer) -> None:
    one = classify(server, model="zeta/label", input="It was good.")
    other = classify(server, "/classify", model="zeta/label", input=["It was good."])
    assert one["data"] == other["data"]
    assert one["data"][0]["num_classes"] == 3


def test_probabilities_are_pefts(server: RunningServer, home: Home) -> None:
    text = "Better than the first one."
    model = PeftModel.from_pretrained(
        peft_model(home.base.path, task="classify", num_labels=2), home.folders / "acme-label"
    ).eval()
    with torch.no_grad():
        ids = torch.tensor([home.base.tokenizer()(text)["input_ids"]])
        expected = model(ids).logits.softmax(-1)[0].tolist()
    (entry,) = classify(server, model="acme/label", input=text)["data"]
    assert entry["probs"] == pytest.approx(expected, abs=1e-5)


def test_a_long_text_is_cut_as_in_training(server: RunningServer) -> None:
    usage = classify(server, model="acme/label", input="word " * 3000)["usage"]
    assert usage["prompt_tokens"] == 256


def test_megabytes_are_cut_before_they_are_tokenised(home: Home) -> None:
    """What is kept is what the whole text would have given, at either side, and takes no time to speak of."""
    tokenizer = home.base.tokenizer()
    seen: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(len(text))
            return tokenizer(text, **options)

    encoder = Encoder(home.base, 256)
    version = Store(home.store).resolve(AdapterRef.parse("acme/label"))
    adapter = load_adapter(version.path, home.base, digest=version.digest)
    text = "".join(f"word {number} " for number in range(20_000))
    for side in ("right", "left"):
        cut = dataclasses.replace(version, manifest=version.manifest.model_copy(update={"truncation_side": side}))
        encoder._tokenizer = tokenizer
        work = Classify(None, "acme/label", (text,), time.monotonic() + 30)
        expected = encode_text(tokenizer, text, min(version.manifest.max_length, 256), side)
        encoder._tokenizer = Watched()
        (sequence,) = encoder.sequences("r", work, cut, adapter)
        assert list(sequence.tokens) == list(expected)
    assert max(seen) < 20_000 < len(text)


def test_many_texts_at_once(server: RunningServer) -> None:
    texts = [f"text number {number}" for number in range(100)]
    reply = classify(server, model="acme/label", input=texts)
    assert len(reply["data"]) == 100
    with TenoraClient(server.url, ADMIN) as client:
        assert client.classify("acme/label", texts[57])[0].label == reply["data"][57]["label"]
