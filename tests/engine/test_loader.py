"""Which bases are served: complete ones, of architectures that the engine computes exactly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.base import resolve_base
from adapters.errors import BaseModelError
from service.engine.config import EngineConfig, resolve_device, resolve_dtype
from service.engine.engine import Engine
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation
from tests.support.tiny import tiny_base, tiny_tokenizer


def engine(folder: Path) -> Engine:
    return Engine(resolve_base(str(folder)), EngineConfig(dtype="float32", device="cpu"))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = tiny_base("llama", tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        engine(folder)


def test_layers_that_are_not_computed_are_refused(tmp_path: Path) -> None:
    folder = tiny_base("qwen3", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention", "chunked_attention"]
    config["attention_chunk_size"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="chunked_attention"):
        engine(folder)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_embeddings_that_depend_on_the_batch_are_refused(tmp_path: Path, rope: str) -> None:
    folder = tiny_base("llama", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] |= {
        "rope_type": rope, "factor": 2.0, "original_max_position_embeddings": 64,
        "long_factor": [1.0] * 4, "short_factor": [1.0] * 4,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=rope):
        engine(folder)


def test_an_attention_that_is_not_computed_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "gemma2", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, vocab_size=320, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="softcap"):
        engine(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_base_that_comes_out_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As it would if an architecture numbered its positions in a way of its own."""
    monkeypatch.setattr("service.engine.loader._position_offset", lambda _model: 3)
    folder = tiny_base(kind, tmp_path / "base")
    with pytest.raises(BaseModelError, match="otherwise in a shared batch"):
        engine(folder)


def test_bfloat16_follows_float32_closely(llama: Zoo) -> None:
    vocabulary, ids = llama.source.config().vocab_size, llama.ids("the quick brown fox")
    rows = []
    for dtype in ("float32", "bfloat16"):
        engine = llama.engine(dtype=dtype)
        sequence = generation("r", ids, llama.adapters["small"], vocabulary=vocabulary, max_tokens=1)
        rows.append(drain(engine, sequence)["r"].logprobs[0])
    assert 1e-6 < (rows[0] - rows[1]).abs().mean() < 0.05


def test_names_of_devices_and_types_are_checked() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("bfloat16", cpu) is torch.bfloat16
    assert resolve_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    for broken in (lambda: resolve_dtype("float16", cpu), lambda: resolve_device("tpu")):
        with pytest.raises(ValueError, match="must be"):
            broken()
