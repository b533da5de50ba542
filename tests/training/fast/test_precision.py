"""Which arithmetic a run uses."""

from typing import Any

import pytest
import torch

from training.fast import precision
from training.fast.precision import Precision, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("matmul", ["highest", "medium"])
def test_active_sets_torch_and_sets_it_back(matmul: Any) -> None:
    before = torch.get_float32_matmul_precision()
    with Precision(torch.float32, matmul).active():
        assert torch.get_float32_matmul_precision() == matmul
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(KeyError), Precision(torch.float32, matmul).active():
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_named_types_are_taken() -> None:
    assert choose_precision("bfloat16", CPU) == Precision(torch.bfloat16)
    chosen = choose_precision("float32", CPU)
    assert chosen.dtype == torch.float32
    assert [way for way, _ in chosen.measured] == ["float32", "bfloat16"]


@pytest.mark.parametrize(("gain", "dtype"), [(1.0, torch.float32), (1.2, torch.float32), (2.0, torch.bfloat16)])
def test_auto_measures(gain: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 only where it pays; the clock is the part that is not real here."""
    monkeypatch.setattr(precision, "_rate", lambda x, _weight: 100.0 * (gain if x.dtype == torch.bfloat16 else 1.0))
    chosen = choose_precision("auto", CPU)
    assert chosen.dtype == chosen.coarse == dtype
    assert choose_precision("float32", CPU).coarse == dtype
    assert dict(chosen.measured) == {"float32": 100.0, "bfloat16": 100.0 * gain}
    assert f"float32 100, bfloat16 {100 * gain:.0f}" in str(chosen)


@pytest.mark.parametrize("exact", [True, False])
def test_a_faster_product_has_to_be_as_exact(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN may round down on machines that have AMX: such a way is not float32."""
    rates = {"highest": 100.0, "medium": 200.0}
    monkeypatch.setattr(precision, "_rate", lambda *_: rates[torch.get_float32_matmul_precision()])
    if not exact:
        monkeypatch.setattr(precision, "_SAME", -1.0)
    chosen = choose_precision("float32", CPU)
    assert chosen.matmul == ("medium" if exact else "highest")
    assert chosen.packs == (exact and precision.CAN_PACK)


def test_onednn_is_not_taken_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even tried; the type is chosen by what float32 then does."""
    tried = set()

    def rate(x: torch.Tensor, _: torch.Tensor) -> float:
        way = torch.get_float32_matmul_precision()
        if x.dtype == torch.bfloat16:
            return 150.0
        tried.add(way)
        return {"highest": 100.0, "medium": 200.0}[way]

    monkeypatch.setattr(precision, "_rate", rate)
    chosen = choose_precision("auto", CPU, onednn=False)
    assert (chosen.matmul, chosen.packs, chosen.dtype) == ("highest", False, torch.bfloat16)
    assert tried == {"highest"}
    assert choose_precision("auto", CPU).dtype == torch.float32
    assert tried == {"highest", "medium"}


def test_weights_are_packed_only_where_that_is_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"highest": 100.0, "medium": 200.0}
    monkeypatch.setattr(precision, "_rate", lambda *_: rates[torch.get_float32_matmul_precision()])
    monkeypatch.setattr(precision, "packed_product", lambda x, weight, bias: torch.zeros(len(x), precision._OUT))
    assert not choose_precision("float32", CPU).packs
