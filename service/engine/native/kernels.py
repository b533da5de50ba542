"""The compiled CPU kernels as an engine uses them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.activations import fused_activation
from adapters.native import library
from adapters.native.gelu import native_activation
from adapters.weights import LoraPair
from service.engine.attention import AttentionBatch
from service.engine.kernels import Shape, TorchKernels
from service.engine.kv_cache import KVCache
from service.engine.loader import LoadedBase
from service.engine.lora import LoraContext, MultiLoraLinear
from service.engine.native.attention import NativeAttention
from service.engine.native.layers import fuse_layers
from service.engine.native.linear import (
    PackedLinear,
    PackedLoraLinear,
    PackedPair,
    pack_pairs,
)
from service.engine.native.memory import Arena, Spare
from service.engine.native.norm import NativeRMSNorm, replaceable
from service.engine.sampler import greedy


class NativeKernels(TorchKernels):
    """Compiled for a CPU: all linear layers with their adapters, attention, and whole layers where they can be.

    Args:
        dtype: Numbers of the base.
        slots: Adapters resident at once.
        threads: Threads of every kernel; the same as torch's, whose threads they share.
    """

    name = "native"

    def __init__(self, dtype: torch.dtype, *, slots: int, threads: int) -> None:
        super().__init__(dtype, torch.device("cpu"), slots=slots, max_rank=library.MAX_RANK)
        self._native = NativeAttention(dtype, threads)
        self.attention = self._native
        self.int8 = library.supports_int8()
        self._arena = Arena()
        self._spare = Spare()
        self._slots = slots
        self._threads = threads
        self._argmax = library.function("tenora_argmax", dtype) if dtype == torch.bfloat16 else None

    def linear(self, module: nn.Module, shape: Shape, context: LoraContext) -> MultiLoraLinear:
        """Put a linear layer of the base under many adapters; its weight is packed and the module's own let go."""
        return self._packed(module, context, int8=False)

    def linear_int8(self, module: nn.Module, shape: Shape, context: LoraContext) -> MultiLoraLinear:
        """The same with its weight rounded to int8."""
        if self.int8 and shape[0] <= library.MAX_INT8:
            return self._packed(module, context, int8=True)
        return super().linear_int8(module, shape, context)

    def _packed(self, module: nn.Module, context: LoraContext, *, int8: bool) -> MultiLoraLinear:
        layer: Any = module
        weight: Tensor = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        packed = PackedLinear(weight.detach(), layer.bias, int8=int8, arena=self._arena)
        return PackedLoraLinear(packed, context, slots=self._slots, threads=self._threads)

    def pack(self, pairs: Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
        """Lay an adapter's pairs out in panels; what is laid out already stays."""
        if all(isinstance(pair, PackedPair) for pair in pairs.values()):
            return pairs
        return pack_pairs(pairs, self._dtype, self._spare.take)

    def argmax(self, logits: Tensor) -> list[int | None]:
        """The likeliest token of each row of ``[n, vocabulary]``; None where values are not finite."""
        if self._argmax is None or logits.dtype != self._dtype:  # some models end in float32 whatever their type
            return greedy(logits)
        logits = logits.contiguous()
        best = torch.empty(len(logits), dtype=torch.long)
        self._argmax(logits.data_ptr(), *logits.shape, best.data_ptr(), self._threads)
        return [token if token >= 0 else None for token in best.tolist()]

    def fuse(self, base: LoadedBase, cache: KVCache | None, batch: AttentionBatch) -> None:
        """Put kernels in the place of what they compute equally: RMSNorms, activations, and whole decoder layers."""
        self._replace(base.model)
        if cache is not None:
            fuse_layers(
                base.backbone,
                context=base.tokens,
                attention=self._native,
                cache=cache,
                batch=batch,
                threads=self._threads,
            )

    def _replace(self, model: nn.Module) -> None:
        module: Any
        for parent in list(model.modules()):
            for name, module in list(parent.named_children()):
                if replaceable(module, self._dtype):
                    setattr(parent, name, NativeRMSNorm(module.weight, module.variance_epsilon, self._threads))
                elif (activation := native_activation(module) or fused_activation(module)) is not None:
                    setattr(parent, name, activation)
