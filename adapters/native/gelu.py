"""GELU in bfloat16 by the compiled kernels, with its gradient."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adapters.activations import fused_activation
from adapters.native import library


class NativeGelu(nn.GELU):
    """The same as its base, which computes whatever the kernels are not for."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (its name in torch)
        """Of any shape."""
        if input.dtype != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        if not torch.is_grad_enabled():
            return _call(input.contiguous(), None, self.approximate == "tanh")
        y: Tensor = _Gelu.apply(input, self.approximate == "tanh")  # type: ignore[no-untyped-call]
        return y


def native_activation(module: nn.Module) -> nn.Module | None:
    """What computes the same by the compiled kernels; None for what is no GELU, and where there are no kernels."""
    approximate = _approximation(module)
    if approximate is None or not library.supports(torch.bfloat16):
        return None
    return NativeGelu(approximate)


def _approximation(module: nn.Module) -> str | None:
    if type(module) is nn.GELU:
        return module.approximate
    if type(module).__name__ == "GELUActivation":
        return "none"
    return None if fused_activation(module) is None else "tanh"


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tanh: bool) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.tanh = tanh
        return _call(x, None, tanh)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _call(x, dy.to(x.dtype).contiguous(), ctx.tanh), None


def _call(x: Tensor, dy: Tensor | None, tanh: bool) -> Tensor:
    out = torch.empty_like(x)
    kernel = library.function("tenora_gelu", torch.bfloat16)
    upstream = None if dy is None else dy.data_ptr()
    kernel(x.data_ptr(), upstream, out.data_ptr(), x.numel(), tanh, torch.get_num_threads())
    return out
