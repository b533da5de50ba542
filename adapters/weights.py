"""Reads an adapter's tensors, exactly: every key has its place in the base, every shape agrees, all is finite.

base_model.model.<prefix>.<module>.lora_A.weight   [r, in]     a pair of a linear of the backbone
base_model.model.<prefix>.<module>.lora_B.weight   [out, r]
base_model.model.<head tensor>                                 the classification head, whole
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from adapters.base import BaseSource
from adapters.config import HEAD_ONLY, LoraSpec
from adapters.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    AdapterUnsupportedError,
    named,
)
from adapters.files import open_regular

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
_ROOT, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What other kinds of adapter leave in the file.
_FOREIGN = {
    "lora_embedding_": "LoRA on embeddings",
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "a bias on lora_B",
    "lora_diag": "KaSA",
    "token_adapter": "trained token embeddings",
    "trainable_tokens": "trained token embeddings",
}
# PEFT puts both of these into every classifier's modules_to_save, whichever the architecture has.
_DEFAULT_HEADS = frozenset(("classifier", "score"))


@dataclass(frozen=True, slots=True)
class LoraPair:
    """y += scaling · B A x, with ``a`` [r, in] and ``b`` [out, r] in the file's own type."""

    a: Tensor
    b: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """LoRA pairs by module (relative to the backbone), and the head's tensors by name (none: it generates).

    An adapter of which only the head was trained has no pairs.
    """

    pairs: dict[str, LoraPair]
    head: dict[str, Tensor]
    num_labels: int | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        pairs = sum(pair.a.nbytes + pair.b.nbytes for pair in self.pairs.values())
        return pairs + sum(tensor.nbytes for tensor in self.head.values())

    @property
    def max_rank(self) -> int:
        """The largest rank of any pair; 0 without pairs."""
        return max((pair.rank for pair in self.pairs.values()), default=0)


def load_weights(folder: Path, spec: LoraSpec, base: BaseSource) -> AdapterWeights:
    """Read ``adapter_model.safetensors`` in ``folder`` and fit it to the base, or say all that is wrong with it.

    Raises:
        AdapterFormatError: no file, a pickle, a broken file, values that are not finite.
        AdapterUnsupportedError: DoRA, embeddings, biases, trained modules other than the head.
        AdapterMismatchError: keys or shapes that the base does not have, halves of pairs, missing tensors.
    """
    tensors = _read(folder)
    _check_keys(list(tensors))
    _check_base_copy(tensors, base)
    lora = {key: tensor for key, tensor in tensors.items() if key.endswith((_A, _B))}
    head = {_head_name(key): tensor for key, tensor in tensors.items() if key not in lora}
    num_labels = _check_head(head, spec, base)
    pairs = _pairs(lora, spec, base, classifies=bool(head))
    _check_finite(tensors)
    return AdapterWeights(pairs, head, num_labels)


def has_head(folder: Path) -> bool:
    """Whether the file holds tensors beside LoRA pairs; reads its header only."""
    with _opened(folder) as file:
        return any(not key.endswith((_A, _B)) for key in file.keys())  # noqa: SIM118 (not a mapping)


def _read(folder: Path) -> dict[str, Tensor]:
    _refuse_pickle(folder)
    with open_regular(folder / WEIGHTS_FILE) as stream:
        data = stream.read()  # not mapped: what was checked is what is served, whatever becomes of the file
    try:
        tensors = dict(sorted(load(data).items()))  # in an order that messages can rely on
    except (SafetensorError, KeyError) as error:
        raise _unreadable(data[:16], error) from error
    if not tensors:
        raise AdapterMismatchError(f"{WEIGHTS_FILE} holds no tensors at all", key=WEIGHTS_FILE)
    odd = [key for key, tensor in tensors.items() if tensor.dtype not in _DTYPES]
    if odd:
        message = f"{WEIGHTS_FILE} holds tensors that are not float32, float16, bfloat16 or float64: {named(odd)}"
        raise AdapterFormatError(message, key=odd[0])
    return tensors


