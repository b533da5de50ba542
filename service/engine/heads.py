"""Per-adapter classification heads, computed by the architecture's own code.

The head of an adapter is whatever ``AutoModelForSequenceClassification`` of the base's architecture puts behind its
backbone. That class is instantiated once per number of labels without any weights, its backbone replaced by a stub
that hands back hidden states already computed; an adapter's head tensors are passed in at the call.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from adapters.heads import BackboneStub
from adapters.manifest import Manifest


def meant(manifest: Manifest, logits: Tensor) -> Tensor:
    """What an adapter's logits ``[texts, labels]`` mean, as its manifest says.

    classify, single_label    softmax: the labels' probabilities sum to one
    classify, multi_label     sigmoid: each label's probability by itself
    score                     the number as it is
    """
    if manifest.task == "score":
        return logits
    return logits.sigmoid() if manifest.multi_label else logits.softmax(-1)


class ClassificationHeads:
    """The heads in the adapter slots of one engine.

    Args:
        config: The base's configuration.
        backbone: The base itself; BERT's heads go through its pooler, LoRA included.
    """

    def __init__(self, config: PreTrainedConfig, backbone: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._pooler = getattr(backbone, "pooler", None)
        self._dtype = dtype
        self._device = device
        self._skeletons: dict[int, nn.Module] = {}
        self._heads: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}

    def load(self, slot: int, head: Mapping[str, Tensor], num_labels: int) -> None:
        """Put a head into a slot; an adapter without one clears it."""
        if not head:
            self._heads.pop(slot, None)
            return
        tensors = {name: tensor.to(self._device, self._dtype) for name, tensor in head.items()}
        self._heads[slot] = (self._skeleton(num_labels), tensors)

    def logits(self, slot: int, hidden: Tensor) -> Tensor:
        """``[n, hidden] -> [n, labels]`` in float32, from the hidden state that stands for each text."""
        skeleton, tensors = self._heads[slot]
        # The ids say only that each row is one token; without them transformers warns that it cannot find padding.
        ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
        inputs = {"input_ids": ids, "inputs_embeds": hidden[:, None]}
        output = torch.func.functional_call(skeleton, tensors, kwargs=inputs)
        logits: Tensor = output.logits.float()
        return logits

    def _skeleton(self, num_labels: int) -> nn.Module:
        if num_labels not in self._skeletons:
            self._skeletons[num_labels] = self._new_skeleton(num_labels)
        return self._skeletons[num_labels]

    def _new_skeleton(self, num_labels: int) -> nn.Module:
        config = deepcopy(self._config)
        config.num_labels = num_labels
        # Each row is one token, so there is no padding to look for; without an id GPT-2 refuses batches.
        config.pad_token_id = config.pad_token_id or 0
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        setattr(model, model.base_model_prefix, BackboneStub(self._pooler))
        head: nn.Module = model.eval()
        return head
