"""Whole decoder layers of the Llama kind by the CPU kernels: one call for all of them.

A layer is taken over only if it looks like Llama's (by the names of its parts) and computes like it (held against
itself on random input), so an architecture that multiplies its residuals, say, simply stays with the model's own code.
"""

import ctypes
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from adapters.native import library
from service.engine.attention import AttentionBatch, attending, current_batch
from service.engine.kv_cache import KVCache
from service.engine.lora import LoraContext
from service.engine.native.attention import NativeAttention
from service.engine.native.linear import PackedLoraLinear
from service.engine.native.norm import NativeRMSNorm

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_ATTENTION_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
_SIZES = (1e-3, 64.0)
"""Of the input that layers are tried with: a small one shows what a layer adds, a large one what it passes on."""


class FusedLayers(nn.Module):
    """Stands in a model's list of layers for all of them.

    Args:
        layers: The model's own, which stay as they are and serve the batches that the kernel is not made for.
        context: The adapters of the current batch.
        attention: The engine's attention, which has seen every layer once.
        cache: Keys and values.
        threads: Threads of the kernel.
    """

    def __init__(
        self, layers: nn.ModuleList, context: LoraContext, attention: NativeAttention, cache: KVCache, threads: int
    ) -> None:
        super().__init__()
        self.layers = layers
        self._context = context
        self._attention = attention
        self._threads = threads
        self._structs = (library.Layer * len(layers))(
            *(_struct(layer, i, attention, cache) for i, layer in enumerate(layers))
        )
        first: Any = layers[0]
        self._values = first.self_attn.q_proj.in_features + max(
            2 * first.self_attn.q_proj.out_features + 2 * first.self_attn.k_proj.out_features,
            2 * first.mlp.gate_proj.out_features,
        )
        self.head_dim = cache.keys[0].shape[-1]
        inputs = (first.self_attn.q_proj, first.self_attn.o_proj, first.mlp.down_proj)
        self._copied_bytes = max(linear.base.copied_bytes for linear in inputs)
        self._kernel = library.function("tenora_layers", first.input_layernorm.weight.dtype)

    def forward(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any) -> Tensor:
        """All layers: ``[1, t, hidden] -> [1, t, hidden]``."""
        batch = current_batch()
        if self._attention.spans_of(batch).large:
            for layer in self.layers:
                x = layer(x, position_embeddings=position_embeddings, **kwargs)
            return x
        return self.run(x, position_embeddings, batch, 0, len(self.layers))

    def run(self, x: Tensor, angles: tuple[Tensor, Tensor], batch: AttentionBatch, first: int, last: int) -> Tensor:
        """The layers from ``first`` to before ``last``."""
        spans = self._attention.spans_of(batch)
        cosine, sine = (angle.to(x.dtype).contiguous() for angle in angles)
        out = x.clone(memory_format=torch.contiguous_format)
        scratch = x.new_empty(x.shape[1] * self._values)
        copy = torch.empty(x.shape[1] * self._copied_bytes, dtype=torch.uint8)
        struct = library.Batch(
            total=x.shape[1],
            spans=spans.count,
            span=spans.address,
            threads=self._threads,
            cos=cosine.data_ptr(),
            sin=sine.data_ptr(),
            copy=copy.data_ptr(),
        )
        if self._context.batch is not None:
            rows = self._context.batch.rows(self._threads)
            struct.rows, struct.row = rows.count, rows.address
        layers = ctypes.addressof(self._structs) + first * ctypes.sizeof(library.Layer)
        self._kernel(layers, last - first, ctypes.addressof(struct), out.data_ptr(), scratch.data_ptr())
        return out


def _struct(layer: Any, index: int, attention: NativeAttention, cache: KVCache) -> library.Layer:
    attn, mlp = layer.self_attn, layer.mlp
    scaling, window = attention.seen[index]
    keys = cache.keys[index]
    norms = {name: getattr(attn, name, None) for name in ("q_norm", "k_norm")}
    return library.Layer(
        **{name: ctypes.addressof(getattr(attn, f"{name}_proj").struct) for name in ("q", "k", "v", "o")},
        **{name: ctypes.addressof(getattr(mlp, f"{name}_proj").struct) for name in ("gate", "up", "down")},
        **{name: norm.weight.data_ptr() for name, norm in norms.items() if norm is not None},
        q_eps=norms["q_norm"].eps if norms["q_norm"] is not None else 0.0,
        k_eps=norms["k_norm"].eps if norms["k_norm"] is not None else 0.0,
        input_norm=layer.input_layernorm.weight.data_ptr(),
        post_norm=layer.post_attention_layernorm.weight.data_ptr(),
        input_eps=layer.input_layernorm.eps,
        post_eps=layer.post_attention_layernorm.eps,
        attention=library.Attention(
            key_cache=keys.data_ptr(),
            value_cache=cache.values[index].data_ptr(),
            heads=attn.q_proj.out_features // keys.shape[-1],
            kv_heads=keys.shape[1],
            head_dim=keys.shape[-1],
            length=cache.length,
            causal=1,
            window=window or 0,
            scale=scaling if scaling is not None else keys.shape[-1] ** -0.5,
        ),
    )


