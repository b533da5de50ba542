"""Buckets, padding and buffers of the decode graphs, with a graph that repeats its work by calling it again."""

import logging
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters.weights import LoraPair
from service.engine.attention import AttentionBatch, Layer, Span
from service.engine.batch import Batch
from service.engine.cuda.attention import PagedAttention
from service.engine.cuda.graphs import DecodeGraphs, Outputs, buckets
from service.engine.cuda.lora import Tiling, TritonLoraTable
from service.engine.cuda.paged_cache import PagedKVCache
from service.engine.lora import LoraBatch
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence
from tests.engine.cuda.repeated import RepeatedCall
from tests.engine.cuda.rows import take

CPU = torch.device("cpu")
VOCABULARY, HEADS, HEAD_DIM, LENGTH = 11, 2, 4, 16
WIDTH = HEADS * HEAD_DIM


class Model:
    """One layer with a cache and adapters: enough to notice a wrong row, place, position or slot."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.positions = torch.randn(LENGTH, WIDTH, generator=generator)
        self.tiling = Tiling(CPU)
        self.table = TritonLoraTable(
            slots=3, max_rank=4, in_features=WIDTH, out_features=WIDTH, dtype=torch.float32, device=CPU,
            tiling=self.tiling,
        )  # fmt: skip
        for slot in (1, 2, 3):
            a, b = torch.randn(4, WIDTH, generator=generator), torch.randn(WIDTH, 4, generator=generator)
            self.table.load(slot, LoraPair(a, b, scaling=1.0))
        self.cache = PagedKVCache(
            layers=1, rows=8, blocks=33, length=LENGTH, kv_heads=HEADS, head_dim=HEAD_DIM, dtype=torch.float32,
            device=CPU, block_tokens=4,
        )  # fmt: skip
        self.attention = PagedAttention(self.cache)

    def __call__(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        x = self.tokens[batch.input_ids[0]] + self.positions[batch.position_ids[0]]
        self.table.add(x, x.clone(), batch.lora)
        heads = x.view(-1, HEADS, HEAD_DIM).transpose(0, 1)
        hidden = batch.attention.backend.attend(Layer(heads, heads, heads, 0, None, None), batch.attention).flatten(1)
        return (hidden @ self.tokens.T)[batch.sampled_tokens] if batch.sampled else None, hidden

    def batch(self, rows: list[tuple[int, int, int, int]]) -> Batch:
        """Decode rows, each with its cache row, context, slot and token id; ordered by slot."""
        spans = [Span(i, i + 1, row, context) for i, (row, context, _, _) in enumerate(rows)]
        lora = LoraBatch([slot for _, _, slot, _ in rows], CPU)
        return Batch(
            input_ids=torch.tensor([[token for *_, token in rows]]),
            position_ids=torch.tensor([[context for _, context, _, _ in rows]]),
            attention=AttentionBatch(spans, causal=True, cache=None, backend=self.attention, device=CPU),
            lora=lora,
            sampled=tuple(Sequence(str(i), [0], sampling=SamplingParams()) for i in range(len(rows))),
            sampled_tokens=torch.arange(len(rows)),
            sampled_lora=lora,
            texts=(),
        )


class Setting:
    """The model by graphs, and the same model as it is."""

    def __init__(self, *, largest: int = 6, tiles: bool = True, kind: type[RepeatedCall] = RepeatedCall) -> None:
        self.model, self.plain = Model(), Model()
        self.version, self.made, self.kind = 0, list[RepeatedCall](), kind
        self.graphs = DecodeGraphs(
            self.model,
            cache=self.model.cache,
            attention=self.model.attention,
            tiling=self.model.tiling if tiles else None,
            largest=largest,
            version=lambda: self.version,
            new_graph=self._new_graph,
        )

    def _new_graph(self) -> RepeatedCall:
        self.made.append(self.kind())
        return self.made[-1]

    def allocate(self, tokens: int) -> int:
        (row,) = {take(model.cache, tokens) for model in (self.model, self.plain)}
        return row

    def assert_same(self, rows: list[tuple[int, int, int, int]]) -> None:
        found, want = self.graphs.forward(self.model.batch(rows)), self.plain(self.plain.batch(rows))
        assert found is not None
        torch.testing.assert_close(found, want)
        for ours, theirs in zip(self.model.cache.keys, self.plain.cache.keys, strict=True):
            torch.testing.assert_close(ours[1:], theirs[1:])  # all but the scratch block


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8, 16, 32, 64))]
)
def test_buckets_are_powers_of_two_and_the_largest(largest: int, sizes: tuple[int, ...]) -> None:
    assert buckets(largest) == sizes


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_any_decode_step_equals_the_pass_itself(seed: int) -> None:
    """Rows come and go, so that buffers hold the leavings of larger steps; the cache must not hold them."""
    rng, setting = random.Random(seed), Setting()
    contexts: dict[int, int] = {}
    slots: dict[int, int] = {}
    for _ in range(25):
        while not contexts or (len(contexts) < 6 and rng.random() < 0.4):
            row = setting.allocate(LENGTH)
            contexts[row], slots[row] = 0, rng.choice([0, 0, 1, 2, 3])
        setting.assert_same(
            [
                (row, contexts[row], slots[row], rng.randrange(VOCABULARY))
                for row in sorted(contexts, key=lambda row: slots[row])
            ]
        )
        for row in list(contexts):
            contexts[row] += 1
            if contexts[row] == LENGTH or rng.random() < 0.15:
                del contexts[row]
                for model in (setting.model, setting.plain):
                    model.cache.release(row)
    assert setting.graphs.replays == 25
    assert len(setting.made) <= 2 * len(setting.graphs.sizes)


@pytest.mark.usefixtures("kernels")
def test_every_bucket_is_captured_with_and_without_adapters() -> None:
    setting = Setting()
    setting.graphs.capture()
    assert len(setting.made) == 2 * 4
    row = setting.allocate(2)
    with torch.inference_mode():
        setting.assert_same([(row, 0, 0, 1)])
        setting.assert_same([(row, 1, 2, 1)])
    assert len(setting.made) == 2 * 4


@torch.inference_mode()
def test_the_smallest_bucket_that_holds_a_step_is_taken() -> None:
    setting = Setting()
    rows = [(setting.allocate(LENGTH), 0, 0, 1) for _ in range(5)]
    for count in (5, 4, 1):
        setting.assert_same([(row, 5 - count, slot, token) for row, _, slot, token in rows[:count]])
        assert len(setting.made[-1].outputs[0]) == {5: 6}.get(count, count)


@pytest.mark.usefixtures("kernels")
@torch.inference_mode()
def test_a_pass_with_other_kernels_is_captured_anew() -> None:
    setting, rows = Setting(), [(0, 0, 0, 1)]
    setting.allocate(4)
    setting.assert_same(rows)
    setting.assert_same(rows)
    assert len(setting.made) == 1
    setting.version += 1
    setting.assert_same(rows)
    assert len(setting.made) == 2


@pytest.mark.usefixtures("kernels")
@torch.inference_mode()
def test_only_the_rows_that_are_sampled_have_logits() -> None:
    setting = Setting()
    rows = [(setting.allocate(4), 0, 0, token) for token in (1, 2, 3)]
    batch, want = setting.model.batch(rows), setting.plain(setting.plain.batch(rows))
    one = replace(batch, sampled=batch.sampled[1:2], sampled_tokens=torch.tensor([1]))
    found = setting.graphs.forward(one)
    assert found is not None and found[0] is not None and want[0] is not None
    torch.testing.assert_close(found[0], want[0][1:2])
    none = setting.graphs.forward(replace(batch, sampled=(), sampled_tokens=torch.tensor([], dtype=torch.long)))
    assert none is not None and none[0] is None
    torch.testing.assert_close(none[1], want[1])


def test_what_is_not_only_decoding_is_left_alone() -> None:
    setting = Setting(largest=2)
    rows = [(setting.allocate(4), 0, 0, 1) for _ in range(3)]
    batch = setting.model.batch(rows[:2])

    def spans(*given: Span) -> Batch:
        attention = AttentionBatch(given, causal=True, cache=None, backend=setting.model.attention, device=CPU)
        return replace(batch, attention=attention)

    assert setting.graphs.forward(setting.model.batch(rows)) is None, "more rows than the largest bucket"
    assert setting.graphs.forward(spans(Span(0, 2, 0))) is None, "a prompt"
    assert setting.graphs.forward(spans(Span(0, 1, 0), Span(1, 2))) is None, "a text"
    assert Setting(tiles=False).graphs.forward(setting.model.batch([(0, 0, 1, 1)])) is None, "adapters without tiles"
    assert not setting.made


class Unrecordable(RepeatedCall):
    """What a CUDA graph does where the pass waits for the device."""

    def capture(self, run: Callable[[], Outputs]) -> Outputs:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_what_cannot_be_captured_is_served_without(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting(kind=Unrecordable)
    with caplog.at_level(logging.WARNING):
        setting.graphs.capture()
    assert caplog.text.count("without CUDA graphs: operation not permitted") == 1
    setting.allocate(4)
    assert setting.graphs.forward(setting.model.batch([(0, 0, 0, 1)])) is None
