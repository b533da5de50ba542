"""The last layer computes its second half only for the tokens whose hidden state is read.

Everything above the last attention works on each token alone: of a text to classify one token is read, of an answer
those that predict it.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

reading: ContextVar[Tensor | None] = ContextVar("reading", default=None)
"""``[n]``: the tokens of the flattened row that are read; None: all of them."""


def narrow_last(backbone: nn.Module) -> nn.Module | None:
    """Have the last layer of ``backbone`` narrow to what is read; None where its kind is not known.

    The caller holds the result against the untouched model.
    """
    layers = next((module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module)), None)
    if layers is None:
        return None
    layer = layers[-1]
    forward = _FORWARDS.get(frozenset(name for name, _ in layer.named_children()))
    if forward is None:
        return None
    whole = layer.forward

    def narrowed(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        read = reading.get()
        if read is None:
            return whole(hidden, *args, **kwargs)
        # Models expect as many tokens as they gave; what nobody reads is zero.
        return torch.zeros_like(hidden).index_copy(1, read, forward(layer, hidden, read, *args, **kwargs))

    layer.forward = narrowed
    return layer


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


_FORWARDS: dict[frozenset[str], Callable[..., Tensor]] = {
    frozenset({"ln_1", "attn", "ln_2", "mlp"}): _gpt2,
    frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}): _llama,
    frozenset({"attention", "sa_layer_norm", "ffn", "output_layer_norm"}): _distilbert,
    frozenset({"attention", "intermediate", "output"}): _bert,
}
