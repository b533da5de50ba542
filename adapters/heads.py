"""The architecture's own classifier over hidden states that are there already.

Whatever ``AutoModelForSequenceClassification`` puts behind its backbone runs alone once a stub stands where the
backbone was. Serving passes each adapter's tensors to one; training keeps the classifier's own parameters.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions


class BackboneStub(nn.Module):
    """Stands where the backbone was; its "embeddings" are the backbone's final hidden states.

    Args:
        pooler: The backbone's, if it has one: BERT's heads go through it, LoRA included.
    """

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        # In a list, so that the base's pooler does not become part of the head.
        self.pooler = [pooler] if pooler is not None else []

    def forward(
        self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor, **_kwargs: Any
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Hand the hidden states on; pooled ones in their type, whatever the pooler computes in."""
        pooled = self.pooler[0](inputs_embeds).to(inputs_embeds.dtype) if self.pooler else None
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=inputs_embeds, pooler_output=pooled)
