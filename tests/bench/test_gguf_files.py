"""What llama.cpp gets: the names that it knows, and rows in the order in which it turns them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.base import BaseSource
from bench.random_adapters import peft_template, write_missing
from bench.systems.llamacpp import LlamaServer, convert

gguf = pytest.importorskip("gguf")


def test_base_and_adapter(llama: BaseSource, tmp_path: Path) -> None:
    folders = write_missing(llama, peft_template(llama, rank=4), [tmp_path / "a0"])
    model, (adapter,) = convert(llama, folders, tmp_path / "gguf", "float32")
    base, lora = gguf.GGUFReader(model), gguf.GGUFReader(adapter)
    tensors = {tensor.name: tensor for tensor in base.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight", "blk.1.ffn_down.weight"} <= tensors.keys()
    assert len(base.fields["tokenizer.ggml.tokens"].data) == llama.config().vocab_size
    own = load_file(llama.path / "model.safetensors")
    # A head of 8 rows: transformers turns row k with row k + 4, llama.cpp neighbours.
    theirs = torch.tensor(tensors["blk.0.attn_q.weight"].data).view(4, 8, 32)
    ours = own["model.layers.0.self_attn.q_proj.weight"].float().view(4, 8, 32)
    assert torch.equal(theirs[:, 0::2], ours[:, :4])
    assert torch.equal(theirs[:, 1::2], ours[:, 4:])
    pairs = {tensor.name: tuple(tensor.data.shape) for tensor in lora.tensors}
    assert pairs["blk.0.attn_k.weight.lora_a"] == (4, 32)
    assert pairs["blk.0.attn_k.weight.lora_b"] == (16, 4)
    assert len(pairs) == 2 * 2 * 7
    assert lora.fields["adapter.lora.alpha"].contents() == 8.0


def test_other_architectures_are_refused(distilbert: BaseSource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only Llama shapes"):
        convert(distilbert, [], tmp_path, "float32")


def test_the_base_is_no_empty_list() -> None:
    """An empty list means the server's own scales, which are 1 for every adapter."""
    assert LlamaServer.request([1], None, 4).body["lora"] == [{"id": 0, "scale": 0.0}]
    assert LlamaServer.request([1], 3, 4).body["lora"] == [{"id": 3, "scale": 1.0}]
