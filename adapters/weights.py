"""Reads an adapter's tensors, exactly: every key has its place in the base, every shape agrees, all is finite.

base_model.model.<prefix>.<module>.lora_A.weight   [r, in]     a pair of a linear of the backbone
base_model.model.<prefix>.<module>.lora_B.weight   [out, r]
base_model.model.<head tensor>                                 the classification head, whole
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from adapters.base import BaseSource
from adapters.config import HEAD_ONLY, LoraSpec
from adapters.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    AdapterUnsupportedError,
    named,
)
from adapters.tensors import Bytes, TensorFile, parse_tensors, read_bytes

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


def load_weights(folder: Path, spec: LoraSpec, base: BaseSource, data: Bytes | None = None) -> AdapterWeights:
    """Fit ``adapter_model.safetensors`` in ``folder`` to the base, or say all that is wrong with it.

    Args:
        folder: The adapter.
        spec: Its config.
        base: The base.
        data: The file's bytes, if they were read already. The pairs are parts of them: they must not change.

    Raises:
        AdapterFormatError: no file, a pickle, a broken file, values that are not finite.
        AdapterUnsupportedError: DoRA, embeddings, biases, trained modules other than the head.
        AdapterMismatchError: keys or shapes that the base does not have, halves of pairs, missing tensors.
    """
    _refuse_pickle(folder)
    file = _parse(read_bytes(folder / WEIGHTS_FILE) if data is None else data)
    tensors = file.tensors
    _check_keys(list(tensors))
    tensors = _without_base_copy(tensors, base)
    lora = {key: tensor for key, tensor in tensors.items() if key.endswith((_A, _B))}
    # A head is kept as it is, where pairs are laid out anew: it must not keep all the bytes.
    head = {_head_name(key): tensor.clone() for key, tensor in tensors.items() if key not in lora}
    num_labels = _check_head(head, spec, base)
    pairs = _pairs(lora, spec, base, classifies=bool(head))
    if not file.is_finite():
        _check_finite(tensors)
    return AdapterWeights(pairs, head, num_labels)


def _parse(data: Bytes) -> TensorFile:
    try:
        file = parse_tensors(data)
    except (SafetensorError, KeyError) as error:
        raise _unreadable(data[:16].tobytes(), error) from error
    if not file.tensors:
        raise AdapterMismatchError(f"{WEIGHTS_FILE} holds no tensors at all", key=WEIGHTS_FILE)
    odd = [key for key, tensor in file.tensors.items() if tensor.dtype not in _DTYPES]
    if odd:
        message = f"{WEIGHTS_FILE} holds tensors that are not float32, float16, bfloat16 or float64: {named(odd)}"
        raise AdapterFormatError(message, key=odd[0])
    return file


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


def _without_base_copy(tensors: dict[str, Tensor], base: BaseSource) -> dict[str, Tensor]:
    """With LoRA on the output head PEFT writes the head's own weight too: dropped if it is the base's, else refused."""
    key = f"{_ROOT}{base.architecture().output}.base_layer.weight"
    if key not in tensors:
        return tensors
    copy, own = tensors[key], base.output_weight()
    if copy.shape != own.shape or not torch.equal(copy.to(own.dtype), own):
        raise _trained_module([key], "it differs from the base's output head")
    # The copy is larger than all the rest, which must not keep it in memory.
    return {other: tensor.clone() for other, tensor in tensors.items() if other != key}


def _head_name(key: str) -> str:
    """`base_model.model.score.modules_to_save.default.weight`, as older versions wrote it, is `score.weight`."""
    return key.removeprefix(_ROOT).replace(".modules_to_save.default.", ".")


def _pairs(lora: dict[str, Tensor], spec: LoraSpec, base: BaseSource, *, classifies: bool) -> dict[str, LoraPair]:
    architecture = base.architecture()
    linears = dict(architecture.linear)
    if classifies and architecture.output is not None:
        del linears[architecture.output]  # a classifier has no language-model head
    modules = {_ROOT + architecture.peft_name(module): module for module in linears}
    found = sorted({key.removesuffix(_A).removesuffix(_B) for key in lora})
    if spec.head_only:
        _check_head_only(found, classifies=classifies)
        return {}
    if modules.keys().isdisjoint(found):
        _no_match(found, sorted(modules), base)
    if unknown := [name for name in found if name not in modules]:
        message = f"the base {base.id!r} has no linear of these names: {named(unknown)}"
        raise AdapterMismatchError(message, key=unknown[0])
    _check_complete(lora, found, spec, modules)
    peft = {name: name.removeprefix(_ROOT) for name in found}
    _check_shapes(lora, {name: (*linears[modules[name]], spec.rank_of(peft[name])) for name in found})
    return {modules[name]: LoraPair(lora[name + _A], lora[name + _B], spec.scaling_of(peft[name])) for name in found}


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


def _check_complete(lora: dict[str, Tensor], found: list[str], spec: LoraSpec, modules: dict[str, str]) -> None:
    halves = [name + half for name in found for half in (_A, _B) if name + half not in lora]
    if halves:
        raise AdapterMismatchError(f"halves of pairs are missing: {named(halves)}", key=halves[0])
    rest = sorted(modules.keys() - set(found))
    absent = [name for name in rest if spec.targets(name.removeprefix(_ROOT))]
    if absent:
        message = f"target_modules names linears that the file has no tensors for: {named(absent)}"
        raise AdapterMismatchError(message, key=absent[0] + _A)


def _check_shapes(lora: dict[str, Tensor], wanted: dict[str, tuple[int, int, int]]) -> None:
    """``wanted`` holds (in, out, rank) of each pair."""
    wrong = {}
    for name, (inputs, outputs, rank) in wanted.items():
        for key, expected in ((name + _A, (rank, inputs)), (name + _B, (outputs, rank))):
            if lora[key].shape != expected:
                wrong[key] = f"{key} is {list(lora[key].shape)}, not {list(expected)}"
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
    bad = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        message = f"values that are not finite (NaN or infinity) in {named(bad)}: take a checkpoint from before"
        raise AdapterFormatError(message, key=bad[0])
