"""Tensors are read as safetensors reads them, whatever the file, and are parts of the bytes that were read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adapters.files import content_digest
from adapters.tensors import Bytes, parse_tensors, read_bytes

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def as_bytes(data: bytes) -> Bytes:
    return np.frombuffer(bytearray(data), dtype=np.uint8)


def file_of(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == sorted(expected) and all(
        (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        and torch.equal(found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))
        for name, tensor in expected.items()
        if tensor.dim() > 0
    )


def within(tensor: Tensor, data: Bytes) -> bool:
    return 0 <= tensor.data_ptr() - data.ctypes.data < len(data)


def test_tensors_are_parts_of_the_bytes() -> None:
    tensors = {f"{name}{k}": torch.randn(3, 2 + k).to(kind) for k, kind in enumerate(FLOATS) for name in "ba"}
    data = as_bytes(save(tensors, {"format": "pt"}))
    file = parse_tensors(data)
    assert same(file.tensors, tensors)
    assert all(within(tensor, data) for tensor in file.tensors.values())
    assert len(file.stretches) == len(FLOATS)
    assert sum(stretch.nbytes for stretch in file.stretches) == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(0, 4), "b": torch.ones(3)},
        {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3)},
        {"\\": torch.ones(3), "ü": torch.ones(2)},
        {"a": torch.tensor(2.0)},
        {},
    ],
)
def test_unusual_files_are_read_all_the_same(tensors: dict[str, Tensor]) -> None:
    file = parse_tensors(as_bytes(save(tensors)))
    assert same(file.tensors, tensors)
    assert sum(stretch.numel() for stretch in file.stretches) == sum(tensor.numel() for tensor in tensors.values())


def test_tensors_off_their_boundaries_are_copied() -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    for pad in range(8):
        data = as_bytes(file_of(header + b" " * pad, torch.tensor([1.0, 2.0]).numpy().tobytes()))
        found = parse_tensors(data).tensors["a"]
        assert found.tolist() == [1.0, 2.0]
        assert within(found, data) == ((8 + len(header) + pad) % 4 == 0)


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "BF16", "I8", "X", 3]),
        "shape": st.lists(st.sampled_from([1, 2, 2, 3, 0, -1, 1.0, True, None, 2**62]), max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 12, 16, 24, -4, 2**64]), min_size=1, max_size=3),
    },
    optional={"more": st.just(1)},
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__", "metadata"]), ENTRIES, max_size=3),
    st.sampled_from([0, 4, 8, 12, 16, 24]),
    st.sampled_from(["{}", " {}", "{} ", "{}x", "[{}]"]),
)
def test_whatever_a_header_says_it_is_read_as_safetensors_reads_it(
    entries: dict[str, Any], size: int, around: str
) -> None:
    data = file_of(around.format(json.dumps(entries)).encode(), bytes(range(size)))
    agree(data)


@given(st.lists(st.tuples(st.integers(0, 160), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 3))
def test_a_damaged_file_is_read_as_safetensors_reads_it(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(save({"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, {"format": "pt"}))
    for place, value in changes:
        data[place % len(data)] = value
    agree(bytes(data[: len(data) - cut]))


def agree(data: bytes) -> None:
    try:
        expected = load(data)
    except (SafetensorError, KeyError, RuntimeError, AssertionError) as error:
        with pytest.raises(type(error)):
            parse_tensors(as_bytes(data))
    else:
        assert same(parse_tensors(as_bytes(data)).tensors, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_finite_is_exact(dtype: torch.dtype) -> None:
    """The largest and the smallest numbers there are, on both sides of zero; then one value more that is none."""
    info = torch.finfo(dtype)
    numbers = torch.tensor([0.0, -0.0, info.max, info.min, info.tiny, -info.tiny, info.smallest_normal], dtype=dtype)
    assert parse_tensors(as_bytes(save({"a": numbers, "b": torch.ones(3)}))).is_finite()
    for value in (torch.inf, -torch.inf, torch.nan, -torch.nan):
        for place in (0, -1):
            spoilt = numbers.clone()
            spoilt[place] = value
            assert not parse_tensors(as_bytes(save({"a": spoilt, "b": torch.ones(3)}))).is_finite()


def test_bytes_that_were_read_are_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    data, before = read_bytes(tmp_path / "b"), content_digest(tmp_path, ("a", "b"))
    (tmp_path / "b").write_bytes(b"changed")
    assert content_digest(tmp_path, ("a", "b"), {"b": data.data}) == before
    assert content_digest(tmp_path, ("a", "b")) != before
