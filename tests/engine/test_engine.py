"""The engine's promises: shared steps, limits, failures, and a base that never changes."""

from dataclasses import replace

import pytest
import torch

from adapters.adapter import Adapter
from adapters.weights import LoraPair
from service.engine.engine import Engine
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence
from tests.engine.conftest import Zoo
from tests.engine.driving import assert_idle, drain, generation, text


def test_generation_and_classification_share_a_step(llama: Zoo) -> None:
    engine = llama.engine()
    for name in ("small", "wide"):
        engine.submit(generation(name, llama.ids("the fox"), llama.adapters[name]))
    engine.submit(text("seven", llama.ids("the fox"), llama.adapters["seven"]))
    engine.step()
    stats = engine.stats()
    assert (stats.steps, stats.max_adapters_in_step, stats.max_kinds_in_step) == (1, 3, 2)
    assert stats.batch_sizes == {3: 1}
    assert stats.adapters_per_step == {3: 1}
    drain(engine)


def test_base_weights_survive_a_thousand_swaps(llama: Zoo) -> None:
    engine = llama.engine(adapter_slots=1)
    before = engine.weights_hash()
    for i in range(1000):
        name = llama.generators[i % len(llama.generators)]
        drain(engine, generation("r", llama.ids("a"), llama.adapters[name], max_tokens=1))
    assert engine.stats().adapter_loads == 1000
    assert engine.weights_hash() == before


def test_the_weights_hash_sees_a_changed_weight(llama: Zoo) -> None:
    engine = llama.engine()
    before = engine.weights_hash()
    with torch.no_grad():
        next(iter(engine.base.weights.values()))()[0] += 1e-3
    assert engine.weights_hash() != before


def test_a_slot_is_cleared_for_its_next_adapter(llama: Zoo) -> None:
    """`attention` targets fewer modules at a lower rank than `wide`, whose slot it takes."""
    engine = llama.engine(adapter_slots=1)
    fresh = drain(llama.engine(adapter_slots=1), generation("r", llama.ids("fox"), llama.adapters["attention"]))
    drain(engine, generation("r", llama.ids("fox"), llama.adapters["wide"]))
    assert (
        drain(engine, generation("r", llama.ids("fox"), llama.adapters["attention"]))["r"].tokens == fresh["r"].tokens
    )


def test_residency_is_told(llama: Zoo) -> None:
    engine = llama.engine()
    tiers = []
    for adapter in (None, llama.adapters["small"], llama.adapters["small"]):
        finished = drain(engine, generation("r", llama.ids("fox"), adapter))["r"].finished
        assert finished is not None
        tiers.append(finished.tier)
    assert tiers == ["base", "host", "device"]


def test_an_adapter_of_too_high_a_rank_is_refused_with_the_numbers(llama: Zoo) -> None:
    failed = drain(llama.engine(max_lora_rank=8), generation("r", llama.ids("a"), llama.adapters["wide"]))["r"].failed
    assert failed is not None
    assert failed.code == "adapter_too_large"
    assert "rank 16" in failed.message
    assert "8" in failed.message


def overflowing(adapter: Adapter) -> Adapter:
    """The adapter with finite weights so large that the forward pass overflows."""
    pairs = {
        name: LoraPair(torch.full_like(pair.a, 1e30), torch.full_like(pair.b, 1e30), pair.scaling)
        for name, pair in adapter.weights.pairs.items()
    }
    return replace(adapter, digest="f" * 64, weights=replace(adapter.weights, pairs=pairs))


@pytest.mark.parametrize("name", ["small", "pair"])
def test_an_overflowing_adapter_fails_alone(llama: Zoo, name: str) -> None:
    engine = llama.engine(max_running=2)
    want = drain(engine, generation("good", llama.ids("the fox"), llama.adapters["wide"]))["good"]
    poisoned = overflowing(llama.adapters[name])
    bad = Sequence("bad", llama.ids("the fox"), adapter=poisoned, sampling=None if name == "pair" else SamplingParams())
    outcomes = drain(engine, bad, generation("good", llama.ids("the fox"), llama.adapters["wide"]))
    assert outcomes["bad"].failed is not None
    assert outcomes["bad"].failed.code == "non_finite_logits"
    assert outcomes["good"].tokens == want.tokens
    # The row and the slot that the poisoned one used hold nothing of it for those who come next.
    again = drain(engine, *(generation(f"r{i}", llama.ids("the fox"), llama.adapters["wide"]) for i in range(2)))
    assert [outcome.tokens for outcome in again.values()] == [want.tokens] * 2


