"""The base as the model of a task, and LoRA around it by PEFT."""

from typing import Any, cast

import torch
from torch import nn

from adapters.base import BaseSource
from adapters.quiet import quiet_transformers
from training.config import TrainConfig
from training.errors import ConfigError

# PEFT trains a classifier's head whole; "all-linear" would wrap parts of it a second time.
_HEADS = r".*(classifier|score).*"
ALL_LINEAR = "all-linear"


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


def add_lora(model: Any, base: BaseSource, config: TrainConfig) -> Any:
    """``model`` wrapped by PEFT; only LoRA matrices and, for a classifier, its head can be trained."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if config.base_dropout is not None:
        _set_dropout(model, config.base_dropout)
    classifier = config.task == "classify"
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=_whole(config.alpha),
        lora_dropout=config.dropout,
        target_modules=_targets(config, base),
        exclude_modules=_HEADS if classifier else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    wrapped = get_peft_model(model, lora)
    # The folder of this machine means nothing to whoever loads the adapter.
    wrapped.peft_config["default"].base_model_name_or_path = base.id
    wrapped.peft_config["default"].revision = base.revision
    return wrapped


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def pick_device(name: str) -> torch.device:
    """The device of ``--device``; auto takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU that torch can use; take auto or cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of ``--dtype``; weights stay float32 whatever it is."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return cast(torch.dtype, getattr(torch, name))


def _targets(config: TrainConfig, base: BaseSource) -> str | list[str]:
    """PEFT's ``target_modules``; every name must fit a linear module of the base."""
    if config.targets == (ALL_LINEAR,):
        return ALL_LINEAR
    modules = base.linear_shapes()
    for target in config.targets:
        if not any(module == target or module.endswith(f".{target}") for module in modules):
            endings = sorted({module.rpartition(".")[2] for module in modules})
            raise ConfigError(f"--targets: {base.id} has no linear module {target!r}; it has {', '.join(endings)}")
    return list(config.targets)


def _set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of a base the same rate; newer architectures keep the attention's as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = rate  # type: ignore[assignment]


def _whole(alpha: float) -> Any:
    """PEFT writes alpha as it gets it; whole numbers are the custom in its files."""
    return int(alpha) if alpha == int(alpha) else alpha
