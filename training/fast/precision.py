"""Which arithmetic a run uses, found by measuring this machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.fast.frozen import CAN_PACK, packed, packed_product

_ROWS, _IN, _OUT = 384, 768, 3072
_ROUNDS, _TURNS = 3, 4
_ENOUGH = 1.25
"""How many times faster bfloat16 has to be to be worth its rounding."""
_ABOUT = 0.8
"""How much slower oneDNN may be measured and still be taken."""
_SAME = 4.0
"""How many times larger the error of a way may be that is still float32; bfloat16's is a thousand times larger."""

Matmul = Literal["highest", "medium"]


@dataclass(frozen=True, slots=True)
class Precision:
    """What products are computed in.

    Args:
        dtype: Of the frozen weights and the activations that go through them; what is trained stays float32.
        matmul: torch's setting for float32: "medium" lets a CPU take oneDNN, if that was found to be as exact here.
        measured: Floating-point operations per second by way, in GFLOP/s; empty where nothing was measured.
        coarse: What is only looked at on the way is computed in; None: the same.
        packs: Float32 weights may be packed by oneDNN: it is taken, and as exact with them.
    """

    dtype: torch.dtype
    matmul: Matmul = "highest"
    measured: tuple[tuple[str, float], ...] = ()
    coarse: torch.dtype | None = None
    packs: bool = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have torch's float32 products run so."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.matmul)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        rates = ", ".join(f"{way} {rate:.0f}" for way, rate in self.measured)
        return f"{name} (GFLOP/s here: {rates})" if rates else name


def choose_precision(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device, *, onednn: bool = True
) -> Precision:
    """The arithmetic of ``--dtype``; auto measures.

    Args:
        onednn: On a CPU, float32 products may run by oneDNN.
    """
    if device.type == "cuda":
        half = name == "bfloat16" or (name == "auto" and torch.cuda.is_bf16_supported())
        return Precision(torch.bfloat16 if half else torch.float32)
    if name == "bfloat16":
        return Precision(torch.bfloat16)
    x, weight = _example()
    ways: tuple[Matmul, ...] = ("highest", "medium") if onednn else ("highest",)
    rates, errors = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    exact = x.double() @ weight.double()
    packed_error = rounded = 0.0
    halves = (x.bfloat16(), weight.bfloat16())
    # In turns, and the best of many: what else the machine does must not choose.
    for _ in range(_TURNS):
        for matmul in ways:
            with Precision(torch.float32, matmul).active():
                rates[matmul] = max(rates[matmul], _rate(x, weight))
                errors[matmul] = float(((x @ weight).double() - exact).abs().max())
                if CAN_PACK and matmul == "medium":
                    product = packed_product(x, packed(weight.T.contiguous()), None)
                    packed_error = float((product.double() - exact).abs().max())
        rounded = max(rounded, _rate(*halves))
    as_exact = onednn and errors["medium"] <= _SAME * errors["highest"]
    # Where both are about as fast it must not be chance: the same seed would make other bytes.
    best: Matmul = "medium" if as_exact and rates["medium"] >= _ABOUT * rates["highest"] else "highest"
    measured = (("float32", rates[best]), ("bfloat16", rounded))
    packs = CAN_PACK and best == "medium" and packed_error <= _SAME * errors["highest"]
    fastest = torch.bfloat16 if rounded >= _ENOUGH * rates[best] else torch.float32
    return Precision(torch.float32 if name == "float32" else fastest, best, measured, fastest, packs)


def _example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_ROWS, _IN, generator=generator), torch.randn(_IN, _OUT, generator=generator)


def _rate(x: Tensor, weight: Tensor) -> float:
    """GFLOP/s of a product of the size that a step is made of, the best of a few."""
    x @ weight
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        x @ weight
        best = min(best, time.perf_counter() - began)
    return 2 * _ROWS * _IN * _OUT / best / 1e9
