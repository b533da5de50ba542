"""Reads a safetensors file as what it is: one stretch of memory, of which every tensor is a part.

safetensors itself copies every tensor out of the bytes. Here they are read once and never copied again. A header that
is not quite plain is left to safetensors, and so is every refusal.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load
from torch import Tensor

from adapters.files import open_regular

Bytes = NDArray[np.uint8]
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
_PREFIX = 8  # bytes that say how long the header is
_MAX_HEADER = 100_000_000  # bytes, as in safetensors


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: list[Annotated[int, Field(gt=0)]]
    data_offsets: tuple[int, int]


class _Header(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, _Entry]

    metadata: dict[str, str] | None = Field(None, alias="__metadata__")


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file holds: tensors in the order of their names, and flat stretches that hold the values of them all."""

    tensors: dict[str, Tensor]
    stretches: list[Tensor]

    def is_finite(self) -> bool:
        """Whether no value at all is NaN or infinite."""
        return all(_is_finite(stretch) for stretch in self.stretches)


def read_bytes(path: Path) -> Bytes:
    """Read a regular file whole; not mapped: what was checked is what is served, whatever becomes of the file."""
    with open_regular(path) as stream:
        data = np.empty(os.fstat(stream.fileno()).st_size, dtype=np.uint8)  # NumPy's memory is on large pages
        return data[: stream.readinto(data.data)]


def parse_tensors(data: Bytes) -> TensorFile:
    """The tensors in a file's bytes; where the header is plain, they are views of the bytes.

    Raises:
        SafetensorError: this is no safetensors file.
        KeyError: a tensor has a type that torch does not have.
    """
    start = _PREFIX + int.from_bytes(data[:_PREFIX].tobytes(), "little")
    entries = _entries(data[_PREFIX:start].tobytes()) if start <= _MAX_HEADER else None
    if entries is None or not _is_plain(entries, start, len(data)):
        tensors = load(data.tobytes())
        return TensorFile(dict(sorted(tensors.items())), [tensor.flatten() for tensor in tensors.values()])
    tensors, stretches = {}, []
    for dtype, group in groupby(entries, key=lambda item: item[1].dtype):
        members = list(group)
        first, last = members[0][1].data_offsets[0], members[-1][1].data_offsets[1]
        stretch = torch.from_numpy(data[start + first : start + last]).view(_TYPES[dtype])
        parts = torch.split(stretch, [prod(entry.shape) for _, entry in members])
        tensors |= {name: part.view(entry.shape) for (name, entry), part in zip(members, parts, strict=True)}
        stretches.append(stretch)
    return TensorFile(dict(sorted(tensors.items())), stretches)


def _entries(header: bytes) -> list[tuple[str, _Entry]] | None:
    """The tensors of a header in the order in which they lie; None for what safetensors has to look at itself."""
    if not header.startswith(b"{") or b"\\" in header:  # JSON's escapes are read in more than one way
        return None
    try:
        entries = _Header.model_validate_json(header).__pydantic_extra__
    except ValidationError:
        return None
    return sorted(entries.items(), key=lambda item: item[1].data_offsets)


def _is_plain(entries: Sequence[tuple[str, _Entry]], start: int, size: int) -> bool:
    """Whether the tensors lie one behind the other from ``start`` to the end of the file, and each on its boundary."""
    end = start
    for _, entry in entries:
        width = _TYPES[entry.dtype].itemsize
        first, last = (start + offset for offset in entry.data_offsets)
        if first != end or first % width or last - first != prod(entry.shape) * width:
            return False
        end = last
    return end == size and sys.byteorder == "little"


def _is_finite(values: Tensor) -> bool:
    """Exact, from the largest bits among the positive and among the negative values: infinity's, or a NaN's above."""
    bits = values.view(_BITS[values.itemsize]).numpy()
    infinity = torch.tensor([torch.inf, -torch.inf], dtype=values.dtype).view(_BITS[values.itemsize]).numpy()
    unsigned = f"u{bits.itemsize}"
    return bool(bits.max(initial=0) < infinity[0] and bits.view(unsigned).max(initial=0) < infinity.view(unsigned)[1])
