"""Packed linear layers with their adapters against a loop over tokens."""

import weakref
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.native import library
from adapters.weights import LoraPair
from service.engine.kernels import choose_kernels
from service.engine.lora import LoraBatch, LoraContext
from service.engine.native.linear import NativeTable, PackedLinear, PackedLoraLinear, PackedPair, pack_pairs

pytestmark = pytest.mark.usefixtures("compiled")
CPU = torch.device("cpu")
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""What rounding a value loses of it at most."""


@dataclass(frozen=True)
class Case:
    """A layer, the ranks in its slots (from slot 1 on) and the tokens of each slot (from slot 0 on).

    ``apart``: as if its rows met in the cache, so that the kernel reads a copy of them.
    """

    out: int
    into: int
    ranks: tuple[int, ...]
    counts: tuple[int, ...]
    bias: bool = False
    conv: bool = False
    threads: int = 1
    apart: bool = False


@st.composite
def cases(draw: Any) -> Case:
    ranks = draw(st.lists(st.sampled_from([0, 0, *range(1, 41)]), min_size=1, max_size=5))
    counts = draw(st.lists(st.integers(0, 20), min_size=len(ranks) + 1, max_size=len(ranks) + 1).filter(any))
    sizes = st.one_of(st.integers(1, 40), st.sampled_from([47, 48, 49, 64, 70]))
    return Case(
        draw(sizes), draw(sizes), tuple(ranks), tuple(counts), draw(st.booleans()), draw(st.booleans()),
        draw(st.sampled_from([1, 1, 1, 2])), draw(st.booleans()),
    )  # fmt: skip


def pair(case: Case, slot: int) -> LoraPair | None:
    """What an adapter has for the layer."""
    rank, generator = case.ranks[slot - 1], torch.Generator().manual_seed(slot)
    if not rank:
        return None
    a, b = torch.randn(rank, case.into, generator=generator), torch.randn(case.out, rank, generator=generator)
    return LoraPair(a, b, scaling=0.25 * slot)


def module(case: Case, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    made = Conv1D(case.out, case.into) if case.conv else nn.Linear(case.into, case.out, bias=case.bias)
    nn.init.normal_(made.weight)
    if made.bias is not None:
        nn.init.normal_(made.bias)
    return made.to(dtype).requires_grad_(False)


def layer(case: Case, dtype: torch.dtype, context: LoraContext) -> PackedLoraLinear:
    """The module under the adapters of all slots, as an engine makes it."""
    torch_module = module(case, dtype)
    weight = torch_module.weight.T if case.conv else torch_module.weight
    with patch.object(library, "SAME_SETS", 4 if case.apart else library.SAME_SETS):
        linear = PackedLinear(weight, torch_module.bias)
    assert bool(linear.copied_bytes) == (case.apart or case.into % 1024 == 0)
    made = PackedLoraLinear(linear, context, slots=len(case.ranks), threads=case.threads)
    for slot in range(1, len(case.ranks) + 1):
        made.load(slot, packed(pair(case, slot), dtype))
    return made


def packed(pair: LoraPair | None, dtype: torch.dtype) -> LoraPair | None:
    return None if pair is None else pack_pairs({"m": pair}, dtype)["m"]


def tokens(case: Case, dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    slots = [slot for slot, count in enumerate(case.counts) for _ in range(count)]
    return torch.randn(len(slots), case.into, generator=torch.Generator().manual_seed(1)).to(dtype), slots


def by_loop(case: Case, dtype: torch.dtype, x: Tensor, slots: list[int]) -> tuple[Tensor, Tensor]:
    """Each token by itself in float64: the result, and how far rounding may have moved it."""
    base, unit = module(case, dtype).double(), UNIT[dtype]
    weight = base.weight.T if case.conv else base.weight
    rows, errors = [], []
    for row, slot in zip(x.double(), slots, strict=True):
        y = base(row)
        # Sums are kept in float32 however the values are rounded.
        error = unit * y.abs() + UNIT[torch.float32] * case.into * (weight.abs() @ row.abs())
        if slot and (adapter := pair(case, slot)) is not None:
            a, b = adapter.a.to(dtype).double(), (adapter.b * adapter.scaling).to(dtype).double()
            hidden = a @ row
            blurred = unit * hidden.abs() + UNIT[torch.float32] * case.into * (a.abs() @ row.abs())
            y = y + b @ hidden
            error = error + b.abs() @ blurred + UNIT[torch.float32] * len(a) * (b.abs() @ hidden.abs())
            error = error + unit * y.abs()
        rows.append(y)
        errors.append(error)
    return torch.stack(rows), torch.stack(errors)


@given(case=cases())
@example(case=Case(16, 16, (16,), (0, 16)))
@example(case=Case(17, 15, (1, 0, 33), (1, 1, 1, 1), bias=True))
@example(case=Case(1, 1, (1,), (1, 1)))
@example(case=Case(5, 3, (40, 3), (0, 35, 35), threads=2))
@example(case=Case(33, 2048, (3,), (4, 33), threads=2))
def test_any_mix_of_segments_equals_the_loop(dtype: torch.dtype, case: Case) -> None:
    context = LoraContext()
    made, (x, slots) = layer(case, dtype, context), tokens(case, dtype)
    want, error = by_loop(case, dtype, x, slots)
    context.batch = LoraBatch(slots, CPU)
    found = made(x[None])[0]
    assert found.dtype == dtype
    assert (found.double() - want).abs().le(1.01 * error + 1e-30).all(), (found.double() - want).abs().max()
    if dtype == torch.float32:
        torch.testing.assert_close(found.double(), want, atol=1e-5 * float(want.abs().max()), rtol=0)


@settings(max_examples=15)
@given(case=cases())
def test_in_float32_a_token_comes_out_the_same_whoever_is_beside_it(case: Case) -> None:
    """To the bit: alone or in any batch, and however many threads share the work."""
    context = LoraContext()
    made, (x, slots) = layer(case, torch.float32, context), tokens(case, torch.float32)
    context.batch = LoraBatch(slots, CPU)
    together = made(x)
    made._threads = 3 - case.threads
    context.batch = LoraBatch(slots, CPU)
    assert torch.equal(made(x), together)
    for i, slot in enumerate(slots):
        context.batch = LoraBatch([slot], CPU)
        assert torch.equal(made(x[i : i + 1])[0], together[i])


def test_two_threads_compute_what_one_does(dtype: torch.dtype) -> None:
    case, context = Case(130, 70, (3, 0, 17, 8), (9, 1, 40, 30, 2), bias=True), LoraContext()
    made, (x, slots) = layer(case, dtype, context), tokens(case, dtype)
    found = []
    for threads in (1, 2):
        made._threads = threads
        context.batch = LoraBatch(slots, CPU)
        found.append(made(x))
    atol = 0.0 if dtype == torch.float32 else 2 * UNIT[dtype] * float(found[0].abs().max())
    torch.testing.assert_close(found[0], found[1], atol=atol, rtol=0)


def test_outside_a_batch_the_base_answers(dtype: torch.dtype) -> None:
    case = Case(9, 21, (4,), (3,), bias=True)
    made, (x, _) = layer(case, dtype, LoraContext()), tokens(case, dtype)
    torch.testing.assert_close(made(x), module(case, dtype)(x))


def test_a_long_row_and_many_tokens(dtype: torch.dtype) -> None:
    """More rows than fit the cache at once, more than a panel's worth of everything."""
    case, context = Case(33, 9000, (5,), (0, 70)), LoraContext()
    made, (x, slots) = layer(case, dtype, context), tokens(case, dtype)
    want, _ = by_loop(case, dtype, x, slots)
    context.batch = LoraBatch(slots, CPU)
    # The sums are over 9,000 values: their error grows slowly, that of a lost or doubled one is large.
    assert (made(x).double() - want).abs().max() < (2e-2 if dtype == torch.bfloat16 else 1e-4) * want.abs().max()


