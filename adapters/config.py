"""PEFT's `adapter_config.json`, read without PEFT.

Every field that PEFT's LoraConfig has is known here, and falls into one of three groups: it is served, it makes no
difference once an adapter is trained, or it changes the result in a way that is not served and is refused by name.
A field nobody knows is refused too, since it might change the result.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adapters.errors import AdapterFormatError, AdapterUnsupportedError, named
from adapters.files import read_json_object
from adapters.patterns import check_patterns, matching_key

CONFIG_FILE = "adapter_config.json"
MAX_RANK = 4096
HEAD_ONLY = "dummy-target-modules"
"""PEFT's target of an adapter without LoRA: it matches no module, so the head is all that was trained."""
TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]

LARGEST_ALPHA = 1e6
"""Far beyond any training's; what is multiplied with much more is not finite any more."""
_SERVED = frozenset({
    "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights",
    "base_model_name_or_path", "revision", "peft_version",
})  # fmt: skip
# Among them settings of initialisations and of training, which are over; `init_lora_weights` says if they left a trace.
_HARMLESS = frozenset({
    "auto_mapping", "inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size",
})  # fmt: skip
# Field -> (what it is, the value that switches it off).
_REFUSED: Mapping[str, tuple[str, Any]] = {
    "use_dora": ("DoRA", False),
    "bias": ("trained biases", "none"),
    "lora_bias": ("a bias on lora_B", False),
    "layer_replication": ("replicated layers", None),
    "trainable_token_indices": ("trained token embeddings", None),
    "target_parameters": ("LoRA on bare parameters", None),
    "megatron_config": ("Megatron's parallel linears", None),
    "alora_invocation_tokens": ("activated LoRA", None),
    "use_qalora": ("QA-LoRA", False),
    "monteclora_config": ("Monte Carlo LoRA", None),
    "use_bdlora": ("block-diagonal LoRA", None),
    "arrow_config": ("Arrow routing", None),
    "kasa_config": ("KaSA", None),
    "ensure_weight_tying": ("adapters on tied weights", False),
}
# These start from a base that they have changed, so their A and B fit no base that is served.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_RETRAIN = "train with plain LoRA, or merge it into a base of its own"


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """The part of an adapter's config that its result depends on."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    task_type: TaskType | None = None
    target_modules: tuple[str, ...] | str | None = None
    selects_layers: bool = False
    base_name: str | None = None
    peft_version: str | None = None

    @property
    def head_only(self) -> bool:
        """Whether no linear has a pair, and the head of ``modules_to_save`` is the whole adapter."""
        return self.target_modules == HEAD_ONLY

    def rank_of(self, module: str) -> int:
        """The rank at a module, named as PEFT sees it: with the architecture's prefix (`transformer.h.0…`)."""
        key = matching_key(self.rank_pattern, module)
        return self.r if key is None else self.rank_pattern[key]

    def scaling_of(self, module: str) -> float:
        """What B·A is multiplied with at that module: alpha/r, or alpha/√r with rsLoRA."""
        key = matching_key(self.alpha_pattern, module)
        alpha = self.lora_alpha if key is None else self.alpha_pattern[key]
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether a list of targets names the module; False where only PEFT could tell."""
        if not isinstance(self.target_modules, tuple) or self.selects_layers:
            return False
        return any(module == target or module.endswith(f".{target}") for target in self.target_modules)


def read_lora_config(folder: Path) -> LoraSpec:
    """Read ``adapter_config.json`` in ``folder``; whatever cannot be served is refused by name."""
    return parse_lora_config(read_json_object(folder / CONFIG_FILE))


def parse_lora_config(raw: Mapping[str, Any]) -> LoraSpec:
    """Check the fields of a LoraConfig; training calls it before a job is made."""
    if raw.get("peft_type") != "LORA":
        message = f"peft_type is {raw.get('peft_type')!r}; only LORA adapters are served"
        raise AdapterUnsupportedError(message, key="peft_type")
    _refuse_unknown(raw)
    _refuse_unserved(raw)
    rank_pattern = {key: _rank(value, f"rank_pattern.{key}") for key, value in _object(raw, "rank_pattern").items()}
    alpha_pattern = {key: _alpha(value, f"alpha_pattern.{key}") for key, value in _object(raw, "alpha_pattern").items()}
    check_patterns("rank_pattern", rank_pattern)
    check_patterns("alpha_pattern", alpha_pattern)
    return LoraSpec(
        r=_rank(raw.get("r", 8), "r"),
        lora_alpha=_alpha(raw.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=_flag(raw, "use_rslora"),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        modules_to_save=_names(raw, "modules_to_save"),
        task_type=_task_type(raw),
        target_modules=_targets(raw),
        selects_layers=any(raw.get(name) is not None for name in ("exclude_modules", "layers_to_transform")),
        base_name=_text(raw, "base_model_name_or_path"),
        peft_version=_text(raw, "peft_version"),
    )


def _refuse_unknown(raw: Mapping[str, Any]) -> None:
    unknown = sorted(set(raw) - _SERVED - _HARMLESS - set(_REFUSED))
    if unknown:
        message = f"{CONFIG_FILE} has fields that are not known here, so their effect is not either: {named(unknown)}"
        raise AdapterUnsupportedError(message, key=unknown[0])


def _refuse_unserved(raw: Mapping[str, Any]) -> None:
    for name, (what, off) in _REFUSED.items():
        value = raw.get(name, off)
        if value not in (off, None):
            raise AdapterUnsupportedError(f"{name} asks for {what}, which is not served: {_RETRAIN}", key=name)
    how = raw.get("init_lora_weights", True)
    if isinstance(how, str) and how.lower().startswith(_CHANGED_BASE):
        message = (
            f"init_lora_weights {how!r} trains on a changed base, which is not served: save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion, which turns it into plain LoRA"
        )
        raise AdapterUnsupportedError(message, key="init_lora_weights")


def _object(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AdapterFormatError(f"{name} must be an object of patterns", key=name)
    return value


def _rank(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_RANK:
        raise AdapterFormatError(f"{name} must be a rank from 1 to {MAX_RANK}, not {value!r:.80}", key=name)
    return value


def _alpha(value: Any, name: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= LARGEST_ALPHA:  # NaN is not, either
        shown = f"{value!r:.80}" if not isinstance(value, int) or abs(value) < 10**80 else "a number beyond all bounds"
        message = f"{name} must be a number of at most {LARGEST_ALPHA:g}, not {shown}"
        raise AdapterFormatError(message, key=name)
    return float(value)


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name) or False
    if not isinstance(value, bool):
        raise AdapterFormatError(f"{name} must be true or false, not {value!r:.80}", key=name)
    return value


def _names(raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = raw.get(name) or ()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise AdapterFormatError(f"{name} must be a list of module names", key=name)
    return tuple(value)


def _text(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise AdapterFormatError(f"{name} must be text, not {value!r:.80}", key=name)
    return value


def _targets(raw: Mapping[str, Any]) -> tuple[str, ...] | str | None:
    value = raw.get("target_modules")
    return value if isinstance(value, str) else _names(raw, "target_modules") or None


def _task_type(raw: Mapping[str, Any]) -> TaskType | None:
    value = raw.get("task_type")
    if value in (None, "CAUSAL_LM", "SEQ_CLS"):
        return value
    raise AdapterUnsupportedError(f"task_type {value!r} is not served: use CAUSAL_LM or SEQ_CLS", key="task_type")
