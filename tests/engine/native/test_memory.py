"""Adapters come and go by the thousand; their memory goes with them."""

from pathlib import Path

import pytest
import torch

from adapters.weights import LoraPair
from service.engine.lora import LoraBank, LoraContext
from service.engine.native.linear import PackedLinear, PackedLoraLinear, pack_pairs

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
