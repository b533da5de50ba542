"""The grouped LoRA products against a loop over tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapters.weights import LoraPair
from service.engine.lora import NARROW, TILE, LoraBatch, LoraContext, LoraTable, MultiLoraLinear

CPU = torch.device("cpu")
IN, OUT, MAX_RANK, RANKS = 5, 7, 6, (0, 2, 6, 0, 3)  # rank of each slot; slot 0 and slot 3 have nothing


def table() -> LoraTable:
    generator = torch.Generator().manual_seed(0)
    made = LoraTable(slots=4, max_rank=MAX_RANK, in_features=IN, out_features=OUT, dtype=torch.float32, device=CPU)
    for slot, rank in enumerate(RANKS):
        if rank:
            a, b = torch.randn(rank, IN, generator=generator), torch.randn(OUT, rank, generator=generator)
            made.load(slot, LoraPair(a, b, scaling=0.5 * slot))
    return made


def by_loop(layer: MultiLoraLinear, x: torch.Tensor, slots: list[int]) -> torch.Tensor:
    assert layer.table is not None
    rows = [
        layer.base(row) + layer.table.b[slot] @ layer.table.a[slot] @ row for row, slot in zip(x, slots, strict=True)
    ]
    return torch.stack(rows)


@given(st.lists(st.integers(0, 20), min_size=5, max_size=5).filter(any))
def test_any_mix_of_segments_equals_the_loop(counts: list[int]) -> None:
    slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
    context = LoraContext()
    layer = MultiLoraLinear(nn.Linear(IN, OUT), context)
    layer.table = table()
    x = torch.randn(len(slots), IN, generator=torch.Generator().manual_seed(len(slots)))
    context.batch = LoraBatch(slots, CPU)
    with torch.no_grad():
        torch.testing.assert_close(layer(x[None])[0], by_loop(layer, x, slots))


def test_narrow_segments_share_products_and_wide_ones_do_not() -> None:
    batch = LoraBatch([0, 1, 2, 2] + [3] * (NARROW + 1), CPU)
    assert [segment.slot for segment in batch.wide] == [3]
    assert batch.narrow is not None
    assert batch.narrow.slots.tolist() == [1, 2]
    assert batch.narrow.index.tolist() == [[1, 1], [2, 3]]
    assert batch.narrow.rows.tolist() == [1, 2, 3]


@given(st.lists(st.integers(0, 40), min_size=5, max_size=5).filter(any), st.integers(1, 4))
def test_the_pieces_for_the_kernels_hold_every_token_once(counts: list[int], threads: int) -> None:
    slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
    rows = LoraBatch(slots, CPU).rows(threads)
    assert rows.items.shape == (rows.count, 3)
    assert rows.address == rows.items.ctypes.data
    assert [(slot, token) for slot, start, stop in rows.items.tolist() for token in range(start, stop)] == [
        (slot, token) for token, slot in enumerate(slots) if slot
    ]
    adapted = len(slots) - counts[0]
    assert all(0 < stop - start <= TILE for _, start, stop in rows.items.tolist())
    assert rows.count >= min(threads, adapted), "a thread has nothing to do"


def test_tokens_out_of_order_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="ordered by slot"):
        LoraBatch([1, 2, 1], CPU)


def test_a_reloaded_slot_holds_nothing_of_the_last_adapter() -> None:
    made = table()
    made.load(2, LoraPair(torch.ones(1, IN), torch.ones(OUT, 1), scaling=2.0))
    assert made.a[2, 1:].count_nonzero() == 0
    assert made.b[2, :, 1:].count_nonzero() == 0
    torch.testing.assert_close(made.b[2, :, :1], torch.full((OUT, 1), 2.0))
    made.load(2, None)
    assert made.a[2].count_nonzero() == made.b[2].count_nonzero() == 0


def test_the_base_is_untouched() -> None:
    linear, context = nn.Linear(IN, OUT), LoraContext()
    before = linear.weight.clone()
    layer = MultiLoraLinear(linear, context)
    layer.table = table()
    x = torch.randn(3, IN)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), linear(x))
        context.batch = LoraBatch([1, 1, 2], CPU)
        layer(x)
    assert torch.equal(linear.weight, before)
    assert layer.weight is linear.weight
