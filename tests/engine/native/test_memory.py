"""Adapters come and go by the thousand, and their memory with them; a base lies close together and on large pages."""

import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.weights import LoraPair
from service.engine.lora import LoraBank, LoraContext
from service.engine.native import memory
from service.engine.native.linear import PackedLinear, PackedLoraLinear, pack_pairs
from service.engine.native.memory import Arena, Spare, streamed
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation

pytestmark = pytest.mark.usefixtures("compiled")
STATM = Path("/proc/self/statm")
PAGE = 4096


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * PAGE


@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
def test_a_thousand_adapters_in_four_slots() -> None:
    """Each takes 0.5 MB; no more than a few may stay."""
    context = LoraContext()
    linears = {
        f"layers.{i}": PackedLoraLinear(PackedLinear(torch.zeros(256, 256), None), context, slots=4, threads=1)
        for i in range(4)
    }
    bank = LoraBank(linears, slots=4, pack=lambda pairs: pack_pairs(pairs, torch.float32))
    pairs = {name: LoraPair(torch.ones(64, 256), torch.ones(256, 64), 0.5) for name in linears}
    for i in range(20):
        bank.load(1 + i % 4, pairs)
    before = resident_bytes()
    for i in range(1000):
        bank.load(1 + i % 4, pairs)
    assert resident_bytes() - before < 20e6
    assert bank.loads == 1020


def test_adapters_are_packed_by_other_threads_while_steps_are_computed(llama: Zoo) -> None:
    """Twenty times each, under digests of their own, in fewer slots than there are adapters."""
    engine = llama.engine(kernels="native", adapter_slots=2, max_running=8, prefix_reuse=False)
    ids = llama.ids("the quick")
    want = {name: drain(engine, generation("r", ids, llama.adapters[name]))["r"].tokens for name in llama.generators}
    adapters = {
        f"{name}/{i}": replace(llama.adapters[name], digest=f"{i:02d}{llama.adapters[name].digest[2:]}")
        for name in llama.generators
        for i in range(20)
    }
    found: dict[str, list[int]] = defaultdict(list)
    with ThreadPoolExecutor(4) as pool:
        packed = {name: pool.submit(engine.pack, adapter) for name, adapter in adapters.items()}
        while packed or engine.has_work():
            if packed:
                name = next(iter(packed))
                engine.submit(generation(name, ids, packed.pop(name).result()))
            for event in engine.step():
                found[event.request_id] += getattr(event, "token_ids", ())
    assert found == {name: want[name.split("/")[0]] for name in adapters}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_is_streamed_begins_on_a_cache_line(dtype: torch.dtype) -> None:
    for count in (1, 63, 4097):
        made = streamed(count, dtype)
        assert (made.shape, made.dtype) == ((count,), dtype)
        assert made.data_ptr() % memory.LINE == 0


def test_an_arena_gives_nothing_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several to a piece, of every type, and one that is larger than a piece."""
    monkeypatch.setattr(memory, "CHUNK", 1 << 10)
    arena, asked = Arena(), [(5, torch.float32), (200, torch.bfloat16), (7, torch.int8), (999, torch.float32)] * 5
    taken = [arena.take(count, dtype).fill_(k) for k, (count, dtype) in enumerate(asked)]
    for k, ((count, dtype), made) in enumerate(zip(asked, taken, strict=True)):
        assert (made.shape, made.dtype) == ((count,), dtype)
        assert made.data_ptr() % memory.LINE == 0
        assert made.eq(k).all()


@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
def test_a_small_base_costs_what_it_writes() -> None:
    before = resident_bytes()
    made = Arena().take(1 << 20, torch.uint8).fill_(1)
    assert resident_bytes() - before < 8e6
    assert made.untyped_storage().nbytes() >= memory.CHUNK


def ready(spare: Spare) -> torch.Tensor:
    """The memory that the next adapter will get, once it is all written to."""
    deadline = time.monotonic() + 60
    while any(thread.name == "spare" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the spare is never ready"
        time.sleep(1e-3)
    made = spare._ready
    assert made is not None
    return made


def test_a_spare_is_made_for_the_next_adapter_of_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LULL_S", 0.0)
    spare, size = Spare(), 3 * memory.PIECE + 14
    first = spare.take(size // 2, torch.bfloat16).fill_(1)
    made = ready(spare)
    assert len(made) == size
    assert made.eq(0).all(), "not all of it was written to"
    second = spare.take(size // 2, torch.bfloat16)
    assert second.data_ptr() == made.data_ptr()
    assert (second.dtype, len(second)) == (torch.bfloat16, size // 2)
    made = ready(spare)
    other = spare.take(size, torch.float32)
    assert len(other) == size, "another size gets memory of its own"
    assert other.data_ptr() != made.data_ptr()
    assert first.eq(1).all()


def test_a_spare_that_was_taken_half_ready_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes it writes to it at once; a piece that is cleared afterwards would be a broken adapter."""
    monkeypatch.setattr(memory, "LULL_S", 0.0)
    monkeypatch.setattr(memory, "PIECE", 1 << 12)
    spare, size = Spare(), 1 << 20
    taken = [spare.take(size, torch.uint8).fill_(1)]
    for _ in range(30):
        while spare._ready is None:  # until the next is begun
            time.sleep(1e-5)
        taken.append(spare.take(size, torch.uint8).fill_(1))
    ready(spare)
    assert all(part.eq(1).all() for part in taken)
    assert len({part.data_ptr() for part in taken}) == len(taken)