def test_a_deadline_ends_waiting_and_running(llama: Zoo) -> None:
    now = [0.0]
    engine = Engine(llama.source, llama.engine().config, clock=lambda: now[0])
    for name in ("early", "late"):
        sequence = generation(name, llama.ids("the fox"), max_tokens=50)
        sequence.deadline = 1.0 if name == "early" else 100.0
        engine.submit(sequence)
    engine.step()
    now[0] = 2.0
    outcomes = drain(engine)
    assert outcomes["early"].failed is not None
    assert outcomes["early"].failed.code == "deadline_exceeded"
    assert outcomes["late"].finished is not None


def test_abort_frees_everything_at_once(llama: Zoo) -> None:
    engine = llama.engine(max_running=2)
    for i in range(4):
        engine.submit(generation(f"r{i}", llama.ids("the fox"), llama.adapters["small"], max_tokens=50))
    engine.step()
    assert engine.stats().running == 2
    assert [engine.abort(f"r{i}") for i in range(4)] == [1, 1, 1, 1]
    assert engine.abort("r0") == 0
    assert_idle(engine)


def test_further_choices_of_a_request_are_sequences_of_their_own(llama: Zoo) -> None:
    engine = llama.engine()
    ids = llama.ids("the fox")
    for index in range(3):
        params = SamplingParams(max_tokens=6, seed=7 + index, ignore_eos=True)
        engine.submit(Sequence("r", ids, index=index, sampling=params))
    texts: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while engine.has_work():
        for event in engine.step():
            texts[event.index] += getattr(event, "token_ids", ())
    assert len({tuple(tokens) for tokens in texts.values()}) == 3
    assert_idle(engine)


def test_eos_ends_an_answer_and_is_not_in_its_text(llama: Zoo) -> None:
    eos = llama.source.tokenizer().eos_token_id
    engine = llama.engine()
    for seed in range(200):
        params = SamplingParams(max_tokens=60, temperature=2.0, seed=seed)
        outcome = drain(engine, Sequence("r", llama.ids("fox"), sampling=params))["r"]
        assert outcome.finished is not None
        if outcome.finished.reason == "stop":
            assert outcome.tokens[-1] == eos
            assert eos not in outcome.tokens[:-1]
            assert "endoftext" not in outcome.text
            return
    pytest.fail("no answer ended by itself; the test needs another seed")


def test_the_kv_budget_bounds_context_and_rows(llama: Zoo) -> None:
    token = 2 * 2 * 2 * 8 * 4
    shortened = llama.engine(kv_cache_bytes=token * 8 * 100, max_running=32)
    assert (shortened.max_model_len, shortened.stats().kv_rows_total) == (100, 8)
    asked = llama.engine(kv_cache_bytes=token * 256 * 3, max_running=32, max_model_len=256)
    assert (asked.max_model_len, asked.stats().kv_rows_total) == (256, 3)
    with pytest.raises(ValueError, match="kv_cache_bytes"):
        llama.engine(kv_cache_bytes=token * 256 - 1, max_model_len=256)
    with pytest.raises(ValueError, match="beyond the base's context of 256"):
        llama.engine(max_model_len=257)


def test_a_row_cut_off_in_the_middle_poisons_nobody(llama: Zoo) -> None:
    """An overflowing adapter is aborted before its NaN was seen; its cache row goes to the next request."""
    engine = llama.engine(max_running=2, max_step_tokens=16)
    poisoned = overflowing(llama.adapters["small"])
    engine.submit(Sequence("bad", llama.ids("lazy dog " * 10), adapter=poisoned, sampling=SamplingParams()))
    engine.step()
    engine.abort("bad")
    ids = {"short": llama.ids("fox"), "long": llama.ids("lazy dog " * 8)}
    outcomes = drain(engine, *(generation(name, row) for name, row in ids.items()))
    for name, row in ids.items():
        assert outcomes[name].tokens == llama.oracle(None).generate(row, 8).tokens


def test_an_answer_may_fill_the_context_to_the_last_token(llama: Zoo) -> None:
    engine = llama.engine()
    ids = llama.ids("fox") * 300
    prompt = ids[: engine.max_model_len - 5]
    outcome = drain(engine, generation("r", prompt, max_tokens=5))["r"]
    assert len(outcome.tokens) == 5
    assert outcome.tokens == llama.oracle(None).generate(prompt, 5).tokens
