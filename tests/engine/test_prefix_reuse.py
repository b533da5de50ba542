"""What a finished sequence left in the KV cache serves those that begin alike, and nobody else."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.adapter import Adapter
from service.engine.engine import Engine
from service.engine.kv_cache import WORTH_COPYING, Content, KVCache, common
from service.engine.sequence import Sequence
from tests.engine.conftest import Zoo
from tests.engine.driving import Outcome, assert_idle, drain, generation

LONG = list(range(5, 45))


def asked(name: str, ids: list[int], adapter: Adapter | None = None, scope: str = "") -> Sequence:
    sequence = generation(name, ids, adapter)
    sequence.scope = scope
    return sequence


def reused(outcomes: dict[str, Outcome], name: str) -> int:
    finished = outcomes[name].finished
    assert finished is not None
    return finished.cached_tokens


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.integers(0, 12))
def test_the_common_beginning_is_found(left: list[int], right: list[int], most: int) -> None:
    length = common(left, right, most)
    assert length <= most
    assert left[:length] == right[:length]
    if length < min(len(left), len(right), most):
        assert left[length] != right[length]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_repeated_prompt_is_computed_once_and_answered_the_same(llama: Zoo, kernels: str) -> None:
    engine, fresh = llama.engine(kernels=kernels), llama.engine(kernels=kernels, prefix_reuse=False)
    adapter = llama.adapters["small"]
    first = drain(engine, asked("a", LONG, adapter))
    again = drain(engine, asked("b", LONG, adapter))
    longer = drain(engine, asked("c", [*LONG, *first["a"].tokens, 7], adapter))
    assert reused(first, "a") == 0
    assert reused(again, "b") == len(LONG) - 1  # the last one has to say what comes next
    assert reused(longer, "c") == len(LONG) + 7  # of 8 new tokens the last was never computed
    assert engine.stats().cached_tokens == 2 * len(LONG) + 6
    assert again["b"].tokens == first["a"].tokens
    assert longer["c"].tokens == drain(fresh, asked("c", [*LONG, *first["a"].tokens, 7], adapter))["c"].tokens
    assert fresh.stats().cached_tokens == 0


def test_no_other_adapter_and_no_other_scope_gets_it(llama: Zoo) -> None:
    engine = llama.engine()
    small, wide = llama.adapters["small"], llama.adapters["wide"]
    drain(engine, asked("a", LONG, small, "acme"))
    others = [asked("b", LONG, wide, "acme"), asked("c", LONG, small, "zeta"), asked("d", LONG, None, "acme")]
    outcomes = drain(engine, *others)
    assert [reused(outcomes, name) for name in "bcd"] == [0, 0, 0]
    assert reused(drain(engine, asked("e", LONG, small, "acme")), "e") == len(LONG) - 1


def test_a_running_sequence_lends_its_beginning(llama: Zoo) -> None:
    engine = llama.engine()
    one, two = asked("a", [*LONG, 50], None), asked("b", [*LONG, 60], None)
    engine.submit(one)
    events = engine.step()
    outcomes = drain(engine, two)
    assert reused(outcomes, "b") == len(LONG)
    alone = drain(llama.engine(), asked("a", [*LONG, 50]), asked("b", [*LONG, 60]))
    tokens = [token for event in events for token in getattr(event, "token_ids", ())]
    assert [*tokens, *outcomes["a"].tokens] == alone["a"].tokens
    assert outcomes["b"].tokens == alone["b"].tokens


def test_one_step_admits_two_alike_before_either_is_computed(llama: Zoo) -> None:
    outcomes = drain(llama.engine(), asked("a", LONG), asked("b", LONG))
    assert [reused(outcomes, name) for name in "ab"] == [0, 0]
    assert outcomes["a"].tokens == outcomes["b"].tokens


def test_what_was_cut_off_is_not_kept(llama: Zoo) -> None:
    engine = llama.engine()
    engine.submit(asked("a", LONG))
    engine.step()
    engine.abort("a")
    assert reused(drain(engine, asked("b", LONG)), "b") == 0


def test_few_common_tokens_do_not_drive_out_a_kept_prompt() -> None:
    kv = KVCache(layers=1, rows=2, kv_heads=1, length=64, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))
    row = kv.allocate(Content("", LONG), 99)
    assert row is not None
    kv.release(row.row, Content("", LONG))
    alike = kv.allocate(Content("", [*LONG[: WORTH_COPYING - 1], 99]), 99)
    assert alike is not None
    assert (alike.row, alike.reused) == (1, 0)
    again = kv.allocate(Content("", LONG), len(LONG))
    assert again is not None
    assert (again.row, again.reused) == (0, len(LONG))
    kv.check_integrity()


def test_random_schedules_with_shared_beginnings(llama: Zoo) -> None:
    """Few rows, prompts that share beginnings, aborts: every answer is the one of an engine that keeps nothing."""
    heads = [LONG, LONG[:20], [9, *LONG]]
    names = [None, "small", "patterns"]
    prompts = [(name, [*head, *tail]) for name in names for head in heads for tail in ([], [50], [50, 51], LONG[::-1])]
    fresh = llama.engine(prefix_reuse=False)
    want = [drain(fresh, asked("x", ids, llama.adapters.get(name or "")))["x"].tokens for name, ids in prompts]
    engine = llama.engine(max_running=3, adapter_slots=2, max_step_tokens=24)
    for seed in range(40):
        run_schedule(engine, llama, prompts, want, random.Random(seed))
    assert engine.stats().cached_tokens > 1000


def run_schedule(
    engine: Engine, zoo: Zoo, prompts: list[tuple[str | None, list[int]]], want: list[list[int]], rng: random.Random
) -> None:
    waiting = [(f"{place}:{i}", i) for place, i in enumerate(rng.choices(range(len(prompts)), k=8))]
    tokens: dict[str, list[int]] = {}
    aborted = set()
    while waiting or engine.has_work():
        if waiting and rng.random() < 0.4:
            name, i = waiting.pop()
            engine.submit(asked(name, prompts[i][1], zoo.adapters.get(prompts[i][0] or "")))
            tokens[name] = []
        if tokens and rng.random() < 0.03:
            victim = rng.choice(sorted(tokens))
            aborted.add(victim)
            engine.abort(victim)
        for event in engine.step():
            tokens[event.request_id] += getattr(event, "token_ids", ())
        engine.check_integrity()
    assert_idle(engine)
    for name, found in tokens.items():
        if name not in aborted:
            assert found == want[int(name.split(":")[1])]
