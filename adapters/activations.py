"""Activations that transformers writes as a chain of operations, as the one operation that computes the same."""

from torch import nn

_TANH_GELUS = ("NewGELUActivation", "PytorchGELUTanh", "FastGELUActivation", "GELUTanh")


def fused_activation(module: nn.Module) -> nn.Module | None:
    """What computes the same at once; None for any other module."""
    return nn.GELU(approximate="tanh") if type(module).__name__ in _TANH_GELUS else None
