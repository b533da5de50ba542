"""How an engine computes what is not plain matrix products: by torch alone, or by the compiled CPU kernels."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from adapters.weights import LoraPair
from service.engine.attention import AttentionBackend, AttentionBatch, TorchAttention
from service.engine.kv_cache import Cache, KVCache
from service.engine.lora import LoraContext, LoraTable, MultiLoraLinear
from service.engine.quantize import round_in_place
from service.engine.sampler import greedy

if TYPE_CHECKING:
    from service.engine.batch import Batch
    from service.engine.loader import CacheShape, LoadedBase

Shape = tuple[int, int]
"""Features in and out of a linear layer."""
Forward = Callable[["Batch"], tuple[Tensor | None, Tensor]]
"""One pass of the base: the sampled tokens' logits, and every token's final hidden state."""


class Recorded(Protocol):
    """Passes recorded once and repeated."""

    def forward(self, batch: "Batch") -> tuple[Tensor | None, Tensor] | None:
        """The pass over a batch; None if it fits nothing that was recorded."""


class Kernels(Protocol):
    """Makes the parts of a base that adapters and attention need."""

    name: str
    int8: bool
    """Whether products with weights in int8 are computed as such."""
    least_rows: int
    """Sequences of the whole context that the KV cache has to have room for, if only one is to be served."""

    @property
    def attention(self) -> AttentionBackend:
        """Computes attention."""

    def linear(self, module: nn.Module, shape: Shape, context: LoraContext) -> MultiLoraLinear:
        """Put a linear layer of the base under many adapters."""

    def linear_int8(self, module: nn.Module, shape: Shape, context: LoraContext) -> MultiLoraLinear:
        """The same with its weight rounded to int8."""

    def pack(self, pairs: Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
        """Lay an adapter's pairs out as the tables want them; what is laid out already stays."""

    def argmax(self, logits: Tensor) -> list[int | None]:
        """The likeliest token of each row of ``[n, vocabulary]``; None where values are not finite."""

    def cache(self, shape: "CacheShape", *, rows: int, length: int, max_bytes: int, reuse: bool) -> Cache:
        """The KV cache that the attention works on.

        Raises:
            ValueError: one sequence of ``length`` tokens does not fit into ``max_bytes``.
        """

    def fuse(self, base: "LoadedBase", cache: KVCache | None, batch: AttentionBatch) -> None:
        """Put faster equals in the place of parts of a loaded base that has run once.

        Args:
            base: The base.
            cache: Its KV cache, if it generates.
            batch: A batch of one prompt to try them with.
        """

    def record(self, base: "LoadedBase", forward: Forward, cache: Cache | None, *, largest: int) -> "Recorded | None":
        """Decode steps of up to ``largest`` rows, recorded once; None where that is not done."""


class TorchKernels:
    """PyTorch alone: any device, any type, and the oracle of the others."""

    name = "torch"
    int8 = False
    least_rows = 1

    def __init__(self, dtype: torch.dtype, device: torch.device, *, slots: int, max_rank: int) -> None:
        self.attention: AttentionBackend = TorchAttention()
        self._dtype = dtype
        self._device = device
        self._new_table = partial(LoraTable, slots=slots, max_rank=max_rank, dtype=dtype, device=device)

    def linear(self, module: nn.Module, shape: Shape, context: LoraContext) -> MultiLoraLinear:
        """Leave the layer as it is and add the adapters to it."""
        new_table = partial(self._new_table, in_features=shape[0], out_features=shape[1])
        return MultiLoraLinear(module, context, new_table)

    def linear_int8(self, module: nn.Module, shape: Shape, context: LoraContext) -> MultiLoraLinear:
        """The same with its weight rounded to int8, but kept as it was: torch multiplies so no faster."""
        round_in_place(module)
        return self.linear(module, shape, context)

    def pack(self, pairs: Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
        """Nothing to do."""
        return pairs

    def argmax(self, logits: Tensor) -> list[int | None]:
        """The likeliest token of each row of ``[n, vocabulary]``; None where values are not finite."""
        return greedy(logits)

    def cache(self, shape: "CacheShape", *, rows: int, length: int, max_bytes: int, reuse: bool) -> Cache:
        """One contiguous row per sequence."""
        return KVCache.within(
            max_bytes,
            layers=shape.layers,
            rows=rows,
            kv_heads=shape.kv_heads,
            length=length,
            head_dim=shape.head_dim,
            dtype=self._dtype,
            device=self._device,
            reuse=reuse,
        )

    def fuse(self, base: "LoadedBase", cache: KVCache | None, batch: AttentionBatch) -> None:
        """Nothing to do."""

    def record(self, base: "LoadedBase", forward: Forward, cache: Cache | None, *, largest: int) -> "Recorded | None":
        """Nothing is recorded."""
        return None


def choose_kernels(wanted: str, dtype: torch.dtype, device: torch.device, *, slots: int, max_rank: int) -> Kernels:
    """The fastest way that this machine has.

    Args:
        wanted: ``auto``, ``torch`` or ``native``.
        dtype: Numbers of the base.
        device: Where it runs.
        slots: Adapters resident at once.
        max_rank: Largest rank of an adapter.

    Raises:
        ValueError: ``native`` was asked for and cannot be had.
    """
    if wanted not in ("auto", "torch", "native"):
        raise ValueError(f"kernels must be auto, torch or native, not {wanted!r}")
    if wanted == "auto" and device.type == "cuda":
        from service.engine.cuda.kernels import CudaKernels

        return CudaKernels(dtype, device, slots=slots, max_rank=max_rank)
    if wanted != "torch" and device.type == "cpu":
        from adapters.native import library

        if library.supports(dtype) and max_rank <= library.MAX_RANK:
            from service.engine.native.kernels import NativeKernels

            return NativeKernels(dtype, slots=slots, threads=torch.get_num_threads())
    if wanted == "native":
        raise ValueError(
            f"kernels 'native' were asked for, but there are none for {dtype} on this {device.type}: float32 needs a C "
            "compiler, bfloat16 a CPU with AVX512-BF16 as well, and ranks go up to 1024; use --kernels auto"
        )
    return TorchKernels(dtype, device, slots=slots, max_rank=max_rank)
