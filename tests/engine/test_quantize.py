"""Weights in int8: what is rounded, the exact products with it, and engines that serve so."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.errors import BaseModelError
from adapters.native import library
from adapters.weights import LoraPair
from service.engine import loader
from service.engine.config import resolve_int8
from service.engine.lora import LoraBatch, LoraContext
from service.engine.native import linear as native_linear
from service.engine.native.layers import FusedLayers
from service.engine.native.linear import PackedLinear, PackedLoraLinear, pack_pairs
from service.engine.native.panels import pack, unpack
from service.engine.quantize import Int8Weight, round_in_place, round_weight
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation, text

CPU = torch.device("cpu")
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([47, 48, 63, 64, 65, 70, 128, 130]))
UNIT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8}
"""What rounding a result may change of it."""


@pytest.fixture(scope="module")
def int8() -> None:
    if not library.supports_int8():
        pytest.skip("nothing multiplies in int8 here")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest, int8: None) -> torch.dtype:
    if not library.supports(request.param):
        pytest.skip(f"this CPU does not multiply in {request.param}")
    kind: torch.dtype = request.param
    return kind


def matrix(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random, with columns and rows of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(columns, generator=generator).exp() * torch.randn(rows, 1, generator=generator).exp()
    return (torch.randn(rows, columns, generator=generator) * size).to(dtype)


def rounded_rows(x: Tensor) -> Tensor:
    """What the kernel makes of the rows of x, in float64: 256 steps between the extremes of each, and 0 among them."""
    x = x.float()
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    step = (high - low) / 255
    inverse = torch.where(step > 1e-37, 1 / step, 0)
    zero = (-low * inverse).round()
    q = (x.double() * inverse.double() + zero.double()).float().round().clamp(0, 255)
    return (q - zero).double() * step.double()


def layer(
    base: PackedLinear, *, pairs: tuple[LoraPair, ...] = (), slots: tuple[int, ...] = (), threads: int = 1
) -> PackedLoraLinear:
    context = LoraContext()
    made = PackedLoraLinear(base, context, slots=max(1, len(pairs)), threads=threads)
    for slot, pair in enumerate(pairs, 1):
        made.load(slot, pack_pairs({"m": pair}, base.weight.dtype)["m"])
    context.batch = LoraBatch(slots, CPU) if slots else None
    return made


# ── rounding ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most() -> None:
    weight = matrix(50, 70, seed=0)
    rounded = round_weight(weight)
    assert rounded.values.dtype == torch.int8
    assert rounded.values.abs().amax(1).eq(127).all()
    assert ((rounded.dense() - weight).abs() <= rounded.scales[:, None] * 0.5001).all()
    assert torch.equal(rounded.sums(), rounded.values.int().sum(1).int())


def test_a_channel_of_zeros_stays_one() -> None:
    weight = torch.zeros(3, 5)
    weight[1] = 2.0
    assert torch.equal(round_weight(weight).dense(), weight)


@pytest.mark.parametrize("size", [1e-45, 1e-42, 1e-40, 1e-38, 1.4e-36, 1.6e-36, 1e-30, 3e38])
def test_a_channel_of_any_size_stays_finite_and_near(size: float) -> None:
    """Below the smallest normal scale there is no inverse, and the channel becomes zeros."""
    weight = torch.tensor([[1.0, -0.5, 0.25, 0.0], [size, -size / 2, size / 4, 0.0]])
    rounded = round_weight(weight)
    dense = rounded.dense()
    assert torch.equal(rounded.values[0], torch.tensor([127, -64, 32, 0], dtype=torch.int8))
    assert dense.isfinite().all()
    smallest = torch.finfo(torch.float32).tiny
    assert (dense[1] - weight[1]).abs().max() <= max(size / 127 * 0.5001, 127 * smallest)
    assert bool(rounded.scales[1] > 0) == (size / 127 >= smallest)


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_module_gets_the_rounded_weight_in_its_own_type(kind: Callable[..., Any]) -> None:
    module = kind(6, 9).to(torch.bfloat16)
    weight = module.weight.detach().clone()
    outputs = weight.T if kind is Conv1D else weight
    round_in_place(module)
    assert (module.weight.shape, module.weight.dtype, module.weight.requires_grad) == (
        weight.shape, torch.bfloat16, False,
    )  # fmt: skip
    expected = round_weight(outputs).dense().to(torch.bfloat16)
    assert torch.equal(module.weight.T if kind is Conv1D else module.weight, expected)


@given(SIZES, SIZES)
def test_int8_panels_come_back_as_they_were(n: int, k: int) -> None:
    if library.load_library() is None:
        pytest.skip("the CPU kernels could not be compiled on this machine")
    values = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    panels = pack(values)
    assert len(panels) == n * -(-k // 4) * 4
    assert torch.equal(unpack(panels, n, k), values)


# ── products ──────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(st.integers(1, 40), SIZES, SIZES, st.booleans(), st.sampled_from([1, 1, 2]))
def test_a_product_is_the_exact_one_of_what_was_rounded(
    int8: None, rows: int, n: int, k: int, biased: bool, threads: int
) -> None:
    for dtype in filter(library.supports, UNIT):
        x, weight = matrix(rows, k, 1, dtype), matrix(n, k, 2, dtype)
        bias = nn.Parameter(matrix(1, n, 3, dtype)[0], requires_grad=False) if biased else None
        base, rounded = PackedLinear(weight, bias, int8=True), round_weight(weight)
        found = layer(base, threads=threads)(x).double()
        product = rounded_rows(x) @ rounded.values.double().T * rounded.scales.double()
        expected = product + (0 if bias is None else bias.double())
        slack = UNIT[dtype] * (product.abs() + expected.abs())
        assert ((found - expected).abs() <= slack + 1e-30).all()


def test_a_product_is_as_near_to_the_plain_one_as_half_steps_allow(dtype: torch.dtype) -> None:
    x, weight = matrix(20, 130, 1, dtype), matrix(48, 130, 2, dtype)
    base = PackedLinear(weight, None, int8=True)
    assert base.scales is not None
    step = (x.float().amax(1).clamp(min=0) - x.float().amin(1).clamp(max=0)) / 255
    of_x, of_weight = step[:, None].double() / 2, base.scales[None].double() / 2
    exact = x.double() @ weight.double().T
    far = of_x * weight.double().abs().sum(1) + x.double().abs().sum(1, keepdim=True) * of_weight
    far = 1.01 * (far + 130 * of_x * of_weight) + UNIT[dtype] * exact.abs()
    assert ((layer(base)(x).double() - exact).abs() <= far).all()


def test_a_row_is_the_same_to_the_bit_whatever_is_beside_it(dtype: torch.dtype) -> None:
    x, linear = matrix(37, 66, 1, dtype), layer(PackedLinear(matrix(50, 66, 2, dtype), None, int8=True))
    together = linear(x)
    assert torch.equal(together, torch.cat([linear(row[None]) for row in x]))
    assert torch.equal(together[5:21], linear(x[5:21]))


def test_adapters_see_what_they_see_over_a_plain_base(dtype: torch.dtype) -> None:
    x, nothing = matrix(9, 34, 1, dtype), torch.zeros(50, 34, dtype=dtype)
    pairs = tuple(LoraPair(matrix(r, 34, r), matrix(50, r, 9 + r), scaling=0.5) for r in (3, 16))
    slots = (0, 1, 1, 1, 2, 2, 2, 2, 2)
    ours = layer(PackedLinear(nothing, None, int8=True), pairs=pairs, slots=slots)(x)
    theirs = layer(PackedLinear(nothing, None), pairs=pairs, slots=slots)(x)
    assert ours.count_nonzero() > 0
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype, bad: float) -> None:
    x, linear = matrix(18, 66, 1, dtype), layer(PackedLinear(matrix(50, 66, 2, dtype), None, int8=True))
    expected = linear(x)
    x[7, 65] = bad
    found = linear(x)
    assert found[7].isnan().all()
    others = [row for row in range(18) if row != 7]
    assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("value", [0.0, 1e-38, 3e38, -3e38])
def test_rows_of_one_value(dtype: torch.dtype, value: float) -> None:
    x = torch.full((2, 8), value, dtype=dtype)
    linear = layer(PackedLinear(torch.eye(8, dtype=dtype), None, int8=True))
    torch.testing.assert_close(linear(x), x, rtol=1e-2, atol=1e-37)


def test_the_weight_that_is_computed_with_can_be_had(dtype: torch.dtype) -> None:
    weight = matrix(19, 7, 0, dtype)
    base = PackedLinear(weight, None, int8=True)
    assert torch.equal(base.dense(), round_weight(weight).dense())
    assert (base.weight.dtype, base.weight.shape) == (dtype, weight.shape)


# ── engines ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "bert", "roberta"])
def test_every_architecture_passes_its_own_check(zoo: Callable[[str], Zoo], kind: str, dtype: torch.dtype) -> None:
    made = zoo(kind)
    engine = made.engine(quantize="int8", dtype=str(dtype).removeprefix("torch."), kernels="native")
    output = made.source.architecture().output
    for name, linear in engine.base.linears.items():
        assert isinstance(linear, PackedLoraLinear)
        assert (linear.base.scales is None) == (name == output), name


def test_whole_layers_are_computed_in_int8(llama: Zoo, dtype: torch.dtype) -> None:
    engine = llama.engine(quantize="int8", dtype=str(dtype).removeprefix("torch."), kernels="native")
    assert isinstance(engine.base.backbone.layers[0], FusedLayers)


def test_a_mixed_batch_equals_each_request_alone(llama: Zoo, int8: None) -> None:
    engine = llama.engine(quantize="int8", kernels="native", prefix_reuse=False)
    vocabulary = llama.source.config().vocab_size
    names = [None, *llama.generators, *llama.classifiers]

    def sequence(name: str | None) -> Any:
        ids = llama.ids(f"The meal was cooked by the {name} chef."[: 12 + 7 * names.index(name)])
        adapter = llama.adapters[name] if name else None
        if name in llama.classifiers:
            assert adapter is not None
            return text(str(name), ids, adapter)
        return generation(str(name), ids, adapter, vocabulary=vocabulary)

    mixed = drain(engine, *map(sequence, names))
    for name in names:
        alone, shared = drain(engine, sequence(name))[str(name)], mixed[str(name)]
        if name in llama.classifiers:
            torch.testing.assert_close(shared.probabilities, alone.probabilities, rtol=0.02, atol=0.01)
        else:
            assert shared.tokens == alone.tokens
            torch.testing.assert_close(shared.logprobs, alone.logprobs, rtol=0.02, atol=0.02)


def test_what_is_served_is_near_the_plain_base(llama: Zoo, int8: None) -> None:
    vocabulary, ids = llama.source.config().vocab_size, llama.ids("The meal was cooked by the chef.")
    first = {}
    for way in ("none", "int8"):
        engine = llama.engine(quantize=way, kernels="native")
        for name in (None, "wide"):
            asked = generation("one", ids, llama.adapters[name] if name else None, vocabulary=vocabulary, max_tokens=1)
            first[way, name] = drain(engine, asked)["one"].logprobs[0]
    for name in (None, "wide"):
        exact, rounded = first["none", name], first["int8", name]
        assert not torch.equal(exact, rounded)
        assert (exact.exp() * (exact - rounded)).sum() < 1e-3  # nats


def test_serving_changes_no_weight(llama: Zoo, int8: None) -> None:
    plain, engine = llama.engine(kernels="native"), llama.engine(quantize="int8", kernels="native")
    before = engine.weights_hash()
    assert before != plain.weights_hash()
    drain(engine, generation("one", llama.ids("The meal"), llama.adapters["wide"]))
    assert engine.weights_hash() == before


def test_embeddings_and_output_are_as_in_the_file(llama: Zoo, int8: None) -> None:
    plain = llama.engine(kernels="native").base.weights
    for name, weight in llama.engine(quantize="int8", kernels="native").base.weights.items():
        rounded = "proj" in name
        assert torch.equal(weight(), plain[name]()) is not rounded, name


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_without_the_instructions_the_rounded_weights_are_kept_in_the_type_of_the_base(
    llama: Zoo, kernels: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "supports_int8", lambda: False)
    plain = llama.engine(kernels="torch").base.weights
    with caplog.at_level(logging.WARNING, logger=loader.__name__):
        engine = llama.engine(quantize="int8", kernels=kernels)
    assert "weights are rounded to int8 but kept in torch.float32" in caplog.text
    for name, weight in engine.base.weights.items():
        exact = plain[name]().float()
        assert torch.equal(weight(), round_weight(exact).dense() if "proj" in name else exact), name
    answer = drain(engine, generation("one", llama.ids("The meal"), llama.adapters["wide"]))["one"]
    assert answer.finished is not None


def test_a_base_that_int8_spoils_is_refused(llama: Zoo, int8: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(weight: Tensor) -> Int8Weight:
        rounded = round_weight(weight)
        return Int8Weight(rounded.values, rounded.scales * 2)

    monkeypatch.setattr(native_linear, "round_weight", spoil)
    with pytest.raises(BaseModelError, match=r"its weights in int8 .* leave --quantize out"):
        llama.engine(quantize="int8", kernels="native")


def test_a_layer_too_deep_for_32_bits_is_not_multiplied_in_int8(
    llama: Zoo, int8: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MAX_INT8", 32)
    linears = llama.engine(quantize="int8", kernels="native").base.linears
    assert linears["layers.0.mlp.down_proj"].base.scales is None  # 64 inputs
    assert linears["layers.0.mlp.up_proj"].base.scales is not None  # 32


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize 'int8' is for a CPU and the base runs on cuda; use --device cpu"):
        resolve_int8("int8", torch.device("cuda"))
    with pytest.raises(ValueError, match="quantize must be none or int8, not 'int4'"):
        resolve_int8("int4", CPU)
    assert not resolve_int8("none", torch.device("cuda"))
