"""Tiny models of the bench's own making."""

from pathlib import Path

import pytest

from adapters.base import BaseSource, resolve_base
from bench.models import make_model

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 700, "max_position_embeddings": 256,
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
DISTILBERT = {
    "model_type": "distilbert", "n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64, "vocab_size": 700,
    "max_position_embeddings": 256, "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> BaseSource:
    return resolve_base(str(make_model(LLAMA, tmp_path_factory.mktemp("bench") / "tiny-llama")))


@pytest.fixture(scope="session")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> BaseSource:
    return resolve_base(str(make_model(DISTILBERT, tmp_path_factory.mktemp("bench") / "tiny-distilbert")))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
