"""Writes a Llama-shaped base and its adapters as GGUF, the format of llama.cpp.

llama.cpp's own converters know tokenizers by their hash and refuse one that was made up, so the files are written here,
with the same names, the same order of a head's rows, and the same metadata.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.base import BaseSource
from adapters.config import CONFIG_FILE
from adapters.fingerprint import weight_files
from adapters.weights import WEIGHTS_FILE

_ROOT = "base_model.model."


class NotConvertibleError(ValueError):
    """The base cannot be written as GGUF here; the message says why."""


class GgufFiles:
    """A base in the forms that llama.cpp reads.

    Args:
        base: A Llama.
        dtype: Of the matrices; vectors are float32.
    """

    def __init__(self, base: BaseSource, dtype: str) -> None:
        try:
            import gguf
        except ImportError as error:
            raise NotConvertibleError("the package gguf is not installed: pip install 'tenora[bench]'") from error
        if base.config().model_type != "llama":
            raise NotConvertibleError(f"only Llama shapes are converted, and this is {base.config().model_type}")
        self._gguf: Any = gguf
        self._base = base
        self._config = base.config()
        self._dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
        self._names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, self._config.num_hidden_layers)

    def write_base(self, path: Path) -> Path:
        """Write the model with its tokenizer."""
        writer = self._gguf.GGUFWriter(None, "llama")
        self._describe(writer)
        self._add_tokenizer(writer)
        for file in weight_files(self._base.path):
            for name, tensor in load_file(file).items():
                self._add(writer, self._name(name), self._reordered(name, tensor))
        return self._close(writer, path)

    def write_adapter(self, folder: Path, path: Path) -> Path:
        """Write one of PEFT's adapters."""
        writer = self._gguf.GGUFWriter(None, "llama")
        writer.add_type(self._gguf.GGUFType.ADAPTER)
        writer.add_string(self._gguf.Keys.Adapter.TYPE, "lora")
        alpha = json.loads((folder / CONFIG_FILE).read_text())["lora_alpha"]
        writer.add_float32(self._gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
        for key, tensor in load_file(folder / WEIGHTS_FILE).items():
            module, half = key.removeprefix(_ROOT).removesuffix(".weight").rsplit(".", 1)
            name = f"{module}.weight"
            whole = self._reordered(name, tensor) if half == "lora_B" else tensor
            self._add(writer, f"{self._name(name)}.{half.lower()}", whole)
        return self._close(writer, path)

    def _describe(self, writer: Any) -> None:
        config = self._config
        writer.add_name(self._base.id)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_vocab_size(config.vocab_size)

    def _add_tokenizer(self, writer: Any) -> None:
        tokenizer, kinds = self._base.tokenizer(), self._gguf.TokenType
        known = {index: token for token, index in tokenizer.get_vocab().items()}
        special = set(tokenizer.all_special_ids)
        ids = range(self._config.vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([known.get(index, f"<|unused_{index}|>") for index in ids])
        writer.add_token_types(
            [kinds.CONTROL if index in special else kinds.NORMAL if index in known else kinds.UNUSED for index in ids]
        )
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_add_bos_token(False)

    def _name(self, name: str) -> str:
        found: str | None = self._names.get_name(name, try_suffixes=(".weight",))
        if found is None:
            raise NotConvertibleError(f"llama.cpp has no name for {name}")
        return found

    def _reordered(self, name: str, rows: Tensor) -> Tensor:
        """Queries and keys turn neighbouring rows of a head as pairs, where transformers turns its two halves."""
        heads = {"q_proj": self._config.num_attention_heads, "k_proj": self._config.num_key_value_heads}
        count = next((heads[kind] for kind in heads if f".{kind}." in name), None)
        if count is None:
            return rows
        return rows.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(rows.shape)

    def _add(self, writer: Any, name: str, tensor: Tensor) -> None:
        if tensor.dim() < 2 or self._dtype is torch.float32:
            writer.add_tensor(name, tensor.float().numpy())
            return
        bits: np.ndarray = tensor.to(self._dtype).contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, bits, raw_dtype=self._gguf.GGMLQuantizationType.BF16)

    @staticmethod
    def _close(writer: Any, path: Path) -> Path:
        aside = path.with_suffix(".part")
        writer.write_header_to_file(aside)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        aside.rename(path)
        return path
