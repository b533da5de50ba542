"""Attention by the kernels against torch's, for any spans; what nobody may see is NaN and stays where it is."""

from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from service.engine.attention import AttentionBatch, Layer, Span, TorchAttention
from service.engine.kv_cache import KVCache
from service.engine.native import attention as native
from service.engine.native.attention import NativeAttention

pytestmark = pytest.mark.usefixtures("compiled")
CPU = torch.device("cpu")
LENGTH = 90
HEAD_DIMS = (16, 32, 48, 64, 80, 128, 256)


@dataclass(frozen=True)
class Case:
    """Sequences as (tokens, context or None where nothing is cached), and the shape of the heads."""

    sequences: tuple[tuple[int, int | None], ...]
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    window: int | None = None
    causal: bool = True
    scaling: float | None = None
    size: float = 1.0
    layout: str = "tokens"
    threads: int = 1


DECODE = st.tuples(st.just(1), st.integers(0, LENGTH - 1))
CHUNK = st.integers(2, 24).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, LENGTH - count)))
TEXT = st.tuples(st.integers(1, 24), st.none())


@st.composite
def cases(draw: Any) -> Case:
    causal = draw(st.booleans())
    kinds = st.one_of(DECODE, CHUNK, TEXT) if causal else TEXT
    return Case(
        sequences=tuple(draw(st.lists(kinds, min_size=1, max_size=5))),
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([1, 1, 2, 3, 4])),
        head_dim=draw(st.sampled_from(HEAD_DIMS)),
        window=draw(st.sampled_from([None, None, 1, 2, 7, 40])) if causal else None,
        causal=causal,
        scaling=draw(st.sampled_from([None, 0.05, 1.0])),
        size=draw(st.sampled_from([0.1, 1.0, 4.0])),
        layout=draw(st.sampled_from(["tokens", "heads", "fused"])),
        threads=draw(st.sampled_from([1, 1, 1, 2])),
    )


def spans(case: Case) -> list[Span]:
    """The sequences one behind the other, in cache rows that are not in order."""
    made, start = [], 0
    for i, (count, context) in enumerate(case.sequences):
        row = None if context is None else 2 * (len(case.sequences) - 1 - i) + 1
        made.append(Span(start, start + count, row, context or 0))
        start += count
    return made


def layer(case: Case, dtype: torch.dtype) -> Layer:
    """Queries, keys and values in one of the ways in which models lay them out."""
    tokens, heads, dim = sum(count for count, _ in case.sequences), case.kv_heads * case.group, case.head_dim
    generator = torch.Generator().manual_seed(tokens)
    fused = torch.randn(tokens, heads + 2 * case.kv_heads, dim, generator=generator)
    fused[:, : heads + case.kv_heads] *= case.size
    fused = fused.to(dtype)
    q, k, v = (part.transpose(0, 1) for part in fused.split([heads, case.kv_heads, case.kv_heads], 1))
    if case.layout == "tokens":
        q, k, v = (part.transpose(0, 1).contiguous().transpose(0, 1) for part in (q, k, v))
    elif case.layout == "heads":
        q, k, v = (part.contiguous() for part in (q, k, v))
    return Layer(q, k, v, 0, case.scaling, case.window)


