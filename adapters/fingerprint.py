"""The fingerprint of a base model: its architecture, and its tensors' names, types, shapes and a sample of their bytes.

It is read from the safetensors files, so it does not depend on how the weights are split into files nor on the
type that one loads them with. Weights are sampled rather than read whole: a large base is told apart from its
fine-tuned sisters in milliseconds.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from torch import Tensor

from adapters.errors import BaseModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER = 100 * 2**20
_WINDOWS, _WINDOW = 8, 64


@dataclass(frozen=True, slots=True)
class _Tensor:
    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def fingerprint(folder: Path) -> str:
    """Hash the safetensors weights in ``folder`` and the name of their architecture; 64 hex digits."""
    digest = hashlib.sha256(b"tenora base 1\n")
    digest.update(json.dumps(_model_type(folder)).encode() + b"\n")
    open_files: dict[Path, int] = {}
    try:
        for tensor in sorted(_tensors(folder), key=lambda tensor: tensor.name):
            digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode() + b"\n")
            if tensor.file not in open_files:
                open_files[tensor.file] = os.open(tensor.file, os.O_RDONLY)
            for offset, length in _windows(tensor.start, tensor.stop):
                digest.update(os.pread(open_files[tensor.file], length, offset))
    finally:
        for descriptor in open_files.values():
            os.close(descriptor)
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a base model: the single one, or those its index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BaseModelError(f"{index} is not a safetensors index: {error}", key=INDEX) from error
        missing = [shard for shard in shards if not _inside(folder, shard)]
        if missing:
            raise BaseModelError(f"{index} names files that are not there: {', '.join(missing)}", key=INDEX)
        return [folder / shard for shard in shards]
    if any(folder.glob("*.bin")):
        raise BaseModelError(
            f"{folder} holds pickled weights only (.bin), which are never opened: "
            "load them where you trust them and save them with save_pretrained(), which writes safetensors",
            key=SINGLE,
        )
    raise BaseModelError(f"{folder} holds no {SINGLE} and no {INDEX}", key=SINGLE)


def read_tensor(folder: Path, names: Iterable[str]) -> Tensor:
    """The first tensor of those names that the base's files hold."""
    files = {tensor.name: tensor.file for tensor in _tensors(folder)}
    for name in names:
        if name in files:
            with safe_open(files[name], framework="pt") as file:
                return cast(Tensor, file.get_tensor(name))
    raise BaseModelError(f"{folder} holds no tensor {' or '.join(names)}", key="weights")


def _model_type(folder: Path) -> str:
    """Two architectures can have the same tensors (Llama and Mistral have), yet compute different things."""
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{folder} holds no config.json with a model_type: {error}", key="config.json") from error


def _inside(folder: Path, name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and (folder / name).is_file()


def _tensors(folder: Path) -> list[_Tensor]:
    return [tensor for file in weight_files(folder) for tensor in _header(file)]


def _header(file: Path) -> list[_Tensor]:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= _MAX_HEADER:
                raise ValueError("its header has no sensible length")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        begin = 8 + length
        return [
            _Tensor(
                file, name, str(entry["dtype"]), tuple(entry["shape"]), *(begin + at for at in entry["data_offsets"])
            )
            for name, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{file} is not a safetensors file: {error}", key=file.name) from error


def _windows(start: int, stop: int) -> list[tuple[int, int]]:
    """(offset, length) pairs to read: all of a small tensor, evenly spaced windows of a large one."""
    size = stop - start
    if size <= _WINDOWS * _WINDOW:
        return [(start, size)]
    step = (size - _WINDOW) // (_WINDOWS - 1)
    return [(start + index * step, _WINDOW) for index in range(_WINDOWS)]
