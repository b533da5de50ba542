"""The base as the model of a task, and where it runs."""

from typing import Any

import torch

from adapters.base import BaseSource
from adapters.quiet import quiet_transformers
from training.errors import ConfigError


def load_causal(base: BaseSource) -> Any:
    """The base as a language model, float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    if base.kind != "decoder":
        raise ConfigError(
            f"--base {base.id}: an encoder cannot write answers; take a decoder, or train a classifier on it: "
            "tenora train classify"
        )
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()


def load_classifier(base: BaseSource, labels: tuple[str, ...], pad_id: int) -> Any:
    """The base with a new head for ``labels``, float32, in evaluation mode. The head is seeded by the caller."""
    from transformers import AutoModelForSequenceClassification

    with quiet_transformers():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            base.path,
            dtype=torch.float32,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
            pad_token_id=pad_id,
            output_loading_info=True,
        )
    new = sorted(key for key in info["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if new:
        # They would be drawn anew at each loading, and the adapter does not carry them.
        raise ConfigError(f"--base {base.id} lacks weights that its classifier uses: {', '.join(new)}")
    return model.eval()


def pick_device(name: str) -> torch.device:
    """The device of ``--device``; auto takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU that torch can use; take auto or cpu")
    return torch.device(name)
