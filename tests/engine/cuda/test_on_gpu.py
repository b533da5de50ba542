"""On a GPU: its own kernels against torch, and the engine against the same engine on the CPU."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from service.engine.attention import Span
from service.engine.cuda.attention import (
    Form,
    attend_paged,
    attend_texts,
    flash_computes,
    flash_paged,
    flash_texts,
    plan_cached,
    plan_texts,
)
from service.engine.cuda.graphs import DecodeGraphs
from service.engine.cuda.paged_cache import BLOCK_TOKENS, PagedKVCache
from tests.engine.conftest import Zoo
from tests.engine.cuda.asking import everything
from tests.engine.cuda.rows import take
from tests.engine.driving import Outcome, drain, generation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GPU = torch.device("cuda")
HEADS = [(8, 8, 64), (8, 2, 64), (6, 1, 128), (4, 4, 80), (4, 2, 8)]


def spans(cache: PagedKVCache, rng: random.Random, *, decode: bool) -> list[Span]:
    found, start = [], 0
    for _ in range(9):
        count = 1 if decode else rng.choice([1, 1, 3, 200])
        context = rng.randrange(2 * BLOCK_TOKENS)
        found.append(Span(start, start + count, take(cache, context + count), context))
        start += count
    return found


@pytest.mark.parametrize("decode", [True, False], ids=["decode", "mixed"])
@pytest.mark.parametrize("window", [None, 1, 100, 300])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_flash_attention_equals_torch(
    heads: int, kv_heads: int, head_dim: int, window: int | None, decode: bool
) -> None:
    if not flash_computes(torch.bfloat16, head_dim, GPU):
        pytest.skip("FlashAttention does not compute this here")
    torch.manual_seed(0)
    cache = PagedKVCache(
        layers=1, rows=9, blocks=1 + 9 * 3, length=3 * BLOCK_TOKENS, kv_heads=kv_heads, head_dim=head_dim,
        dtype=torch.bfloat16, device=GPU,
    )  # fmt: skip
    for pool in (*cache.keys, *cache.values):
        pool.normal_()
    planned = spans(cache, random.Random(0), decode=decode)
    tokens = planned[-1].stop
    q, k, v = (torch.randn(tokens, n, head_dim, device=GPU, dtype=torch.bfloat16) for n in (heads, kv_heads, kv_heads))
    queries, form = plan_cached(planned, cache, every=True), Form(True, window, None)
    got, want = (attend(q, cache.keys[0], cache.values[0], queries, form) for attend in (flash_paged, attend_paged))
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    texts = plan_texts(planned, GPU, every=True)
    for form_ in (form, Form(False, None, 0.2)):
        got, want = (attend(q, k, v, texts, form_) for attend in (flash_texts, attend_texts))
        torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


def error(got: Outcome, want: Outcome) -> float:
    """How far they are apart, up to the first token that fell otherwise: behind it they have different histories."""
    if want.classified is not None:
        return (got.probabilities - want.probabilities).abs().max().item()
    pairs = zip(got.tokens, want.tokens, strict=True)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(want.tokens))
    return (got.logprobs[: same + 1] - want.logprobs[: same + 1]).abs().max().item()


def outcomes(zoo: Zoo, **config: Any) -> dict[str, Outcome]:
    return drain(zoo.engine(max_running=64, max_step_tokens=64, **config), *everything(zoo))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt2", "distilbert"])
def test_a_mixed_batch_equals_the_cpu(zoo: Callable[[str], Zoo], kind: str, dtype: str) -> None:
    """In bfloat16 it is no further from float32 on a CPU than bfloat16 on a CPU is, give or take."""
    exact = outcomes(zoo(kind), device="cpu", kernels="torch", dtype="float32")
    rounded = outcomes(zoo(kind), device="cpu", kernels="torch", dtype=dtype)
    got = outcomes(zoo(kind), device="cuda", dtype=dtype)
    assert got.keys() == exact.keys()
    allowed = 1e-3 + 2 * max(error(rounded[key], exact[key]) for key in exact)
    assert max(error(got[key], exact[key]) for key in exact) <= allowed


def test_decode_steps_are_replayed(llama: Zoo) -> None:
    engine = llama.engine(device="cuda", dtype="bfloat16")
    graphs = engine._runner._graphs
    assert isinstance(graphs, DecodeGraphs)
    answers = [drain(engine, generation("base", llama.ids("a fox")))["base"].tokens for _ in range(2)]
    assert graphs.replays == 2 * (8 - 1), "every step but the prompts'"
    assert answers[0] == answers[1]
