"""The Triton kernels against torch's tables, and whether they compile for the GPUs they are meant for."""

import random
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.weights import LoraPair
from service.engine.cuda import lora
from service.engine.cuda.lora import COMPILERS, TILE, Tiles, Tiling, TritonLoraTable, cut, triton_computes
from service.engine.lora import LoraBatch, LoraTable, Segment

RANKS = (0, 2, 6, 0, 33, 80)  # of each slot; slots 0 and 3 have nothing
SHAPES = [(5, 7), (130, 70), (1100, 300)]  # the last is split, and takes several blocks of features
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class Tables:
    """The same matrices in a Triton table and in torch's."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        sizes: dict[str, Any] = {
            "slots": len(RANKS) - 1, "max_rank": max(RANKS), "in_features": shape[0], "out_features": shape[1],
            "dtype": dtype, "device": device,
        }  # fmt: skip
        self.tiling = Tiling(device)
        self.triton, self.torch = TritonLoraTable(**sizes, tiling=self.tiling), LoraTable(**sizes)
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)
        for slot, rank in enumerate(RANKS):
            self.load(slot, rank)

    def load(self, slot: int, rank: int) -> None:
        pair = None
        if rank:
            a = torch.randn(rank, self.shape[0], generator=self.generator) / self.shape[0] ** 0.5
            b = torch.randn(self.shape[1], rank, generator=self.generator) / rank**0.5
            pair = LoraPair(a, b, scaling=0.5 * slot)
        self.triton.load(slot, pair)
        self.torch.load(slot, pair)

    def assert_same(self, slots: list[int]) -> None:
        dtype, device = self.triton.a.dtype, self.triton.a.device
        x = torch.randn(len(slots), self.shape[0], generator=self.generator).to(device, dtype)
        got = torch.randn(len(slots), self.shape[1], generator=self.generator).to(device, dtype)
        want, batch = got.clone(), LoraBatch(slots, device)
        self.triton.add(got, x, batch)
        self.torch.add(want, x, batch)
        torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def mix(seed: int) -> list[int]:
    """Slots of a batch's tokens, in order: decode rows of one token, and prompts of several tiles."""
    rng = random.Random(seed)
    return [slot for slot in range(len(RANKS)) for _ in range(rng.choice([0, 1, 1, 3, TILE, TILE + 1, 40]))] or [1]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_mix_equals_torch(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    tables = Tables(shape, dtype, device)
    for seed in range(2):
        tables.assert_same(mix(seed))
    tables.assert_same([1, 2, 3, 4, 5])
    tables.assert_same([0, 0])


@pytest.mark.usefixtures("kernels")
def test_a_reloaded_slot_holds_nothing_of_the_last_adapter(device: torch.device) -> None:
    tables = Tables(SHAPES[0], torch.float32, device)
    for rank in (3, 80, 0, 1):
        tables.load(5, rank)
        tables.assert_same([4, 5, 5])


@pytest.mark.usefixtures("kernels")
def test_tiles_without_tokens_are_not_computed(device: torch.device) -> None:
    tables = Tables(SHAPES[0], torch.float32, device)
    x, y = torch.randn(2, 5, device=device), torch.zeros(2, 7, device=device)
    batch = LoraBatch([], device)
    tables.tiling.prepare(batch, Tiles(torch.tensor([[2, 0, 0], [1, 0, 0], [1, 0, 0]], device=device), None))
    tables.triton.add(y, x, batch)
    assert not y[0].any()
    assert y[1].any()


@pytest.mark.usefixtures("kernels")
def test_a_token_is_computed_alike_in_any_company(device: torch.device) -> None:
    tables = Tables(SHAPES[2], torch.float32, device)
    x = torch.randn(40, SHAPES[2][0], device=device)
    alone, together = torch.zeros(1, SHAPES[2][1], device=device), torch.zeros(40, SHAPES[2][1], device=device)
    tables.triton.add(alone, x[:1], LoraBatch([4], device))
    tables.triton.add(together, x, LoraBatch([4] * 20 + [5] * 20, device))
    torch.testing.assert_close(alone[0], together[0])


def test_segments_are_cut_into_tiles() -> None:
    assert cut([]) == []
    assert cut([Segment(1, 4, 5), Segment(3, 5, 5 + 2 * TILE + 3)]) == [
        (1, 4, 1), (3, 5, TILE), (3, 5 + TILE, TILE), (3, 5 + 2 * TILE, 3)
    ]  # fmt: skip


def test_the_tables_of_all_modules_share_the_tiles_of_a_batch() -> None:
    tiling, batch = Tiling(torch.device("cpu")), LoraBatch([0, 2, 2], torch.device("cpu"))
    assert tiling.of(batch) is tiling.of(batch)
    assert tiling.of(batch).table.tolist() == [[2], [1], [2]]
    assert tiling.of(batch).slots == frozenset({2})


def test_triton_is_for_a_gpu() -> None:
    assert not triton_computes(torch.device("cpu"))
    compiler = any(map(shutil.which, COMPILERS))
    assert triton_computes(torch.device("cuda")) == (find_spec("triton") is not None and compiler)


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Triton would fail with the first adapter."""
    monkeypatch.setattr(lora, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    assert not triton_computes(torch.device("cuda"))
    assert "Triton needs a C compiler, and there is no gcc" in caplog.text
    monkeypatch.setattr(lora.shutil, "which", lambda name: name == "clang")
    assert triton_computes(torch.device("cuda"))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("number", "capability"), [("bf16", 80), ("bf16", 90), ("fp32", 90)])
def test_the_kernels_compile(number: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Down to the GPU's own instructions, which needs none to be there."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from service.engine.cuda import lora_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {
        "tile": TILE,
        "features": 128,
        "rank_block": 64,
        "dot": tl.bfloat16 if number == "bf16" else tl.float32,
    }
    types = {"ranks": "*i32", "tiles": "*i64", "parts": "*fp32"} | dict.fromkeys("xyab", f"*{number}")
    for kernel, own in ((lora_kernels._shrink, {"split_features": 512}), (lora_kernels._expand, {"splits": 4})):
        function, fixed = JITFunction(kernel.fn), constants | own
        source = ASTSource(
            fn=function,
            signature={name: types.get(name, "constexpr" if name in fixed else "i32") for name in function.arg_names},
            constexprs={(function.arg_names.index(name),): value for name, value in fixed.items()},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
        if number == "bf16":
            assert re.search(r"mma\.sync|wgmma", compiled.asm["ptx"]), "no matrix instructions"