def test_an_adapter_of_the_largest_rank() -> None:
    case, context = Case(20, 6, (1024,), (1, 20)), LoraContext()
    made, (x, slots) = layer(case, torch.float32, context), tokens(case, torch.float32)
    want, error = by_loop(case, torch.float32, x, slots)
    context.batch = LoraBatch(slots, CPU)
    assert (made(x).double() - want).abs().le(error).all()


def test_the_packed_weight_is_what_the_file_has(dtype: torch.dtype) -> None:
    for conv in (False, True):
        case = Case(19, 7, (), (1,), conv=conv)
        weight = module(case, dtype).weight.T if conv else module(case, dtype).weight
        base = PackedLinear(weight, None)
        assert torch.equal(base.dense(), weight)
        assert (base.weight.shape, base.weight.dtype) == (weight.shape, dtype)


def test_a_reloaded_slot_holds_nothing_of_the_last_adapter(dtype: torch.dtype) -> None:
    """A smaller adapter takes the slot of a larger one, then nothing does."""
    case, context = Case(21, 9, (12, 3), (2, 3, 4)), LoraContext()
    made, (x, slots) = layer(case, dtype, context), tokens(case, dtype)
    smaller = Case(21, 9, (2, 3), (2, 3, 4))
    for now, loaded in ((smaller, pair(smaller, 1)), (Case(21, 9, (0, 3), (2, 3, 4)), None)):
        made.load(1, packed(loaded, dtype))
        context.batch = LoraBatch(slots, CPU)
        want, error = by_loop(now, dtype, x, slots)
        assert (made(x).double() - want).abs().le(1.01 * error + 1e-30).all()


