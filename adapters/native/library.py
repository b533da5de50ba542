"""The compiled CPU kernels as Python sees them.

Loaded once per process. Every function gets plain addresses; what calls it keeps the tensors alive that they point
into.
"""

import ctypes
import logging
from collections.abc import Callable
from functools import cache

import torch  # its OpenMP runtime has to be loaded before the kernels'

from adapters.native.build import BuildError, find_or_build

logger = logging.getLogger(__name__)

MAX_RANK = 1024
"""Largest rank that kernels.c has room for."""
MAX_HEAD = 256
"""Largest head dimension that it has room for."""
WIDE = 32
"""Values of a head that attention in bfloat16 multiplies at once."""
MAX_INT8 = 1 << 16
"""Most inputs of a layer in int8 whose sums still fit 32 bits."""
ROUNDED_EXTRA = 136
"""Bytes that a row of a batch needs beside its values in eight bits."""
LINE, SAME_SETS = 64, 2048
"""Bytes of a cache line, and of a row of x: rows a multiple of that long compete for the same places in the cache."""
_HASHES = 1 << 32
Pointer, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Linear(ctypes.Structure):
    """``Linear`` of kernels.c."""

    _fields_ = (
        ("n", Int), ("k", Int), ("apart", Int),
        ("weight", Pointer), ("bias", Pointer), ("scale", Pointer), ("sums", Pointer),
    )  # fmt: skip


class Attention(ctypes.Structure):
    """``Attention`` of kernels.c."""

    _fields_ = (
        ("q", Pointer), ("k", Pointer), ("v", Pointer),
        ("out", Pointer), ("key_cache", Pointer), ("value_cache", Pointer),
        ("q_token", Int), ("q_head", Int), ("k_token", Int), ("k_head", Int), ("v_token", Int), ("v_head", Int),
        ("heads", Int), ("kv_heads", Int), ("head_dim", Int), ("length", Int),
        ("causal", Int), ("window", Int),
        ("scale", Float),
    )  # fmt: skip


class Module(ctypes.Structure):
    """``Module`` of kernels.c."""

    _fields_ = (("linear", Pointer), ("slots", Pointer))


class Layer(ctypes.Structure):
    """``Layer`` of kernels.c."""

    _fields_ = (
        *((name, Pointer) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, Pointer) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, Float) for name in ("input_eps", "post_eps", "q_eps", "k_eps")),
        ("attention", Attention),
    )


class Batch(ctypes.Structure):
    """``Batch`` of kernels.c."""

    _fields_ = (
        ("total", Int), ("spans", Int), ("rows", Int), ("threads", Int),
        ("span", Pointer), ("row", Pointer), ("cos", Pointer), ("sin", Pointer),
        ("copy", Pointer),
    )  # fmt: skip


class Dropout(ctypes.Structure):
    """``Dropout`` of dropout.h."""

    _fields_ = (("seed", ctypes.c_uint64), ("dropped", ctypes.c_uint32))

    @classmethod
    def drawn(cls, rate: float) -> "Dropout":
        """Of a rate below 1, by a seed from torch's generator; a rate of 0 draws none."""
        if not rate:
            return cls(0, 0)
        seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        return cls(seed, min(round(rate * _HASHES), _HASHES - 1))


class Packed(ctypes.Structure):
    """``Packed`` of packed.h."""

    _fields_ = (
        ("spans", Pointer), ("paths", Pointer), ("count", Int), ("tokens", Int), ("threads", Int), ("logsum", Pointer),
        ("dropout", Dropout),
    )  # fmt: skip


class Gradients(ctypes.Structure):
    """``Gradients`` of packed.h."""

    _fields_ = tuple((name, Pointer) for name in ("dout", "dq", "dk", "dv", "sums"))


class Matrix(ctypes.Structure):
    """``Matrix`` of lora.h."""

    _fields_ = (("values", Pointer), ("rows", Int), ("columns", Int), ("row", Int), ("column", Int))

    @classmethod
    def of(cls, matrix: torch.Tensor) -> "Matrix":
        """A float32 tensor of two dimensions, transposed or not."""
        return cls(matrix.data_ptr(), *matrix.shape, *matrix.stride())


class Lora(ctypes.Structure):
    """``Lora`` of lora.h."""

    _fields_ = (
        ("down", Matrix), ("up", Matrix), ("total", Int), ("scale", Float),
        ("x", Pointer), ("narrow", Pointer), ("y", Pointer), ("a", Pointer), ("b", Pointer),
    )  # fmt: skip


_SIGNATURES = {
    "tenora_linear": (Pointer, Pointer, Pointer, Pointer),
    "tenora_layers": (Pointer, Int, Pointer, Pointer, Pointer),
    "tenora_rms_norm": (Pointer, Pointer, Pointer, Int, Int, Float, Int),
    "tenora_attention": (Pointer, Pointer, Int, Int),
    "tenora_argmax": (Pointer, Int, Int, Pointer, Int),
    "tenora_packed_attention": (Pointer, Pointer),
    "tenora_packed_attention_back": (Pointer, Pointer, Pointer),
    "tenora_drop": (Pointer, Pointer, Int, Pointer, Int),
    "tenora_gelu": (Pointer, Pointer, Pointer, Int, Int, Int),
    "tenora_lora": (Pointer, Int, Int),
    "tenora_cross_entropy": (Pointer, Pointer, Pointer, Pointer, Int, Int, Int),
}
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@cache
def load_library() -> ctypes.CDLL | None:
    """The kernels, or None where they cannot be had; the reason is logged once."""
    try:
        library = ctypes.CDLL(str(find_or_build()))
    except (BuildError, OSError) as error:
        logger.warning("computing with torch alone, without the compiled CPU kernels: %s", error)
        return None
    library.tenora_pack.argtypes, library.tenora_pack.restype = (Pointer, Int), None
    for name, arguments in _SIGNATURES.items():
        for suffix in _SUFFIXES.values():
            kernel = getattr(library, f"{name}_{suffix}", None)
            if kernel is not None:  # bfloat16 is for x86-64, some for bfloat16 only
                kernel.argtypes, kernel.restype = arguments, None
    return library


def supports(dtype: torch.dtype) -> bool:
    """Whether the kernels are there and compute in ``dtype`` on this machine."""
    library = load_library()
    if library is None:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(library.tenora_has_bf16()))


def supports_int8() -> bool:
    """Whether the kernels are there and this machine multiplies in int8."""
    library = load_library()
    return library is not None and bool(library.tenora_has_int8())


def function(name: str, dtype: torch.dtype | None = None) -> Callable[..., None]:
    """A kernel, for a type if there is one for each; only to be asked for where :func:`supports` says yes."""
    library = load_library()
    assert library is not None, "the compiled kernels are not there"
    kernel: Callable[..., None] = getattr(library, name if dtype is None else f"{name}_{_SUFFIXES[dtype]}")
    return kernel


def check_dtype(x: torch.Tensor, wanted: torch.dtype) -> None:
    """Refuse what a kernel for ``wanted`` would misread; it sees only an address.

    Raises:
        ValueError: x is of another type.
    """
    if x.dtype != wanted:
        raise ValueError(f"a kernel for {wanted} got {x.dtype}: the base mixes types; use --kernels torch")