def _opened(folder: Path) -> safe_open:
    _refuse_pickle(folder)
    with open_regular(folder / WEIGHTS_FILE) as stream:
        start = stream.read(16)
    try:
        return safe_open(folder / WEIGHTS_FILE, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _unreadable(start, error) from error


def _refuse_pickle(folder: Path) -> None:
    if (folder / PICKLE_FILE).exists() or (folder / PICKLE_FILE).is_symlink():
        message = f"{PICKLE_FILE} is a pickle and is never opened: remove it, and save with safe_serialization=True"
        raise AdapterFormatError(message, key=PICKLE_FILE)


def _unreadable(start: bytes, error: Exception) -> AdapterFormatError:
    what = "a pickle under another name" if _is_pickle(start) else f"no safetensors file ({error})"
    return AdapterFormatError(f"{WEIGHTS_FILE} is {what}: save it with safetensors", key=WEIGHTS_FILE)


def _is_pickle(start: bytes) -> bool:
    # torch.save writes a zip archive; older versions, and pickle itself, begin with the protocol's opcode.
    # A safetensors file begins with a length, which may have any bytes, and a brace.
    return start.startswith((b"PK", b"\x80")) and start[8:9] not in (b"", b"{")


def _check_keys(keys: list[str]) -> None:
    for mark, what in _FOREIGN.items():
        found = [key for key in keys if mark in key]
        if found:
            raise AdapterUnsupportedError(f"the adapter has {what}, which is not served: {named(found)}", key=found[0])
    unknown = [key for key in keys if not key.startswith(_ROOT) or (".lora_" in key and not key.endswith((_A, _B)))]
    if unknown:
        message = f"keys that PEFT does not write for LoRA: {named(unknown)}; save the adapter with save_pretrained()"
        raise AdapterMismatchError(message, key=unknown[0])


def _check_base_copy(tensors: dict[str, Tensor], base: BaseSource) -> None:
    """With LoRA on the output head PEFT writes the head's own weight too: dropped if it is the base's, else refused."""
    key = f"{_ROOT}{base.architecture().output}.base_layer.weight"
    copy = tensors.pop(key, None)
    if copy is None:
        return
    own = base.output_weight()
    if copy.shape != own.shape or not torch.equal(copy.to(own.dtype), own):
        raise _trained_module([key], "it differs from the base's output head")


def _head_name(key: str) -> str:
    """`base_model.model.score.modules_to_save.default.weight`, as older versions wrote it, is `score.weight`."""
    return key.removeprefix(_ROOT).replace(".modules_to_save.default.", ".")


def _pairs(lora: dict[str, Tensor], spec: LoraSpec, base: BaseSource, *, classifies: bool) -> dict[str, LoraPair]:
    architecture = base.architecture()
    linears = dict(architecture.linear)
    if classifies and architecture.output is not None:
        del linears[architecture.output]  # a classifier has no language-model head
    modules = {_ROOT + architecture.peft_name(module): module for module in linears}
    found = {key.removesuffix(_A).removesuffix(_B) for key in lora}
    if spec.head_only:
        _check_head_only(sorted(found), classifies=classifies)
        return {}
    if not found & modules.keys():
        _no_match(sorted(found), sorted(modules), base)
    if unknown := sorted(found - modules.keys()):
        message = f"the base {base.id!r} has no linear of these names: {named(unknown)}"
        raise AdapterMismatchError(message, key=unknown[0])
    _check_complete(lora, found, spec, modules)
    _check_shapes(lora, spec, modules, linears)
    return {
        modules[name]: LoraPair(lora[name + _A], lora[name + _B], spec.scaling_of(name.removeprefix(_ROOT)))
        for name in sorted(found)
    }


def _check_head_only(found: list[str], *, classifies: bool) -> None:
    if not found and not classifies:
        message = f"the adapter has neither LoRA tensors nor a head, as target_modules is {HEAD_ONLY!r}: name modules"
        raise AdapterMismatchError(message, key="target_modules")
    if found:
        message = (
            f"target_modules is {HEAD_ONLY!r}, so PEFT would leave these LoRA tensors out: {named(found)}; "
            "name their modules in target_modules, or remove them from the file"
        )
        raise AdapterMismatchError(message, key=found[0])


def _no_match(found: list[str], known: list[str], base: BaseSource) -> None:
    if not found:
        message = (
            "the adapter holds no LoRA tensors, though it is not said to be a head alone: save them too, or train the "
            f"head with target_modules {HEAD_ONLY!r} and modules_to_save"
        )
        raise AdapterMismatchError(message, key=WEIGHTS_FILE)
    message = (
        f"no key of the adapter matches a linear of the base {base.id!r}: it has {named(found, most=2)}, "
        f"the base has {named(known, most=2)}; take the base that it was trained on"
    )
    raise AdapterMismatchError(message, key=found[0])


def _check_complete(lora: dict[str, Tensor], found: set[str], spec: LoraSpec, modules: dict[str, str]) -> None:
    halves = [name + half for name in sorted(found) for half in (_A, _B) if name + half not in lora]
    if halves:
        raise AdapterMismatchError(f"halves of pairs are missing: {named(halves)}", key=halves[0])
    absent = [name for name in sorted(modules) if name not in found and spec.targets(name.removeprefix(_ROOT))]
    if absent:
        message = f"target_modules names linears that the file has no tensors for: {named(absent)}"
        raise AdapterMismatchError(message, key=absent[0] + _A)


def _check_shapes(
    lora: dict[str, Tensor], spec: LoraSpec, modules: dict[str, str], linears: dict[str, tuple[int, int]]
) -> None:
    wrong = {}
    for key, tensor in lora.items():
        name = key.removesuffix(_A).removesuffix(_B)
        (inputs, outputs), rank = linears[modules[name]], spec.rank_of(name.removeprefix(_ROOT))
        expected = (rank, inputs) if key.endswith(_A) else (outputs, rank)
        if tuple(tensor.shape) != expected:
            wrong[key] = f"{key} is {list(tensor.shape)}, not {list(expected)}"
    if wrong:
        message = f"shapes differ from the base's and the config's rank: {named(list(wrong.values()), most=3)}"
        raise AdapterMismatchError(message, key=next(iter(wrong)))


def _check_head(head: dict[str, Tensor], spec: LoraSpec, base: BaseSource) -> int | None:
    """The number of labels, read off the head's shapes; None for an adapter without a head."""
    if spec.task_type == "CAUSAL_LM" or (spec.task_type is None and not head):
        extra = sorted(head) or sorted(spec.modules_to_save)
        if extra:
            raise _trained_module(extra, "an adapter that generates has no head")
        if base.kind == "encoder":
            message = (
                f"the adapter has no classification head, and the base {base.id!r} is an encoder: it only classifies"
            )
            raise AdapterMismatchError(message, key="task_type")
        return None
    two, three = base.head_shapes(2), base.head_shapes(3)
    _check_saved(head, spec, set(two))
    if missing := sorted(set(two) - set(head)):
        message = f"tensors of the classification head are missing: {named(missing)}"
        raise AdapterMismatchError(message, key=missing[0])
    counts = {head[name].shape[0] for name in two if two[name] != three[name] and head[name].dim() > 0}
    num_labels = int(max(counts, default=0))
    expected = base.head_shapes(num_labels) if num_labels > 0 else two
    wrong = {name: tensor for name, tensor in head.items() if tuple(tensor.shape) != expected[name]}
    if wrong:
        shapes = [f"{name} is {list(tensor.shape)}, not {list(expected[name])}" for name, tensor in wrong.items()]
        message = f"shapes of the head differ from the base's: {named(shapes, most=3)}"
        raise AdapterMismatchError(message, key=next(iter(wrong)))
    return num_labels


def _check_saved(head: dict[str, Tensor], spec: LoraSpec, names: set[str]) -> None:
    if extra := sorted(set(head) - names):
        raise _trained_module(extra, f"the head of this base is {named(sorted(names))}")
    # PEFT matches an entry with the end of a module's name.
    modules = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    strangers = [
        saved
        for saved in spec.modules_to_save
        if saved not in _DEFAULT_HEADS and not any(module.endswith(saved) for module in modules)
    ]
    if strangers:
        raise _trained_module(strangers, f"the head of this base is {named(sorted(names))}")


def _trained_module(names: list[str], why: str) -> AdapterUnsupportedError:
    message = (
        f"modules_to_save: {named(names)} cannot be served ({why}); retrain with LoRA on the backbone, "
        "without trained embeddings, a resized vocabulary or other whole modules"
    )
    return AdapterUnsupportedError(message, key=names[0])


def _check_finite(tensors: dict[str, Tensor]) -> None:
    # A sum is finite only if all its terms are, and is quick; the exact look is for where it is not.
    suspects = [key for key, tensor in tensors.items() if not isfinite(tensor.sum(dtype=_wide(tensor)).item())]
    bad = [key for key in suspects if not bool(torch.isfinite(tensors[key]).all())]
    if bad:
        message = f"values that are not finite (NaN or infinity) in {named(bad)}: take a checkpoint from before"
        raise AdapterFormatError(message, key=bad[0])


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
