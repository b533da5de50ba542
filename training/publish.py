"""From the best checkpoint to a published adapter: manifest, proof that it comes back equal, store.

The proof reads the folder as serving does and puts its matrices on a fresh base with hooks of our own, without PEFT:
a lost head, a wrong scaling or a module that nothing was applied to shows as a difference in the logits.
"""

import contextlib
import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapter import Adapter, load_adapter
from adapters.manifest import BaseRef, Manifest, utc_now, write_manifest
from adapters.names import AdapterName
from adapters.store import Store, Version
from adapters.weights import LoraPair
from training.errors import PublishError
from training.fast.levers import Levers
from training.fast.model import FastModel
from training.tasks.task import Metrics, Task

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_TOOLS = ("tenora", "torch", "transformers", "peft")
_PROBE_ROWS = 4
_TOLERANCE = 1e-4


def write_adapter(task: Task[Any, Any], checkpoint: Path, folder: Path, metrics: Metrics) -> Path:
    """Put PEFT's files and our manifest into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(checkpoint / name, folder / name)
    base = task.base
    manifest = Manifest(
        base=BaseRef(id=base.id, revision=base.revision, fingerprint=base.fingerprint),
        max_length=task.max_length,
        data_sha256=task.dataset.sha256,
        recipe=task.config.as_recipe(),
        metrics={name: round(value, 6) for name, value in metrics.items()},
        created=utc_now(),
        tools=tool_versions(),
        **task.manifest_fields(),
    )
    write_manifest(folder, manifest)
    return folder


def tool_versions() -> dict[str, str]:
    """Versions of what made the adapter; run from a source tree, Tenora itself has none."""
    versions = {}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def verify(task: Task[Any, Any], trained: Any, folder: Path) -> float:
    """Largest difference of logits between ``trained`` and the adapter read back from ``folder``.

    Raises:
        PublishError: they differ, or the adapter changes nothing at all.
    """
    adapter = load_adapter(folder, task.base)
    expected = probe(task, trained)
    model = task.load_model().to(trained.device)
    put_head(adapter, model)
    plain = probe(task, model)
    add_pairs(adapter, model, task.base.architecture().peft_name)
    found = probe(task, model)
    difference = (found - expected).abs().max().item()
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise PublishError(f"the adapter in {folder} answers otherwise than the trained model, by {difference:.2g}")
    if adapter.weights.pairs and torch.equal(found, plain):
        raise PublishError("the trained matrices change nothing: train longer or with a higher --lr")
    return difference


@torch.inference_mode()
def probe(task: Task[Any, Any], model: Any) -> Tensor:
    """Logits on the first validation rows, by the model's own forward in float32."""
    model.eval()
    rows = [example.ids for example in task.examples.validation[:_PROBE_ROWS]]
    if task.config.has_head:
        return FastModel(model, Levers.none(), torch.float32, task.pad_id).label_logits(rows)
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[task.pad_id] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[mask.bool()].float()  # what stands at padding is nobody's answer


def put_head(adapter: Adapter, model: nn.Module) -> None:
    """Put an adapter's classification head, if it has one, into a base model."""
    unexpected = model.load_state_dict(adapter.weights.head, strict=False).unexpected_keys
    if unexpected:
        raise PublishError(f"the base has no place for {', '.join(unexpected)}")


def add_pairs(adapter: Adapter, model: nn.Module, name_in_model: Callable[[str], str]) -> None:
    """Add an adapter's matrices to the linears of a base model."""
    device = next(model.parameters()).device
    for module, pair in adapter.weights.pairs.items():
        model.get_submodule(name_in_model(module)).register_forward_hook(_add(pair, device))


def publish(store: Path, name: str, folder: Path, task: Task[Any, Any]) -> Version:
    """Publish ``folder`` as the newest version of ``name``."""
    return Store(store).publish(folder, AdapterName.parse(name), task.base)


def _add(pair: LoraPair, device: torch.device) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    a, b = pair.a.to(device).float(), pair.b.to(device).float()

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + pair.scaling * (inputs[0] @ a.T @ b.T)

    return hook
