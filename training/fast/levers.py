"""What makes training faster, each to be switched off alone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

NEEDS: Mapping[str, tuple[str, ...]] = {
    "share_prefix": ("packing",),
    "narrow": ("packing", "loss_rows"),
    "compiled": ("packing", "loss_rows", "fused"),
    "prepack": ("fused",),
}
"""Levers without which another does nothing, or not all that it can."""


@dataclass(frozen=True, slots=True)
class Levers:
    """What makes a step or an evaluation faster. All of them off is transformers' and PEFT's own way.

    Args:
        packing: Rows lie end to end, nothing is padded.
        share_prefix: What rows of a batch begin with alike is computed once. Needs ``packing``.
        loss_rows: Logits only where something is learned, and no token after the last of those.
        narrow: The last layer's second half only for the tokens that are read. Needs ``packing`` and ``loss_rows``.
        fused: A linear layer and its LoRA matrices are one step of the backward pass; weights are rounded once.
        compiled: By compiled kernels, in bfloat16 on a CPU that has them: attention (with ``packing``), GELU and LoRA's
            narrow products (with ``fused``), the loss over the vocabulary (with ``fused`` and ``loss_rows``). In
            float32 too, on such a CPU: dropout.
        prepack: Weights that are not trained are laid out for both of their products once. Needs ``fused``; in float32
            ``onednn`` as well.
        onednn: Float32 products by oneDNN, where `choose_precision` finds it as exact and no slower.
        coarse_curve: Losses between epochs in the fastest type; see `FastModel.coarsely`.
    """

    packing: bool = True
    share_prefix: bool = True
    loss_rows: bool = True
    narrow: bool = True
    fused: bool = True
    compiled: bool = True
    prepack: bool = True
    onednn: bool = True
    coarse_curve: bool = True

    @classmethod
    def only(cls, *names: str) -> "Levers":
        """These on, all others off."""
        return replace(cls.none(), **dict.fromkeys(names, True))

    @classmethod
    def none(cls) -> "Levers":
        """All off."""
        return cls(**{field.name: False for field in fields(cls)})

    def without(self, *names: str) -> "Levers":
        """The same with some of them off."""
        return replace(self, **dict.fromkeys(names, False))
