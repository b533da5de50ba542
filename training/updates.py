"""What of a model is trained, and how that is kept: LoRA matrices, a head, or everything.

LoRA matrices and heads are saved in PEFT's form, so every checkpoint is an adapter. All weights are saved as a base.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.base import BaseSource
from training.config import TrainConfig
from training.errors import ConfigError

ALL_LINEAR = "all-linear"
# PEFT trains a classifier's head whole; "all-linear" would wrap parts of it a second time.
_HEADS = r".*(classifier|score).*"
_HEAD_NAMES = ("classifier", "score")
WEIGHTS_FILE = "adapter_model.safetensors"
_ALL_WEIGHTS_FILE = "trained.safetensors"


class Update(ABC):
    """A way to change a model."""

    @abstractmethod
    def prepare(self, model: Any) -> Any:
        """``model`` with only what is to be trained open to gradients."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write what was trained into ``folder``."""

    @abstractmethod
    def load(self, model: Any, folder: Path) -> None:
        """Put what ``save`` wrote back into ``model``."""


class PeftUpdate(Update):
    """LoRA matrices, with the head where a task has one; or the head alone.

    Args:
        base: Whose modules are adapted.
        config: Ranks, targets and what else LoRA is told.
    """

    def __init__(self, base: BaseSource, config: TrainConfig) -> None:
        self._base, self._config = base, config

    def prepare(self, model: Any) -> Any:
        """PEFT's wrapper around ``model``."""
        from peft import get_peft_model

        wrapped = get_peft_model(model, self._lora(model))
        # The folder of this machine means nothing to whoever loads the adapter.
        wrapped.peft_config["default"].base_model_name_or_path = self._base.id
        wrapped.peft_config["default"].revision = self._base.revision
        return wrapped

    def save(self, model: Any, folder: Path) -> None:
        """PEFT's two files."""
        model.save_pretrained(folder, save_embedding_layers=False)

    def load(self, model: Any, folder: Path) -> None:
        """The same back again."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / WEIGHTS_FILE))

    def _lora(self, model: Any) -> Any:
        from peft import LoraConfig, TaskType
        from peft.utils.constants import DUMMY_TARGET_MODULES
        from transformers.pytorch_utils import Conv1D

        config = self._config
        kind = TaskType.SEQ_CLS if config.has_head else TaskType.CAUSAL_LM
        if config.update == "head":
            heads = [name for name, _ in model.named_children() if name.endswith(_HEAD_NAMES)]
            return LoraConfig(task_type=kind, target_modules=DUMMY_TARGET_MODULES, modules_to_save=heads)
        return LoraConfig(
            task_type=kind,
            r=config.rank,
            lora_alpha=_whole(config.alpha),
            use_rslora=config.rslora,
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern={name: _whole(alpha) for name, alpha in config.alpha_pattern.items()},
            lora_dropout=config.dropout,
            target_modules=self._targets(),
            exclude_modules=_HEADS if config.has_head else None,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )

    def _targets(self) -> str | list[str]:
        """PEFT's ``target_modules``; every name must fit a linear module of the base."""
        named = {"targets": self._config.targets, "rank-pattern": self._config.rank_pattern}
        for flag, names in {**named, "alpha-pattern": self._config.alpha_pattern}.items():
            self._check(flag, [name for name in names if name != ALL_LINEAR])
        return ALL_LINEAR if self._config.targets == (ALL_LINEAR,) else list(self._config.targets)

    def _check(self, flag: str, names: list[str]) -> None:
        modules = self._base.linear_shapes()
        for name in names:
            if not any(module == name or module.endswith(f".{name}") for module in modules):
                endings = sorted({module.rpartition(".")[2] for module in modules})
                raise ConfigError(
                    f"--{flag}: {self._base.id} has no linear module {name!r}; it has {', '.join(endings)}"
                )


class FullUpdate(Update):
    """All weights: what comes out is another base."""

    def prepare(self, model: Any) -> Any:
        """The model itself."""
        return model.requires_grad_(True)

    def save(self, model: Any, folder: Path) -> None:
        """All trained tensors; what shares memory is written once."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in trained(model)}, folder / _ALL_WEIGHTS_FILE)

    def load(self, model: Any, folder: Path) -> None:
        """The same back again."""
        tensors = load_file(folder / _ALL_WEIGHTS_FILE)
        with torch.no_grad():
            for name, value in trained(model):
                value.copy_(tensors[name])


def make_update(base: BaseSource, config: TrainConfig) -> Update:
    """The way of ``--update``."""
    return FullUpdate() if config.update == "full" else PeftUpdate(base, config)


def trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters that gradients flow to, by name."""
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of a base the same rate; newer architectures keep the attention's as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = rate  # type: ignore[assignment]


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in model.parameters()]
    return sum(size for is_trained, size in sizes if is_trained), sum(size for _, size in sizes)


def _whole(alpha: float) -> Any:
    """PEFT writes alpha as it gets it; whole numbers are the custom in its files."""
    return int(alpha) if alpha == int(alpha) else alpha
