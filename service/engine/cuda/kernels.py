"""How an engine computes on a GPU."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from service.engine.attention import AttentionBackend
from service.engine.cuda.attention import PagedAttention, flash_computes
from service.engine.cuda.graphs import CudaGraph, DecodeGraphs, Forward, Graph
from service.engine.cuda.lora import Tiling, TritonLoraTable, triton_computes
from service.engine.cuda.paged_cache import BLOCK_TOKENS, PagedKVCache
from service.engine.kernels import Shape, TorchKernels
from service.engine.kv_cache import Cache
from service.engine.loader import CacheShape, LoadedBase
from service.engine.lora import LoraContext, MultiLoraLinear


class CudaKernels(TorchKernels):
    """Paged attention, adapters by Triton, and CUDA graphs; torch alone for what the device or the type lacks.

    Args:
        dtype: Numbers of the base.
        device: Where it runs.
        slots: Adapters resident at once.
        max_rank: Largest rank of an adapter.
    """

    name = "cuda"
    least_rows = 2  # sequences take whole blocks, and one block is nobody's
    block_tokens = BLOCK_TOKENS

    def __init__(self, dtype: torch.dtype, device: torch.device, *, slots: int, max_rank: int) -> None:
        super().__init__(dtype, device, slots=slots, max_rank=max_rank)
        self._paged = PagedAttention()
        self.attention: AttentionBackend = self._paged
        self._tiling = Tiling(device) if self.triton(device) else None
        self._sizes = {"slots": slots, "max_rank": max_rank}

    @staticmethod
    def triton(device: torch.device) -> bool:
        """Whether adapters are computed by Triton."""
        return triton_computes(device)

    def linear(self, module: nn.Module, shape: Shape, context: LoraContext) -> MultiLoraLinear:
        """Leave the layer as it is and add the adapters to it."""
        if self._tiling is None:
            return super().linear(module, shape, context)
        new_table = partial(
            TritonLoraTable,
            in_features=shape[0],
            out_features=shape[1],
            dtype=self._dtype,
            device=self._device,
            tiling=self._tiling,
            **self._sizes,
        )
        return MultiLoraLinear(module, context, new_table)

    def cache(self, shape: CacheShape, *, rows: int, length: int, max_bytes: int, reuse: bool) -> PagedKVCache:
        """The KV cache, on which the attention works from now on."""
        self._paged.cache = PagedKVCache.within(
            max_bytes,
            layers=shape.layers,
            rows=rows,
            length=length,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=self._dtype,
            device=self._device,
            reuse=reuse,
            block_tokens=self.block_tokens,
        )
        return self._paged.cache

    def record(self, base: LoadedBase, forward: Forward, cache: Cache | None, *, largest: int) -> DecodeGraphs | None:
        """Decode steps of up to ``largest`` rows as graphs; None where the attention cannot be captured.

        The tables that most adapters will need are made before, for the graphs compute with them.
        """
        if not isinstance(cache, PagedKVCache) or not self._captures(cache):
            return None
        if self._tiling is not None:
            for linear in base.linears.values():
                if linear.context is base.tokens:
                    linear.reserve()
        graphs = DecodeGraphs(
            forward,
            cache=cache,
            attention=self._paged,
            tiling=self._tiling,
            largest=largest,
            version=lambda: sum(linear.table is not None for linear in base.linears.values()),
            new_graph=self._graphs(),
        )
        graphs.capture()
        return graphs

    def _captures(self, cache: PagedKVCache) -> bool:
        return flash_computes(self._dtype, cache.keys[0].shape[-1], self._device)

    @staticmethod
    def _graphs() -> Callable[[], Graph]:
        """Makes graphs that share their memory, for one is replayed at a time."""
        return partial(CudaGraph, torch.cuda.graph_pool_handle())
