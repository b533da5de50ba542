"""An encoder with real weights, from the extra `minilm`: PEFT's adapter over it is served exactly."""

from pathlib import Path

import pytest
import torch

from adapters.base import resolve_base
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from tests.engine.conftest import read_adapter
from tests.engine.driving import drain, text
from tests.engine.oracle import Oracle
from tests.support.tiny import write_peft_adapter

TEXTS = ["It was good.", "Not a fan, don't recommend.", "Better than the first one, by a long way."]


@pytest.mark.parametrize("targets", [["query", "value"], "all-linear"])
def test_minilm_classifies_as_peft_does(tmp_path: Path, targets: list[str] | str) -> None:
    """`all-linear` adapts BERT's pooler too, which only the heads go through."""
    source = resolve_base("minilm")
    assert source.kind == "encoder"
    folder = write_peft_adapter(source.path, tmp_path / "a", task="classify", targets=targets, num_labels=3)
    adapter = read_adapter(folder, source, labels=("a", "b", "c"))
    assert any("pooler" in module for module in adapter.weights.pairs) == (targets == "all-linear")
    engine = Engine(source, EngineConfig(dtype="float32", device="cpu"))
    ids = [source.tokenizer()(words)["input_ids"] for words in TEXTS]
    outcomes = drain(engine, *(text(words, row, adapter) for words, row in zip(TEXTS, ids, strict=True)))
    oracle = Oracle(source.path, folder, task="classify", num_labels=3)
    for words, row in zip(TEXTS, ids, strict=True):
        torch.testing.assert_close(outcomes[words].probabilities, oracle.classify(row), atol=1e-4, rtol=0)
