"""What an architecture's modules are called and how large they are, without loading a weight.

Models are built on the meta device, so a base of any size costs milliseconds and no memory. Names are relative to
the headless backbone (`layers.0.self_attn.q_proj`), whatever the task model calls it (`model.layers.0…`).
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from adapters.errors import AdapterUnsupportedError, BaseModelError
from adapters.quiet import quiet_transformers

Kind = Literal["decoder", "encoder"]
ENCODERS = frozenset({"distilbert", "bert", "roberta"})


@dataclass(frozen=True, slots=True)
class Architecture:
    """Modules of a base: ``linear`` maps a name to (in, out); ``prefix`` is the backbone's name in a task model.

    ``output`` is the name of a decoder's language-model head (`lm_head` nearly everywhere), None for an encoder;
    ``embedding`` is the name of the token embeddings, which may be the same tensor.
    """

    prefix: str
    linear: dict[str, tuple[int, int]]
    output: str | None
    embedding: str

    def peft_name(self, module: str) -> str:
        """The name that PEFT sees: the backbone's prefix put back, the output head as it is."""
        return module if module == self.output else f"{self.prefix}.{module}"


def load_config(path: Path) -> Any:
    """Read the transformers config in ``path``; never runs code that comes with a model."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(
            f"{path} holds no config.json that transformers knows: {error}", key="config.json"
        ) from error


def kind_of(config: Any) -> Kind:
    """Decoders generate and classify; encoders classify."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if config.model_type in ENCODERS:
        return "encoder"
    # Several bidirectional encoders have a causal class too; serving them as decoders would be wrong, not slow.
    if type(config) in AutoModelForCausalLM._model_mapping and type(config) not in AutoModelForMaskedLM._model_mapping:
        return "decoder"
    raise BaseModelError(
        f"the architecture {config.model_type!r} is not served: take a decoder (a causal language model) "
        f"or one of the encoders {', '.join(sorted(ENCODERS))}",
        key="model_type",
    )


def describe(config: Any) -> Architecture:
    """Every Linear and Conv1D of the backbone, with the output head of a decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    decoder = kind_of(config) == "decoder"
    # An encoder's backbone is taken out of its classifier: BERT keeps its pooler there, RoBERTa does not.
    model = _on_meta(AutoModelForCausalLM if decoder else AutoModelForSequenceClassification, config)
    prefix = model.base_model_prefix
    backbone = getattr(model, prefix)
    linear = _linear_shapes(backbone)
    head = model.get_output_embeddings() if decoder else None
    output = _name_in(model, head) if head is not None else None
    if output is not None and isinstance(head, torch.nn.Linear):
        linear[output] = (head.in_features, head.out_features)
    return Architecture(prefix, linear, output, _name_in(backbone, model.get_input_embeddings()))


def head_shapes(config: Any, num_labels: int) -> dict[str, tuple[int, ...]]:
    """The tensors that the architecture's own classifier adds to its backbone, with their shapes."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(config)
    config.num_labels = num_labels
    try:
        model = _on_meta(AutoModelForSequenceClassification, config)
    except ValueError as error:
        message = f"the architecture {config.model_type!r} has no sequence classifier: {error}"
        raise AdapterUnsupportedError(message, key="task_type") from error
    backbone = f"{model.base_model_prefix}."
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith(backbone)}


def context_length(config: Any) -> int:
    """How many tokens one sequence may have, special tokens included."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "seq_length", None)
    if not isinstance(positions, int):
        raise BaseModelError(
            f"the config of {config.model_type!r} states no context length", key="max_position_embeddings"
        )
    if config.model_type == "roberta":  # its positions begin after the padding index
        return positions - int(config.pad_token_id) - 1
    return positions


def _on_meta(auto: Any, config: Any) -> Any:
    with quiet_transformers(), torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False)


def _name_in(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    names: dict[torch.nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[wanted]


def _linear_shapes(backbone: torch.nn.Module) -> dict[str, tuple[int, int]]:
    from transformers.pytorch_utils import Conv1D

    shapes = {}
    for name, module in backbone.named_modules():
        # A router of experts may call itself a Linear and give three things back: no place for an adapter.
        if isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward:
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):  # GPT-2 keeps its weight as [in, out]
            shapes[name] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return shapes
