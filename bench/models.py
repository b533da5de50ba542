"""Models of known shapes with random weights, and a tokenizer to match: what a model knows does not change its speed.

llama-135m      30 layers, hidden 576, 9 heads over 3 KV heads, vocabulary 50,304, tied embeddings
gpt2-medium     24 layers, hidden 1,024, 16 heads
distilbert      6 layers, hidden 768, 12 heads; an encoder
"""

import itertools
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from adapters.quiet import quiet_transformers

STD = 0.02
SPECIAL = ("<|endoftext|>", "<|pad|>")
_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-135m": {
        "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 50304,
        "max_position_embeddings": 2048, "tie_word_embeddings": True, **_IDS,
    },
    "gpt2-medium": {
        "model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16, "n_positions": 1024, "vocab_size": 50257,
        **_IDS,
    },
    "distilbert": {
        "model_type": "distilbert", "n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072,
        "max_position_embeddings": 512, "vocab_size": 30522, "pad_token_id": 1,
    },
}  # fmt: skip


def make_model(shape: Mapping[str, Any], folder: Path, *, seed: int = 0) -> Path:
    """Write a model of a shape with its tokenizer as transformers would; returns the folder."""
    options = dict(shape)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    auto = AutoModelForMaskedLM if config.model_type == "distilbert" else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    _fill(model, seed)
    model.tie_weights()
    aside = folder.with_name(f"{folder.name}.part")
    with quiet_transformers():
        model.save_pretrained(aside)
        make_tokenizer(config.vocab_size, shape.get("max_position_embeddings", 1024)).save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return folder


def _fill(model: torch.nn.Module, seed: int) -> None:
    """Random matrices, and norms that change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, STD, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def make_tokenizer(size: int, length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly so many tokens: bytes, then the letters' pairs, triples and quadruples."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = [*SPECIAL, *alphabet], []
    stems = list(string.ascii_lowercase)
    while len(tokens) < size:
        room = size - len(tokens)
        pairs = list(itertools.islice(itertools.product(stems, string.ascii_lowercase), room))
        merges += pairs
        stems = ["".join(pair) for pair in pairs]
        tokens += stems
    vocabulary = {token: index for index, token in enumerate(tokens[:size])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=pad, model_max_length=length
    )
