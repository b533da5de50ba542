"""Tiny bases of any architecture, with weights as wide or as narrow as a test wants them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.base import resolve_base
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.native.layers import FusedLayers
from tests.engine.driving import drain, generation
from tests.support.tiny import CONFIGS, tiny_tokenizer


def save_base(folder: Path, kind: str, *, spread: float = 0.15, **changes: Any) -> Path:
    """A decoder of architecture ``kind``, of Llama's tiny shape, its matrices and biases random."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {**CONFIGS.get(kind, CONFIGS["llama"]), "vocab_size": len(tokenizer)} | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.normal_(0, spread)
            else:
                parameter.normal_(1, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def open_engine(folder: Path, **config: Any) -> Engine:
    return Engine(resolve_base(str(folder)), EngineConfig(**({"dtype": "float32", "device": "cpu"} | config)))


def fused(engine: Engine) -> bool:
    """Whether one call computes all layers of the engine's base."""
    return any(isinstance(module, FusedLayers) for module in engine.base.backbone.modules())


def logprobs(engine: Engine, ids: list[int], tokens: int = 6) -> Tensor:
    """``[tokens, vocabulary]``, what is said of each next token of a greedy answer."""
    vocabulary = engine.base.source.config().vocab_size
    return drain(engine, generation("r", ids, vocabulary=vocabulary, max_tokens=tokens))["r"].logprobs
