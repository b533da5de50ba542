"""Which bases are served: complete ones, of architectures that the engine computes exactly."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base import resolve_base
from adapters.errors import BaseModelError
from service.engine.config import EngineConfig, resolve_device, resolve_dtype
from service.engine.engine import Engine
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation
from tests.support.tiny import tiny_base


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
