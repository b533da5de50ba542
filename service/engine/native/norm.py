"""RMSNorm by the CPU kernels."""

from typing import Any

import torch
from torch import Tensor, nn

from adapters.native import library


class NativeRMSNorm(nn.Module):
    """``weight * x / rms(x)``, computed as transformers' Llama does: x is rounded before it meets the weight."""

    def __init__(self, weight: nn.Parameter, eps: float, threads: int) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self._threads = threads
        self._kernel = library.function("tenora_rms_norm", weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n] -> [..., n]``.

        Raises:
            ValueError: x is of another type than the weight.
        """
        library.check_dtype(x, self.weight.dtype)
        x = x.contiguous()
        y = torch.empty_like(x)
        n = x.shape[-1]
        self._kernel(x.data_ptr(), self.weight.data_ptr(), y.data_ptr(), x.numel() // n, n, self.eps, self._threads)
        return y


def replaceable(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a module is an RMSNorm of the Llama kind whose numbers are all of one type."""
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(getattr(module, "variance_epsilon", None), float)
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and module.weight.dtype == dtype
        and _same(module, module.weight, module.variance_epsilon)
    )


@torch.inference_mode()
def _same(module: nn.Module, weight: Any, eps: Any) -> bool:
    """Whether it computes what the kernel computes; a name promises nothing."""
    x = torch.randn(4, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    try:
        theirs = module(x).float()
    except TypeError:  # it wants more than a row
        return False
    ours = NativeRMSNorm(weight, eps, 1)(x).float()
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