def test_nobody_looks_for_adapters_where_there_are_none(dtype: torch.dtype) -> None:
    made = layer(Case(4, 4, (0, 0), (1,)), dtype, LoraContext())
    assert made.struct.slots is None
    made.load(2, packed(LoraPair(torch.ones(1, 4), torch.ones(4, 1), 1.0), dtype))
    assert made.struct.slots is not None
    made.load(2, None)
    assert made.struct.slots is None


def test_numbers_of_another_type_are_refused(dtype: torch.dtype) -> None:
    made = layer(Case(4, 4, (0,), (1,)), dtype, LoraContext())
    for other in {torch.float32, torch.bfloat16, torch.float16} - {dtype}:
        with pytest.raises(ValueError, match=f"a kernel for {dtype} got {other}.*--kernels torch"):
            made(torch.ones(1, 4, dtype=other))


def test_a_batch_of_other_tokens_is_a_bug() -> None:
    context = LoraContext()
    made = layer(Case(4, 4, (1,), (1,)), torch.float32, context)
    context.batch = LoraBatch([0, 1], CPU)
    with pytest.raises(AssertionError, match="3 rows for a batch of 2 tokens"):
        made(torch.zeros(3, 4))


def test_unpacked_pairs_are_a_bug() -> None:
    made = layer(Case(4, 4, (1,), (1,)), torch.float32, LoraContext())
    with pytest.raises(AssertionError, match="packed"):
        made.load(1, LoraPair(torch.ones(1, 4), torch.ones(4, 1), 1.0))


@given(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), st.integers(1, 40))
def test_packing_rounds_once_and_folds_the_scaling_in(kind: torch.dtype, rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    a, b = (torch.randn(*shape, generator=generator).to(kind) for shape in ((rank, 6), (7, rank)))
    for dtype in (torch.float32, torch.bfloat16):
        made = pack_pairs({"m": LoraPair(a, b, 0.3), "n": LoraPair(a, b, 1.0)}, dtype)
        assert all(isinstance(packed, PackedPair) for packed in made.values())
        assert [packed.rank for packed in made.values()] == [rank, rank]
        scaled = pack_pairs({"m": LoraPair(a.to(dtype), (b.float() * 0.3).to(dtype), 1.0)}, dtype)["m"]
        assert torch.equal(made["m"].a, scaled.a)
        assert torch.equal(made["m"].b, scaled.b)


def test_packing_twice_does_nothing() -> None:
    kernels = choose_kernels("native", torch.float32, CPU, slots=1, max_rank=8)
    once = kernels.pack({"m": LoraPair(torch.ones(2, 4), torch.ones(4, 2), 0.5)})
    assert kernels.pack(once) is once
    assert kernels.pack({}) == {}


def test_a_packed_adapter_lives_as_long_as_a_cache_or_a_slot_holds_it(dtype: torch.dtype) -> None:
    made = layer(Case(4, 4, (0, 0), (1,)), dtype, LoraContext())
    cache = pack_pairs({"m": LoraPair(torch.ones(1, 4), torch.ones(4, 1), 1.0)}, dtype)
    seen = [weakref.ref(cache["m"].a), weakref.ref(cache["m"].b)]
    made.load(1, cache["m"])
    cache.clear()
    assert all(ref() is not None for ref in seen), "the slot reads from freed memory"
    made.load(1, None)
    assert all(ref() is None for ref in seen), "a packed adapter outlives its slot"


def test_a_table_keeps_nothing_alive_that_was_replaced() -> None:
    from adapters.native import library

    table = NativeTable(1, library.Module())
    seen = []
    for _ in range(5):
        pairs = pack_pairs({"m": LoraPair(torch.ones(1, 4), torch.ones(4, 1), 1.0)}, torch.float32)
        seen.append(weakref.ref(pairs["m"].a))
        table.load(1, pairs["m"])
    del pairs
    assert [ref() is not None for ref in seen] == [False] * 4 + [True]
