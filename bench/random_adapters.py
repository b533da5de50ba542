"""Random adapters in PEFT's format, written as fast as a disk takes them.

PEFT itself says what the files of an adapter for this base hold: it wraps the base without weights (on the meta
device), and the names, shapes and configuration that it would save are the :class:`Template`. The values of adapter k
are one pool of random numbers, begun at another place for every k.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adapters.adapter import infer_manifest
from adapters.base import BaseSource
from adapters.config import CONFIG_FILE
from adapters.manifest import MANIFEST_FILE, Manifest, write_manifest
from adapters.quiet import quiet_transformers
from adapters.templates import PromptTemplate
from adapters.weights import WEIGHTS_FILE

STD = 0.02
_PLACES = 4096
_HEADS = r".*(classifier|score).*"


@dataclass(frozen=True, slots=True)
class Template:
    """What all adapters of one kind have in common: PEFT's configuration and the tensors that it saves."""

    config: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def numbers(self) -> int:
        """Parameters of one adapter."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def peft_template(
    base: BaseSource, *, rank: int, num_labels: int | None = None, targets: str | list[str] = "all-linear"
) -> Template:
    """Ask PEFT what an adapter for ``base`` looks like; with labels it classifies."""
    config = base.config()
    options: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
    with quiet_transformers(), torch.device("meta"):
        if num_labels is None:
            model = AutoModelForCausalLM.from_config(config)
            options["task_type"] = TaskType.CAUSAL_LM
        else:
            config = type(config).from_dict({**config.to_dict(), "num_labels": num_labels})
            model = AutoModelForSequenceClassification.from_config(config)
            heads = {name.split(".")[0] for name in base.head_shapes(num_labels)}
            options |= {"task_type": TaskType.SEQ_CLS, "modules_to_save": sorted(heads), "exclude_modules": _HEADS}
        wrapped = get_peft_model(model, LoraConfig(fan_in_fan_out=config.model_type == "gpt2", **options))
    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    saved = wrapped.peft_config["default"]
    saved.base_model_name_or_path, saved.inference_mode = base.id, True
    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        text = (Path(folder) / CONFIG_FILE).read_text()
    return Template(text, {name: tuple(tensor.shape) for name, tensor in sorted(tensors.items())})


class AdapterWriter:
    """Writes adapters of one kind, manifest included.

    Args:
        base: The base that they belong to.
        template: What PEFT would save for it.
    """

    def __init__(self, base: BaseSource, template: Template) -> None:
        self._base, self._template = base, template
        self._header, self._pool = _header(template), _pool(template.numbers)
        self._manifest: Manifest | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of an adapter's numbers."""
        return len(self._pool)

    def write(self, number: int, folder: Path) -> Path:
        """Write adapter ``number``; no two of the first few thousand are the same."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(self._template.config)
        numbers = self._template.numbers
        start = 2 * ((number * max(1, numbers // _PLACES)) % numbers)
        with (folder / WEIGHTS_FILE).open("wb") as file:
            file.writelines((self._header, self._pool[start:], self._pool[:start]))
        self._manifest = self._manifest or self._infer(folder)
        write_manifest(folder, self._manifest)  # the last file: a folder that has it is whole
        return folder

    def _infer(self, folder: Path) -> Manifest:
        classifies = json.loads(self._template.config)["task_type"] == "SEQ_CLS"
        return infer_manifest(folder, self._base, template=None if classifies else PromptTemplate.named("plain"))


def write_missing(base: BaseSource, template: Template, folders: list[Path], *, first: int = 0) -> list[Path]:
    """Write adapter number ``first``, ``first + 1`` … into folders; those that are there already are kept."""
    writer = AdapterWriter(base, template)
    for number, folder in enumerate(folders, start=first):
        if not (folder / MANIFEST_FILE).exists():
            writer.write(number, folder)
    return folders


def _header(template: Template) -> bytes:
    """The head of a safetensors file: its length, then where each tensor begins and ends."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in template.shapes.items():
        end = at + 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pool(numbers: int) -> memoryview:
    values = torch.empty(numbers).normal_(0, STD, generator=torch.Generator().manual_seed(1)).bfloat16()
    return memoryview(values.view(torch.uint8).numpy()).cast("B")
