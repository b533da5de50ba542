"""Paged attention against the contiguous cache, and what FlashAttention is asked against what its page says."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import service.engine.cuda.attention as subject
from service.engine.attention import AttentionBatch, Layer, Span, TorchAttention
from service.engine.cuda.attention import Form, PagedAttention, attend_paged, attend_texts, flash_paged, flash_texts
from service.engine.cuda.paged_cache import PagedKVCache
from service.engine.kv_cache import Content, KVCache
from tests.engine.cuda.rows import take

CPU = torch.device("cpu")
LAYERS, LENGTH, HEAD_DIM, BLOCK = 2, 24, 4, 4
HEADS = [(4, 4), (4, 2), (6, 1)]
WINDOWS = [None, 1, 5]


def paged_cache(kv_heads: int, rows: int = 4) -> PagedKVCache:
    return PagedKVCache(
        layers=LAYERS, rows=rows, blocks=1 + rows * LENGTH // BLOCK, length=LENGTH, kv_heads=kv_heads,
        head_dim=HEAD_DIM, dtype=torch.float32, device=CPU, block_tokens=BLOCK,
    )  # fmt: skip


@dataclass
class Running:
    """A sequence in both caches."""

    length: int
    paged_row: int
    row: int
    context: int = 0


class Schedule:
    """Random steps of prompts in chunks, decode rows and texts over a paged and a contiguous cache at once."""

    def __init__(self, seed: int, heads: int, kv_heads: int, window: int | None) -> None:
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.heads, self.kv_heads, self.window = heads, kv_heads, window
        self.paged = paged_cache(kv_heads)
        self.contiguous = KVCache(
            layers=LAYERS, rows=4, kv_heads=kv_heads, length=LENGTH, head_dim=HEAD_DIM, dtype=torch.float32, device=CPU
        )
        self.running: list[Running] = []
        self.backends = PagedAttention(self.paged), TorchAttention()

    def batches(self, steps: int) -> Iterator[tuple[AttentionBatch, AttentionBatch]]:
        for _ in range(steps):
            self._admit()
            spans: list[tuple[Span, Span]] = []
            start = 0
            for sequence in self.rng.sample(self.running, len(self.running)):
                count = min(sequence.length - sequence.context, self.rng.choice([1, 1, 2, 7]))
                stop, context = start + count, sequence.context
                spans.append((Span(start, stop, sequence.paged_row, context), Span(start, stop, sequence.row, context)))
                sequence.context += count
                start = stop
                if self.rng.random() < 0.3:
                    text = Span(start, start + self.rng.randint(1, 5))
                    spans.append((text, text))
                    start = text.stop
            yield self._batch([span for span, _ in spans], 0), self._batch([span for _, span in spans], 1)
            self._finish()

    def _batch(self, spans: list[Span], which: int) -> AttentionBatch:
        return AttentionBatch(spans, causal=True, cache=self.contiguous, backend=self.backends[which], device=CPU)

    def _admit(self) -> None:
        while not self.running or (self.rng.random() < 0.5 and self.paged.free):
            length = self.rng.randint(1, LENGTH)
            row = self.contiguous.allocate(Content("", ()), 0)
            assert row is not None
            self.running.append(Running(length, take(self.paged, length), row.row))

    def _finish(self) -> None:
        for sequence in [sequence for sequence in self.running if sequence.context == sequence.length]:
            self.running.remove(sequence)
            self.paged.release(sequence.paged_row)
            self.contiguous.release(sequence.row)
        self.paged.check_integrity()

    def layer(self, index: int, tokens: int) -> Layer:
        q, k, v = (
            # As models have them: heads and tokens swapped, so not contiguous.
            torch.randn(tokens, heads, HEAD_DIM, generator=self.generator).transpose(0, 1)
            for heads in (self.heads, self.kv_heads, self.kv_heads)
        )
        return Layer(q, k, v, index, self.rng.choice([None, 0.3]), self.window)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_any_schedule_equals_the_contiguous_cache(heads: int, kv_heads: int, window: int | None, seed: int) -> None:
    schedule = Schedule(seed, heads, kv_heads, window)
    for paged, contiguous in schedule.batches(steps=12):
        for index in range(LAYERS):
            layer = schedule.layer(index, paged.spans[-1].stop)
            got, want = schedule.backends[0].attend(layer, paged), schedule.backends[1].attend(layer, contiguous)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_an_encoder_sees_both_ways_and_needs_no_cache(window: int | None) -> None:
    spans = [Span(0, 3), Span(3, 4), Span(4, 7)]
    q, k, v = (torch.randn(2, 7, HEAD_DIM) for _ in range(3))
    layer = Layer(q, k, v, 0, None, window)
    outs = [
        backend.attend(layer, AttentionBatch(spans, causal=False, cache=None, backend=backend, device=CPU))
        for backend in (PagedAttention(), TorchAttention())
    ]
    torch.testing.assert_close(*outs)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """What torch documents, query by query."""
    assert num_splits == 1, "more splits lose rows of a paged call"
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[-2])
    out = torch.empty_like(query)
    for i in range(len(cu_seq_q) - 1):
        first, last = cu_seq_q[i : i + 2].tolist()
        if block_table is None:
            begin, end = cu_seq_k[i : i + 2].tolist()
            keys, values = key[begin:end], value[begin:end]
        else:
            assert seqused_k is not None and seqused_k.dtype == block_table.dtype == torch.int32
            used = int(seqused_k[i])
            keys, values = (pool[block_table[i].long()].flatten(0, 1)[:used] for pool in (key, value))
        assert last - first <= max_q and len(keys) <= max_k
        for j in range(first, last):
            place = len(keys) - (last - j)  # the last query is the last key
            left, right = window_size
            seen = slice(0 if left < 0 else max(0, place - left), len(keys) if right < 0 else place + right + 1)
            groups = query.shape[1] // key.shape[-2]
            k, v = (tensor[seen].repeat_interleave(groups, 1) for tensor in (keys, values))
            scores = torch.einsum("hd,khd->hk", query[j], k) * (query.shape[-1] ** -0.5 if scale is None else scale)
            out[j] = torch.einsum("hk,khd->hd", scores.softmax(-1), v)
    return out


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("chunks", [(1, 1, 1), (1, 6, 2)], ids=["decode", "mixed"])
def test_flash_attention_is_asked_for_the_same(
    monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, ...], heads: int, kv_heads: int, window: int | None
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    spans, start, kv = [], 0, paged_cache(kv_heads)
    for pool in (*kv.keys, *kv.values):
        pool.normal_()
    for count, context in zip(chunks, (9, 3, 0), strict=True):
        spans.append(Span(start, start + count, take(kv, 12), context))
        start += count
    form, q = Form(True, window, None), torch.randn(start, heads, HEAD_DIM)
    queries = subject.plan_cached(spans, kv, every=True)
    asked = [attend(q, kv.keys[0], kv.values[0], queries, form) for attend in (flash_paged, attend_paged)]
    torch.testing.assert_close(*asked)
    texts = subject.plan_texts([Span(span.start, span.stop) for span in spans], CPU, every=True)
    k, v = torch.randn(2, start, kv_heads, HEAD_DIM)
    for form_ in (form, Form(False, None, 0.2)):
        torch.testing.assert_close(*(attend(q, k, v, texts, form_) for attend in (flash_texts, attend_texts)))


def test_torch_takes_these_arguments() -> None:
    """The installed torch's own operator, on tensors without data: names, types and shapes are as it wants them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        kv = PagedKVCache(
            layers=1, rows=2, blocks=5, length=512, kv_heads=2, head_dim=64, dtype=torch.bfloat16, device=CPU
        )
        spans = [Span(0, 1, take(kv, 300), 0), Span(1, 4, take(kv, 300), 0)]
        q = torch.empty(4, 8, 64, dtype=torch.bfloat16)
        queries = subject.plan_cached(spans, kv, every=True)
        for window in WINDOWS:
            out = flash_paged(q, kv.keys[0], kv.values[0], queries, Form(True, window, None))
            assert out.shape == q.shape
        texts = subject.plan_texts(spans, CPU, every=True)
        assert flash_texts(q, q[:, :2], q[:, :2], texts, Form(False, None, None)).shape == q.shape


def test_flash_attention_is_for_a_gpu() -> None:
    assert not subject.flash_computes(torch.bfloat16, 64, CPU)
