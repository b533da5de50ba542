"""Loads a base model for the engine: frozen, its linears ready for adapters, its attention the engine's own."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from adapters.base import BaseSource
from adapters.errors import BaseModelError
from adapters.narrow import narrow_last
from adapters.quiet import quiet_transformers
from service.engine.attention import NAME as ATTENTION
from service.engine.kernels import Kernels
from service.engine.lora import LoraContext, MultiLoraLinear, Packed

logger = logging.getLogger(__name__)

_LAYER_TYPES = {"full_attention", "sliding_attention"}

# Rotary embeddings whose factors depend on the longest position in the batch: one tenant would change another's.
_BATCH_ROPE = {"dynamic", "longrope"}
_PROBE_TOKENS = 6


@dataclass(frozen=True, slots=True)
class Probe:
    """A few tokens, and what the untouched model computes: logits of the last of them, or hidden state of the first."""

    ids: list[int]
    expected: Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token takes in the KV cache."""

    layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, base: "LoadedBase") -> "CacheShape":
        """Read it off the base's configuration."""
        config = base.model.config
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, kv_heads, head_dim)

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory.

    ``linears`` are the modules that adapters may target, by their names in the backbone; those of the
    backbone share ``tokens`` as their context; a decoder's output head has ``sampled``, an encoder's pooler ``pooled``
    and the end of its last layer ``read``, for they see other rows.
    """

    source: BaseSource
    model: PreTrainedModel
    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    linears: dict[str, MultiLoraLinear]
    tokens: LoraContext
    sampled: LoraContext
    pooled: LoraContext
    read: LoraContext
    weights: dict[str, Callable[[], Tensor]]
    max_length: int
    position_offset: int
    probe: Probe
    int8: bool
    """Whether the weights of its linears, but the output head's, were rounded to int8."""

    @property
    def generates(self) -> bool:
        """Whether the base is a decoder."""
        return self.source.kind == "decoder"

    def weights_hash(self) -> str:
        """sha256 over every parameter of the base as it is in memory now."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode())
            weight = self.weights[name]().detach().cpu().contiguous()
            digest.update(weight.view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_base(
    source: BaseSource, dtype: torch.dtype, device: torch.device, kernels: Kernels, *, int8: bool = False
) -> LoadedBase:
    """Read the weights and make the model ready for mixed batches.

    Args:
        source: The base.
        dtype: Its numbers.
        device: Where it runs.
        kernels: What computes it.
        int8: Round the weights of its linears to int8, but the output head's.

    Raises:
        BaseModelError: weights are missing, or the architecture cannot be served exactly.
    """
    model = _read(source, dtype).to(device).eval().requires_grad_(False)
    _check_architecture(source, model)
    probe = _probe(model)
    backbone: PreTrainedModel = model.base_model
    tokens, sampled, pooled, read = LoraContext(), LoraContext(), LoraContext(), LoraContext()
    output = source.architecture().output
    # Of a text to classify one token is read. (A step of a decoder reads most of its tokens.)
    narrowed = narrow_last(backbone) if source.kind == "encoder" else None
    behind = narrowed.behind if narrowed is not None else ()

    def wrap(name: str, shape: tuple[int, int]) -> MultiLoraLinear:
        parent, context = backbone, tokens
        if name == output:
            parent, context = model, sampled
        elif name.startswith("pooler."):
            context = pooled
        elif name.startswith(behind):
            context = read
        make = kernels.linear_int8 if int8 and name != output else kernels.linear
        return _replace(parent, name, lambda module: make(module, shape, context))

    if int8 and not kernels.int8:
        logger.warning("weights are rounded to int8 but kept in %s: nothing here multiplies in int8", dtype)
    linears = {name: wrap(name, shape) for name, shape in source.linear_shapes().items()}
    model.set_attn_implementation(ATTENTION)
    return LoadedBase(
        source=source,
        model=model,
        backbone=backbone,
        tokenizer=source.tokenizer(),
        linears=linears,
        tokens=tokens,
        sampled=sampled,
        pooled=pooled,
        read=read,
        weights=_weights(model),
        max_length=source.max_length,
        position_offset=_position_offset(model),
        probe=probe,
        int8=int8,
    )


def _read(source: BaseSource, dtype: torch.dtype) -> PreTrainedModel:
    auto, extra = (AutoModelForCausalLM, {}) if source.kind == "decoder" else (AutoModel, {})
    if source.config().model_type == "roberta":
        extra = {"add_pooling_layer": False}  # its heads do not use the pooler, and most checkpoints lack it
    with quiet_transformers():
        model, report = auto.from_pretrained(
            source.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation="eager",  # every architecture has it; replaced below
            **extra,
        )
    if missing := sorted(report["missing_keys"]):
        raise BaseModelError(
            f"base {source.id!r} lacks the weights {', '.join(missing[:4])}"
            f"{f' and {len(missing) - 4} more' if len(missing) > 4 else ''}; use a complete checkpoint",
            key=missing[0],
        )
    return model


def _check_architecture(source: BaseSource, model: PreTrainedModel) -> None:
    name = type(model).__name__
    if not model._supports_attention_backend:
        raise BaseModelError(
            f"base {source.id!r}: {name} does not let its attention be replaced, so it cannot be served"
        )
    unknown = set(getattr(model.config, "layer_types", None) or ()) - _LAYER_TYPES
    if unknown:
        raise BaseModelError(
            f"base {source.id!r}: {name} has layers of type {', '.join(sorted(unknown))}, which are not served"
        )

    rope = _rope_types(getattr(model.config, "rope_parameters", None)) & _BATCH_ROPE
    if rope:
        raise BaseModelError(
            f"base {source.id!r}: {name} has rotary embeddings of type {', '.join(sorted(rope))}, which depend on the "
            "longest sequence in a batch, so they are not served"
        )


def _rope_types(parameters: object) -> set[str]:
    """Every rope_type in a configuration's rotary parameters, which some architectures keep per kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    nested = (_rope_types(value) for value in parameters.values())
    return {str(parameters.get("rope_type", "default"))}.union(*nested)


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> Probe:
    ids = list(range(2, 2 + _PROBE_TOKENS))
    inputs = torch.tensor([ids], device=model.device)
    output = model(input_ids=inputs, attention_mask=torch.ones_like(inputs))
    expected = output.logits[0, -1] if "logits" in output else output.last_hidden_state[0, 0]
    return Probe(ids, expected.float())


def _replace(root: nn.Module, name: str, new: Callable[[nn.Module], MultiLoraLinear]) -> MultiLoraLinear:
    parent_name, _, child = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    linear = new(getattr(parent, child))
    setattr(parent, child, linear)
    return linear


def _weights(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """How to get at every weight that is computed with, as the file has it."""
    weights: dict[str, Callable[[], Tensor]] = {
        name: partial(_same, parameter) for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    packed = {f"{name}.weight": module.dense for name, module in model.named_modules() if isinstance(module, Packed)}
    return weights | packed


def _same(parameter: nn.Parameter) -> Tensor:
    return parameter


def _position_offset(model: PreTrainedModel) -> int:
    """What to add to a token's place in its text: RoBERTa counts from behind its padding id."""
    if model.config.model_type == "roberta":
        return int(model.config.pad_token_id) + 1
    return 0
