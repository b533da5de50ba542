"""The last layer computes its second half only for the tokens whose hidden state is read.

Everything above the last attention works on each token alone: of a text to classify one token is read, of an answer
those that predict it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_read: ContextVar[Tensor | None] = ContextVar("read", default=None)


@contextmanager
def reading(tokens: Tensor | None) -> Iterator[None]:
    """Say which tokens of the flattened row are read: ``[n]``, or None for all of them."""
    token = _read.set(tokens)
    try:
        yield
    finally:
        _read.reset(token)


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A backbone's last layer that narrows to the tokens that are read.

    Args:
        layer: The layer; deleting its ``forward`` undoes it.
        behind: Beginnings of the names, in the backbone, of the modules that see the tokens that are read alone.
    """

    layer: nn.Module
    behind: tuple[str, ...]


def narrow_last(backbone: nn.Module) -> Narrowed | None:
    """Have the last layer of ``backbone`` narrow to what is read; None where its kind is not known.

    The caller holds the result against the untouched model.
    """
    lists = ((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList))
    name, layers = next(((name, module) for name, module in lists if len(module)), ("", None))
    if layers is None:
        return None
    layer = layers[-1]
    known = _KINDS.get(frozenset(child for child, _ in layer.named_children()))
    if known is None:
        return None
    forward, behind = known
    whole = layer.forward

    def narrowed(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        read = _read.get()
        if read is None:
            return whole(hidden, *args, **kwargs)
        # Models expect as many tokens as they gave; what nobody reads is zero.
        return torch.zeros_like(hidden).index_copy(1, read, forward(layer, hidden, read, *args, **kwargs))

    layer.forward = narrowed
    return Narrowed(layer, tuple(f"{name}.{len(layers) - 1}.{child}." for child in behind))


def _gpt2(layer: Any, hidden: Tensor, read: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    attended, _ = layer.attn(layer.ln_1(hidden), *args, **kwargs)
    hidden = (attended + hidden)[:, read]
    return hidden + layer.mlp(layer.ln_2(hidden))  # type: ignore[no-any-return]


def _llama(layer: Any, hidden: Tensor, read: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    attended, _ = layer.self_attn(layer.input_layernorm(hidden), *args, **kwargs)
    hidden = (hidden + attended)[:, read]
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


def _distilbert(layer: Any, hidden: Tensor, read: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    attended, _ = layer.attention(hidden, *args, **kwargs)
    hidden = layer.sa_layer_norm((attended + hidden)[:, read])
    return layer.output_layer_norm(layer.ffn(hidden) + hidden)  # type: ignore[no-any-return]


def _bert(layer: Any, hidden: Tensor, read: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    attended, *_ = layer.attention(hidden, *args, **kwargs)
    return layer.feed_forward_chunk(attended[:, read])  # type: ignore[no-any-return]


_KINDS: dict[frozenset[str], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    frozenset({"ln_1", "attn", "ln_2", "mlp"}): (_gpt2, ("mlp",)),
    frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}): (_llama, ("mlp",)),
    frozenset({"attention", "sa_layer_norm", "ffn", "output_layer_norm"}): (_distilbert, ("ffn",)),
    frozenset({"attention", "intermediate", "output"}): (_bert, ("intermediate", "output")),
}
"""By the names of a layer's parts: its forward over the tokens that are read, and which parts see those alone."""