def cache(case: Case, dtype: torch.dtype, unseen: float) -> KVCache | None:
    """What the sequences have computed before; ``unseen`` wherever none of them may look."""
    if not case.causal:
        return None
    made = KVCache(
        layers=1, rows=2 * len(case.sequences) + 1, kv_heads=case.kv_heads, length=LENGTH, head_dim=case.head_dim,
        dtype=dtype, device=CPU,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    for tensor in (made.keys[0], made.values[0]):
        past = torch.randn(tensor.shape, generator=generator).to(dtype)
        tensor.fill_(unseen)
        for span in spans(case):
            if span.row is not None:
                first = max(0, span.context + 1 - case.window) if case.window else 0
                tensor[span.row, :, first : span.context] = past[span.row, :, first : span.context]
    return made


def computed(case: Case, dtype: torch.dtype, backend: Any, unseen: float = torch.nan) -> tuple[Tensor, KVCache | None]:
    kept = cache(case, dtype, unseen)
    batch = AttentionBatch(spans(case), causal=case.causal, cache=kept, backend=backend, device=CPU)
    return backend.attend(layer(case, dtype), batch), kept


def expected(case: Case, dtype: torch.dtype) -> Tensor:
    """Torch's result in float64, of the same rounded numbers."""
    kept, asked = cache(case, dtype, 0.0), layer(case, dtype)
    if kept is not None:
        kept.keys, kept.values = [kept.keys[0].double()], [kept.values[0].double()]
    batch = AttentionBatch(spans(case), causal=case.causal, cache=kept, backend=TorchAttention(), device=CPU)
    wide = Layer(asked.q.double(), asked.k.double(), asked.v.double(), 0, asked.scaling, asked.window)
    return TorchAttention().attend(wide, batch)


def tolerance(case: Case) -> float:
    """For the rounding of scores in float32, which grow with queries and keys."""
    scaling = case.head_dim**-0.5 if case.scaling is None else case.scaling
    return 1e-7 * (64 + case.size**2 * case.head_dim * scaling)


def rounded_shares(case: Case) -> Tensor:
    """``[t]``: how far a token's output may be off because shares are rounded to bfloat16, as models do it too.

    That is done where several queries of a span attend together.
    """
    kept = cache(case, torch.bfloat16, 0.0)
    values = [layer(case, torch.bfloat16).v, *(kept.values if kept is not None else ())]
    largest = 2**-9 * float(max(value.abs().max() for value in values))
    together = [count > 1 and count * case.group >= 8 for count, _ in case.sequences]
    counts = torch.tensor([count for count, _ in case.sequences])
    return (torch.tensor(together, dtype=torch.double) * largest).repeat_interleave(counts)


def assert_close(found: Tensor, want: Tensor, case: Case) -> None:
    allowed = tolerance(case) * (1 + want.abs())
    if found.dtype == torch.bfloat16:
        allowed += 2**-8 * want.abs() + rounded_shares(case)[:, None, None]
    beyond = ((found.double() - want).abs() - allowed).max()
    assert beyond <= 0, f"{beyond} more than allowed"  # a NaN is not


@given(case=cases())
@example(case=Case(((1, 0), (1, LENGTH - 1), (LENGTH, 0), (3, None))))
@example(case=Case(((1, 64), (65, 10), (66, None)), window=64))
@example(case=Case(((5, 30),), window=1, head_dim=256, kv_heads=1, group=1))
@example(case=Case(((300, None), (9, None)), causal=False, head_dim=64, kv_heads=1, group=1))
@example(case=Case(((300, None), (20, 17)), window=70, head_dim=128, kv_heads=1, group=3))
@example(case=Case(((40, 20),), head_dim=23))
def test_any_spans_come_out_as_torchs(dtype: torch.dtype, case: Case) -> None:
    found, _ = computed(case, dtype, NativeAttention(dtype, case.threads))
    assert found.shape == (spans(case)[-1].stop, case.kv_heads * case.group, case.head_dim)
    assert_close(found, expected(case, dtype), case)


@given(case=cases())
def test_only_what_is_new_is_written(dtype: torch.dtype, case: Case) -> None:
    _, kept = computed(case, dtype, NativeAttention(dtype, case.threads))
    want, asked = cache(case, dtype, torch.nan), layer(case, dtype)
    if kept is None or want is None:
        return
    for stored, before, new in ((kept.keys[0], want.keys[0], asked.k), (kept.values[0], want.values[0], asked.v)):
        for span in spans(case):
            if span.row is not None:
                new_tokens = slice(span.context, span.context + span.stop - span.start)
                before[span.row, :, new_tokens] = new[:, span.start : span.stop]
        torch.testing.assert_close(stored, before, atol=0, rtol=0, equal_nan=True)


@given(case=cases())
def test_large_spans_of_float32_go_to_torch_and_come_out_the_same(case: Case) -> None:
    """Torch multiplies what is masked by zero, so nothing may be NaN here: the cache is zeroed when it is made."""
    with patch.object(native, "LARGEST", 40):
        found, kept = computed(case, torch.float32, NativeAttention(torch.float32, case.threads), unseen=0.0)
    whole, want = computed(case, torch.float32, NativeAttention(torch.float32, case.threads), unseen=0.0)
    both_round = 2 * tolerance(case)
    torch.testing.assert_close(found, whole, atol=both_round, rtol=both_round)
    if kept is not None and want is not None:
        assert torch.equal(kept.keys[0], want.keys[0])
        assert torch.equal(kept.values[0], want.values[0])


def test_only_float32_leaves_large_spans_to_torch(dtype: torch.dtype) -> None:
    case = Case(((800, None),), causal=False)
    batch = AttentionBatch(spans(case), causal=False, cache=None, backend=TorchAttention(), device=CPU)
    assert len(NativeAttention(dtype, 1).spans_of(batch).large) == (dtype == torch.float32)


@given(case=cases())
def test_threads_change_nothing(dtype: torch.dtype, case: Case) -> None:
    one, _ = computed(case, dtype, NativeAttention(dtype, 1))
    two, _ = computed(case, dtype, NativeAttention(dtype, 2))
    assert torch.equal(one, two)


def test_scores_so_large_that_one_key_takes_all(dtype: torch.dtype) -> None:
    case = Case(((1, 70), (20, 5), (20, None)), size=60.0, scaling=1.0, head_dim=64)
    found, _ = computed(case, dtype, NativeAttention(dtype, 1))
    assert_close(found, expected(case, dtype), case)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_finite_shows(dtype: torch.dtype, poison: float, where: str) -> None:
    """An adapter that overflows has to be found out: it may not vanish in the softmax."""
    case = Case(((1, 70), (20, 5), (20, None)), kv_heads=1, group=1)
    asked, kept = layer(case, dtype), cache(case, dtype, 0.0)
    for span in spans(case):
        getattr(asked, where)[0, span.start, 3] = poison
    batch = AttentionBatch(spans(case), causal=True, cache=kept, backend=TorchAttention(), device=CPU)
    found = NativeAttention(dtype, 1).attend(asked, batch).isfinite()[:, 0].all(-1)
    want = softmax_by_hand(asked, batch).isfinite().all(-1)
    assert not want.all()
    assert torch.equal(found, want)


@pytest.mark.parametrize(("where", "poison"), [("k", torch.nan), ("v", torch.nan), ("v", torch.inf)])
def test_what_is_not_finite_stays_in_its_sequence(dtype: torch.dtype, where: str, poison: float) -> None:
    """And in float32 in the queries that see it."""
    case = Case(((20, 5), (1, 70), (20, None), (30, 2)), kv_heads=1, group=1)
    asked, kept = layer(case, dtype), cache(case, dtype, 0.0)
    hit = spans(case)[2]
    getattr(asked, where)[0, hit.start + 9, 3] = poison
    batch = AttentionBatch(spans(case), causal=True, cache=kept, backend=TorchAttention(), device=CPU)
    found = NativeAttention(dtype, 1).attend(asked, batch).isfinite()[:, 0].all(-1)
    assert found[: hit.start].all()
    assert found[hit.stop :].all()
    assert not found[hit.start + 9 : hit.stop].any()
    if dtype == torch.float32:
        assert found[hit.start : hit.start + 9].all()


def softmax_by_hand(asked: Layer, batch: AttentionBatch) -> Tensor:
    """One head without masks, tokens after tokens: nothing that is not seen takes part."""
    rows = []
    for span in batch.spans:
        past = slice(0, span.context if span.row is not None else 0)
        keys = torch.cat([batch.cache.keys[0][span.row or 0, 0, past], asked.k[0, span.start : span.stop]]).double()
        values = torch.cat([batch.cache.values[0][span.row or 0, 0, past], asked.v[0, span.start : span.stop]]).double()
        for i in range(span.stop - span.start):
            seen = slice(0, past.stop + i + 1)
            scores = keys[seen] @ asked.q[0, span.start + i].double() * asked.q.shape[-1] ** -0.5
            rows.append(scores.softmax(0) @ values[seen])
    return torch.stack(rows)


@pytest.mark.parametrize("wrong", ["heads", "width"])
def test_keys_that_the_cache_was_not_made_for_are_refused(dtype: torch.dtype, wrong: str) -> None:
    """They would be written over other rows, and beyond the last one."""
    case = Case(((4, 0),))
    other = Case(((4, 0),), kv_heads=4) if wrong == "heads" else Case(((4, 0),), head_dim=32)
    batch = AttentionBatch(
        spans(case), causal=True, cache=cache(case, dtype, 0.0), backend=TorchAttention(), device=CPU
    )
    with pytest.raises(ValueError, match="cache"):
        NativeAttention(dtype, 1).attend(layer(other, dtype), batch)


@pytest.mark.parametrize("wrong", ["q", "k", "v"])
def test_numbers_of_another_type_are_refused(dtype: torch.dtype, wrong: str) -> None:
    case = Case(((4, 0),))
    asked = layer(case, dtype)
    asked = replace(asked, **{wrong: getattr(asked, wrong).half()})
    batch = AttentionBatch(
        spans(case), causal=True, cache=cache(case, dtype, 0.0), backend=TorchAttention(), device=CPU
    )
    with pytest.raises(ValueError, match=f"a kernel for {dtype} got torch.float16"):
        NativeAttention(dtype, 1).attend(asked, batch)


def test_wider_heads_than_the_kernel_has_room_for_go_to_torch(dtype: torch.dtype) -> None:
    case = Case(((1, 30), (9, 5), (7, None)), head_dim=320)
    found, kept = computed(case, dtype, NativeAttention(dtype, 1), unseen=0.0)
    torch.testing.assert_close(found.double(), expected(case, dtype), atol=2e-2, rtol=0)
    assert kept is not None
    assert torch.equal(kept.keys[0][5, :, 30], layer(case, dtype).k[:, 0])


def test_a_window_means_the_same_to_texts_that_see_themselves_whole(dtype: torch.dtype) -> None:
    case = Case(((9, None), (3, None)), causal=False, window=4)
    found, _ = computed(case, dtype, NativeAttention(dtype, 1))
    assert_close(found, expected(case, dtype), case)


def test_an_empty_context_of_a_text_needs_no_cache(dtype: torch.dtype) -> None:
    case = Case(((5, None), (1, None)))
    batch = AttentionBatch(spans(case), causal=True, cache=None, backend=TorchAttention(), device=CPU)
    found = NativeAttention(dtype, 1).attend(layer(case, dtype), batch)
    assert_close(found, expected(case, dtype), case)


def test_the_spans_of_a_batch_are_laid_out_once() -> None:
    case = Case(((1, 3), (4, None)))
    attention = NativeAttention(torch.float32, 1)
    batches = [AttentionBatch(spans(case), causal=True, cache=None, backend=attention, device=CPU) for _ in range(2)]
    first = attention.spans_of(batches[0])
    assert attention.spans_of(batches[0]) is first
    assert attention.spans_of(batches[1]) is not first
    assert first.items.tolist() == [[0, 1, 3, 3], [1, 4, -1, 0]]
