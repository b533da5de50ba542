"""The whole engine on the GPU's path, computed by a CPU: the same answers as over the contiguous cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import service.engine.engine as engine_module
from service.engine.cuda.graphs import DecodeGraphs, Forward, Graph
from service.engine.cuda.kernels import CudaKernels
from service.engine.cuda.paged_cache import PagedKVCache
from service.engine.engine import Engine
from service.engine.loader import LoadedBase
from service.engine.sequence import Sequence
from tests.engine.conftest import Zoo
from tests.engine.cuda.asking import assert_same, everything
from tests.engine.cuda.repeated import RepeatedCall
from tests.engine.driving import drain, generation
from tests.support.tiny import HEADS, HIDDEN, LAYERS


class OnCpu(CudaKernels):
    """Everything but the device; and small blocks, so that tiny models need several."""

    block_tokens = 16
    recorded: DecodeGraphs | None = None
    interpreted = False

    @classmethod
    def triton(cls, device: torch.device) -> bool:
        return cls.interpreted

    def record(self, base: LoadedBase, forward: Forward, cache: PagedKVCache, *, largest: int) -> DecodeGraphs | None:
        self.recorded = super().record(base, forward, cache, largest=largest)
        return self.recorded

    def _captures(self, cache: PagedKVCache) -> bool:
        return True

    @staticmethod
    def _graphs() -> Callable[[], Graph]:
        return RepeatedCall


class Interpreted(OnCpu):
    """Adapters by Triton, too."""

    interpreted = True


MakePaged = Callable[..., tuple[Engine, OnCpu]]


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> MakePaged:
    """Makes an engine as a GPU would have it."""

    def make(zoo: Zoo, kind: type[OnCpu] = OnCpu, **config: Any) -> tuple[Engine, OnCpu]:
        made: list[OnCpu] = []

        def choose(_wanted: str, dtype: torch.dtype, device: torch.device, **sizes: int) -> OnCpu:
            made.append(kind(dtype, device, **sizes))
            return made[0]

        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "choose_kernels", choose)
            return zoo.engine(**config), made[0]

    return make


@pytest.mark.parametrize("kind", ["llama", "mistral", "distilbert"])
def test_a_mixed_batch_equals_the_contiguous_engine(zoo: Callable[[str], Zoo], paged: MakePaged, kind: str) -> None:
    engine, kernels = paged(zoo(kind), max_running=64, max_step_tokens=24)
    found = drain(engine, *everything(zoo(kind)))
    assert_same(found, drain(zoo(kind).engine(kernels="torch", max_running=64), *everything(zoo(kind))))
    assert (kernels.recorded is not None) == zoo(kind).decoder


@pytest.mark.usefixtures("kernels")
def test_adapters_by_triton_in_recorded_steps(llama: Zoo, paged: MakePaged) -> None:
    def sequences() -> list[Sequence]:
        size = llama.source.config().vocab_size
        adapters = {"base": None} | {name: llama.adapters[name] for name in ("small", "patterns")}
        return [
            generation(name, llama.ids("a fox"), adapter, max_tokens=3, vocabulary=size)
            for name, adapter in adapters.items()
        ]

    engine, kernels = paged(llama, Interpreted, max_running=4, adapter_slots=2, max_lora_rank=7)
    found = drain(engine, *sequences())
    assert kernels.recorded is not None
    assert kernels.recorded.replays == 2, "all steps but the prompts'"
    assert_same(found, drain(llama.engine(kernels="torch"), *sequences()))


def test_a_sequence_waits_for_blocks(llama: Zoo, paged: MakePaged) -> None:
    block_bytes = 2 * LAYERS * OnCpu.block_tokens * 2 * (HIDDEN // HEADS) * 4
    engine, _ = paged(llama, max_running=4, kv_cache_bytes=3 * block_bytes)
    assert isinstance(engine._cache, PagedKVCache)
    assert (engine._cache.free, engine._cache.free_blocks) == (4, 2)
    for i in range(4):
        engine.submit(generation(str(i), llama.ids("a"), max_tokens=4))
    first = engine.step()
    engine.check_integrity()
    assert (engine.stats().running, engine.stats().waiting) == (2, 2)
    assert len(first) == 2
    assert sum(len(outcome.tokens) for outcome in drain(engine).values()) == 4 * 4 - 2


@pytest.mark.parametrize("blocks", [2, 3, 5])
def test_one_sequence_gets_a_context_that_the_cache_has_room_for(llama: Zoo, paged: MakePaged, blocks: int) -> None:
    """Beside the block that no sequence gets."""
    block_bytes = 2 * LAYERS * OnCpu.block_tokens * 2 * (HIDDEN // HEADS) * 4
    engine, _ = paged(llama, max_running=1, kv_cache_bytes=blocks * block_bytes)
    assert engine.max_model_len == blocks * OnCpu.block_tokens // 2
    sequence = generation("r", llama.ids("a"), max_tokens=engine.max_model_len - len(llama.ids("a")))
    assert len(drain(engine, sequence)["r"].tokens) == sequence.params.max_tokens


def test_a_beginning_is_computed_once(llama: Zoo, paged: MakePaged) -> None:
    engine, _ = paged(llama)
    ids, adapter = llama.ids("the quick brown fox " * 12)[:40], llama.adapters["small"]
    first, again, other = (
        drain(engine, generation("r", ids, adapter_))["r"] for adapter_ in (adapter, adapter, llama.adapters["wide"])
    )
    cached = [outcome.finished.cached_tokens for outcome in (first, again, other) if outcome.finished is not None]
    assert cached == [0, 32, 0]
    assert again.tokens == first.tokens