def fuse_layers(
    backbone: nn.Module,
    *,
    context: LoraContext,
    attention: NativeAttention,
    cache: KVCache,
    batch: AttentionBatch,
    threads: int,
) -> bool:
    """Put the kernel in the place of a decoder's layers, if it computes the same as each of them; say whether.

    Args:
        backbone: The decoder.
        context: The adapters of the current batch.
        attention: The engine's attention, through which the backbone has run once.
        cache: Keys and values.
        batch: A batch of one prompt, whose cache row may be written.
        threads: Threads of the kernel.
    """
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(_alike(layer) for layer in layers):
        return False
    if len({_shapes(layer) for layer in layers}) > 1 or not _fits(layers[0], cache):
        return False
    fused = FusedLayers(layers, context, attention, cache, threads)
    if not _equal(backbone, fused, batch):
        return False
    backbone.layers = nn.ModuleList([fused])
    return True


def _alike(layer: nn.Module) -> bool:
    """Whether a layer has the parts of Llama's, all of them the kernels' own, and no others."""
    parts = dict(layer.named_children())
    if parts.keys() != _LAYER:
        return False
    attn, mlp = dict(parts["self_attn"].named_children()), dict(parts["mlp"].named_children())
    activation = mlp.pop("act_fn", None)
    linears = [attn.get(name) for name in sorted(_ATTENTION)] + [mlp.get(name) for name in sorted(_MLP)]
    own_norms = [attn[name] for name in sorted(_ATTENTION_NORMS & attn.keys())]
    norms = [parts["input_layernorm"], parts["post_attention_layernorm"], *own_norms]
    return (
        attn.keys() - _ATTENTION_NORMS == _ATTENTION
        and mlp.keys() == _MLP
        and type(activation).__name__ in ("SiLU", "SiLUActivation")
        and all(isinstance(linear, PackedLoraLinear) and not linear.base.padding for linear in linears)
        and all(isinstance(norm, NativeRMSNorm) for norm in norms)
        and getattr(attn["o_proj"], "bias", None) is None
        and getattr(mlp["down_proj"], "bias", None) is None
    )


def _shapes(layer: Any) -> tuple[tuple[int, ...], ...]:
    attn, mlp = layer.self_attn, layer.mlp
    parts = [getattr(attn, name) for name in sorted(_ATTENTION)] + [getattr(mlp, name) for name in sorted(_MLP)]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attn, name) for name in sorted(_ATTENTION_NORMS) if hasattr(attn, name)]
    return tuple((part.in_features, part.out_features) for part in parts) + tuple(norm.weight.shape for norm in norms)


def _fits(layer: Any, cache: KVCache) -> bool:
    """Whether a layer's parts have the shapes that the kernel takes for granted."""
    _, kv_heads, _, head_dim = cache.keys[0].shape
    hidden, inner = layer.mlp.gate_proj.in_features, layer.mlp.gate_proj.out_features
    keys, queries = kv_heads * head_dim, layer.self_attn.q_proj.out_features
    heads = tuple((head_dim,) for name in sorted(_ATTENTION_NORMS) if hasattr(layer.self_attn, name))
    return (
        head_dim <= library.MAX_HEAD
        and queries % keys == 0
        and _shapes(layer)
        == (
            *((hidden, keys), (queries, hidden), (hidden, queries), (hidden, keys)),  # k, o, q, v
            *((inner, hidden), (hidden, inner), (hidden, inner)),  # down, gate, up
            *((hidden,), (hidden,), *heads),
        )
    )


@torch.inference_mode()
def _equal(backbone: Any, fused: FusedLayers, batch: AttentionBatch) -> bool:
    """Whether every layer comes out of the kernel as out of the model's own code."""
    first: Any = fused.layers[0]
    weight: Tensor = first.input_layernorm.weight
    tokens = batch.spans[-1].stop
    noise = torch.randn(1, tokens, weight.shape[0], generator=torch.Generator().manual_seed(0))
    positions = torch.arange(tokens)[None]
    with attending(batch):
        try:
            angles = backbone.rotary_emb(noise.to(weight.dtype), position_ids=positions)
            if any(angle.shape != (1, tokens, fused.head_dim) for angle in angles):
                return False
            for (i, layer), size in product(enumerate(fused.layers), _SIZES):
                x = (size * noise).to(weight.dtype)
                theirs = layer(x, position_embeddings=angles, position_ids=positions).float()
                ours = fused.run(x, angles, batch, i, i + 1).float()
                if not (ours - theirs).norm() <= _TOLERANCE[weight.dtype] * theirs.norm():
                    return False
        except (AttributeError, TypeError, ValueError):  # it is not even called as Llama's
            return False
    return True
