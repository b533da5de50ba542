"""Who computes what in a step: the budget, the order, and that nobody starves."""

from dataclasses import dataclass

import pytest
import torch

from service.engine.kv_cache import Allocation, Content, KVCache
from service.engine.sampling import SamplingParams
from service.engine.scheduler import Plan, Scheduler
from service.engine.sequence import Sequence
from service.engine.slots import SlotTable


@dataclass
class NamedAdapter:
    """All that the scheduler looks at."""

    digest: str


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cache(rows: int = 4) -> KVCache:
    device = torch.device("cpu")
    return KVCache(layers=1, rows=rows, kv_heads=1, length=8, head_dim=2, dtype=torch.float32, device=device)


def scheduler(*, slots: int = 2, rows: int = 4, budget: int = 10, clock: Clock | None = None) -> Scheduler:
    return Scheduler(slots=SlotTable(slots), cache=cache(rows), max_step_tokens=budget, clock=clock or Clock())


def sequence(name: str, tokens: int, *, adapter: str | None = None, classify: bool = False) -> Sequence:
    made = Sequence(
        name,
        [7] * tokens,
        adapter=NamedAdapter(adapter) if adapter else None,  # type: ignore[arg-type]
        sampling=None if classify else SamplingParams(),
    )
    made.arrived_at = 0.0
    return made


def run(scheduler: Scheduler) -> Plan:
    """Schedule a step and do what the engine does behind it: texts end, prompts advance, answers grow."""
    plan = scheduler.schedule()
    for item in plan.work:
        item.sequence.computed += item.tokens
        if item.sequence.classifies:
            scheduler.finish(item.sequence)
        elif not item.sequence.pending:
            item.sequence.tokens.append(7)
    scheduler.check_integrity()
    return plan


def work(plan: Plan) -> dict[str, int]:
    return {item.sequence.request_id: item.tokens for item in plan.work}


def test_decode_rows_go_before_prompts_in_chunks() -> None:
    s = scheduler(budget=10)
    s.add(sequence("first", 4))
    assert work(run(s)) == {"first": 4}
    s.add(sequence("long", 25))
    assert [work(run(s)) for _ in range(3)] == [{"first": 1, "long": 9}] * 2 + [{"first": 1, "long": 7}]
    assert work(run(s)) == {"first": 1, "long": 1}


def test_a_text_waits_for_room_and_is_never_cut() -> None:
    s = scheduler(budget=10)
    s.add(sequence("prompt", 6))
    s.add(sequence("text", 8, classify=True))
    assert work(run(s)) == {"prompt": 6}
    assert work(run(s)) == {"prompt": 1, "text": 8}


def test_running_answers_do_not_hold_up_a_text_as_long_as_the_budget() -> None:
    s = scheduler(budget=10)
    s.add(sequence("answer", 2))
    run(s)
    s.add(sequence("text", 10, classify=True))
    s.add(sequence("next", 2))
    assert work(run(s)) == {"answer": 1, "text": 10}
    assert work(run(s)) == {"answer": 1, "next": 2}


def test_a_text_larger_than_the_budget_goes_alone() -> None:
    s = scheduler(budget=10)
    s.add(sequence("huge", 30, classify=True))
    s.add(sequence("next", 3))
    assert work(run(s)) == {"huge": 30}
    assert work(run(s)) == {"next": 3}


def test_work_is_ordered_by_slot() -> None:
    s = scheduler(slots=3, budget=20)
    for name, adapter in (("a1", "a"), ("base1", None), ("b", "b"), ("a2", "a"), ("base2", None)):
        s.add(sequence(name, 2, adapter=adapter, classify=True))
    plan = run(s)
    slots = [item.sequence.slot for item in plan.work]
    assert slots == sorted(slots)
    assert list(work(plan)) == ["base1", "base2", "a1", "a2", "b"]
    assert [admission.load for admission in plan.admitted] == [True, False, True, False, False]


def test_resident_adapters_overtake_one_that_has_no_slot() -> None:
    s = scheduler(slots=1, budget=20)
    s.add(sequence("a1", 2, adapter="a"))
    run(s)
    s.add(sequence("b", 2, adapter="b"))
    s.add(sequence("a2", 2, adapter="a"))
    assert work(run(s)) == {"a1": 1, "a2": 2}
    assert [waiting.request_id for waiting in s.waiting] == ["b"]


def test_no_other_adapter_overtakes_for_ever() -> None:
    clock = Clock()
    s = scheduler(slots=1, budget=20, clock=clock)
    first = sequence("a1", 2, adapter="a")
    s.add(first)
    run(s)
    s.add(sequence("b", 2, adapter="b"))
    clock.now = 1.5
    s.add(sequence("a2", 2, adapter="a"))
    s.add(sequence("text", 2, classify=True))
    assert work(run(s)) == {"a1": 1, "text": 2}
    s.finish(first)
    assert work(run(s)) == {"b": 2}


def test_full_cache_rows_do_not_hold_up_texts() -> None:
    clock = Clock()
    s = scheduler(rows=1, budget=20, clock=clock)
    s.add(sequence("r1", 2))
    run(s)
    clock.now = 5.0
    s.add(sequence("r2", 2))
    s.add(sequence("text", 3, adapter="a", classify=True))
    assert work(run(s)) == {"r1": 1, "text": 3}
    assert [waiting.request_id for waiting in s.waiting] == ["r2"]


def test_removing_gives_everything_back() -> None:
    s = scheduler()
    for name in ("x", "y", "z"):
        s.add(sequence(name, 3, adapter="a"))
    run(s)
    s.add(sequence("x", 3, adapter="a"))
    assert len(s.remove(lambda sequence: sequence.request_id == "x")) == 2
    s.check_integrity()
    assert {running.request_id for running in s.running} == {"y", "z"}


def test_slots_are_taken_from_the_least_recently_used() -> None:
    slots = SlotTable(2)
    assert (slots.acquire("a"), slots.acquire("b")) == (1, 2)
    assert slots.acquire("c") is None
    slots.release("a")
    slots.release("b")
    assert slots.acquire("a") == 1
    slots.release("a")
    assert slots.acquire("c") == 2
    assert not slots.resident("b")
    assert (slots.evictions, slots.pins, slots.occupied) == (1, 1, 2)
    slots.check_integrity()


def test_a_slot_released_too_often_is_a_bug() -> None:
    slots = SlotTable(1)
    slots.acquire("a")
    slots.release("a")
    with pytest.raises(AssertionError, match="more often"):
        slots.release("a")


def test_cache_rows_are_taken_lowest_first_and_scrubbed_on_request() -> None:
    kv = cache(rows=3)
    taken = [kv.allocate(Content("", [i]), 0) for i in range(4)]
    assert taken == [Allocation(0, 0), Allocation(1, 0), Allocation(2, 0), None]
    one = torch.ones(1, dtype=torch.long)
    kv.write(0, one, one, torch.full((1, 1, 2), torch.nan), torch.full((1, 1, 2), torch.nan))
    kv.release(1, scrub=2)
    assert not kv.keys[0].isnan().any()
    assert kv.allocate(Content("", [9]), 0) == Allocation(1, 0)
    kv.check_integrity()
