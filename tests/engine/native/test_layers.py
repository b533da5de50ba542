"""Layers are computed in one call where they are Llama's, and by the model's own code where they are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.weights import LoraPair
from service.engine.native import attention
from service.engine.native import kernels as native
from tests.engine.conftest import Zoo
from tests.engine.driving import drain, generation
from tests.engine.native.bases import fused, logprobs, open_engine, save_base

pytestmark = pytest.mark.usefixtures("compiled")
IDS = list(range(2, 42))  # beyond the sliding window of the tiny Mistral
LLAMA_LIKE = ("llama", "qwen3", "mistral")
OTHERS = ("gpt2", "opt", "gpt_neox", "phi", "distilbert", "bert", "roberta")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("kind", LLAMA_LIKE)
def test_layers_of_llamas_kind_are_one_call(zoo: Callable[[str], Zoo], dtype: torch.dtype, kind: str) -> None:
    assert fused(zoo(kind).engine(kernels="native", dtype=name_of(dtype)))


@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers_are_the_models_own(zoo: Callable[[str], Zoo], kind: str) -> None:
    assert not fused(zoo(kind).engine(kernels="native"))


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases of queries, keys and values": ("qwen2", {}),
    "a window from the second layer on": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "one matrix for words in and out": ("llama", {"tie_word_embeddings": True}),
    "heads as wide as can be": ("qwen3", {"head_dim": 256}),
    "heads of an odd half": ("qwen3", {"head_dim": 6}),
    "one head of keys": ("llama", {"num_key_value_heads": 1}),
    "stretched angles": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "scaled angles": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                             "original_max_position_embeddings": 64}},
    ),
    "an inner width of no panel": ("llama", {"intermediate_size": 50, "hidden_size": 36, "num_attention_heads": 6}),
    "an IBM Granite that scales nothing": ("granite", {}),
    "one layer": ("llama", {"num_hidden_layers": 1}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_llama_are_one_call_and_come_out_as_torchs(tmp_path: Path, variant: str) -> None:
    kind, changes = VARIANTS[variant]
    folder = save_base(tmp_path, kind, **changes)
    engine = open_engine(folder, kernels="native")
    assert fused(engine)
    torch.testing.assert_close(
        logprobs(engine, IDS), logprobs(open_engine(folder, kernels="torch"), IDS), atol=1e-4, rtol=0
    )


STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "residuals times a factor": ("granite", {"residual_multiplier": 0.22}),
    "residuals times nearly one": ("granite", {"residual_multiplier": 0.95}),
    "another activation": ("llama", {"hidden_act": "gelu"}),
    "an activation alike": ("llama", {"hidden_act": "relu"}),
    "biases of outputs": ("llama", {"attention_bias": True}),
    "biases in the MLP": ("llama", {"mlp_bias": True}),
    "a layer without positions": ("smollm3", {"no_rope_layers": [1, 0]}),
    "angles of neighbours": ("helium", {"head_dim": 8}),
    "heads too wide": ("qwen3", {"head_dim": 264}),
    "norms around one": ("gemma", {"head_dim": 8}),
}


# Where weights are narrow, scores are so near to each other that positions are lost in bfloat16's rounding.
ABOUT_POSITIONS = ("a layer without positions", "angles of neighbours")


@pytest.mark.parametrize("spread", [0.15, 0.02])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_computes_otherwise_stays_as_it_is(
    tmp_path: Path, dtype: torch.dtype, stranger: str, spread: float
) -> None:
    """Narrow weights make a layer add little to what goes through it; a difference is to be seen even so."""
    kind, changes = STRANGERS[stranger]
    folder = save_base(tmp_path, kind, spread=spread, **changes)
    engine = open_engine(folder, kernels="native", dtype=name_of(dtype))
    assert not fused(engine) or (stranger in ABOUT_POSITIONS and dtype == torch.bfloat16 and spread < 0.1)
    if dtype == torch.float32:
        want = logprobs(open_engine(folder, kernels="torch"), IDS)
        torch.testing.assert_close(logprobs(engine, IDS), want, atol=1e-4, rtol=0)


def errors(zoo: Zoo, want: torch.Tensor, **config: Any) -> torch.Tensor:
    """How far the first distribution of every generator is from float32's, on average."""
    return (first_logprobs(zoo, dtype="bfloat16", **config) - want).abs().mean(-1)


def first_logprobs(zoo: Zoo, **config: Any) -> torch.Tensor:
    vocabulary = zoo.source.config().vocab_size
    names = [None, *zoo.generators]
    asked = [
        generation(str(name), IDS, zoo.adapters.get(name or ""), vocabulary=vocabulary, max_tokens=1) for name in names
    ]
    outcomes = drain(zoo.engine(**config), *asked)
    return torch.stack([outcomes[str(name)].logprobs[0] for name in names])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gpt2", "phi"])
def test_in_bfloat16_the_kernels_are_as_close_to_float32_as_torch(
    zoo: Callable[[str], Zoo], kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whole layers as close as their parts."""
    if dtype != torch.bfloat16:
        return
    want = first_logprobs(zoo(kind), kernels="torch")
    by_torch = errors(zoo(kind), want, kernels="torch")
    by_kernels = errors(zoo(kind), want, kernels="native")
    monkeypatch.setattr(native, "fuse_layers", lambda *_args, **_kwargs: False)
    unfused = errors(zoo(kind), want, kernels="native")
    assert 1e-5 < by_kernels.mean() < 1.25 * by_torch.mean()
    assert 1e-5 < unfused.mean() < 1.25 * by_torch.mean()


@pytest.mark.parametrize("kind", LLAMA_LIKE)
def test_batches_with_a_large_span_go_through_the_layers_one_by_one(
    zoo: Callable[[str], Zoo], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(name, zoo(kind).adapters[name]) for name in zoo(kind).generators]
    want = drain(zoo(kind).engine(kernels="native"), *(generation(name, IDS, adapter) for name, adapter in asked))
    monkeypatch.setattr(attention, "LARGEST", 60)
    engine = zoo(kind).engine(kernels="native", max_step_tokens=64)
    assert fused(engine)
    found = drain(engine, *(generation(name, IDS, adapter) for name, adapter in asked))
    assert {name: outcome.tokens for name, outcome in found.items()} == {
        name: outcome.tokens for name, outcome in want.items()
    }


def test_two_threads_compute_what_one_does(llama: Zoo) -> None:
    """To the bit, in float32."""

    def rows(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        try:
            return first_logprobs(llama, kernels="native", max_step_tokens=64)
        finally:
            torch.set_num_threads(1)

    assert torch.equal(rows(2), rows(1))


def test_matrices_of_odd_width_are_padded_in_bfloat16(tmp_path: Path, dtype: torch.dtype) -> None:
    """Which the kernel for whole layers does not do."""
    folder = save_base(tmp_path, "llama", intermediate_size=51)
    engine = open_engine(folder, kernels="native", dtype=name_of(dtype))
    assert fused(engine) == (dtype == torch.float32)
    want = logprobs(open_engine(folder, kernels="torch"), IDS, 1)
    assert (logprobs(engine, IDS, 1) - want).abs().mean() < (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_a_router_that_calls_itself_linear_is_no_place_for_adapters(tmp_path: Path) -> None:
    """It gives back three things; packed as a matrix it would give one."""
    folder = save_base(tmp_path, "phimoe", num_local_experts=4, head_dim=8, sliding_window=None)
    engine = open_engine(folder, kernels="native")
    assert not [name for name in engine.base.linears if "router" in name]
    want = logprobs(open_engine(folder, kernels="torch"), IDS)
    torch.testing.assert_close(logprobs(engine, IDS), want, atol=1e-4, rtol=0)


def test_the_weights_are_the_files_whatever_computes_with_them(zoo: Callable[[str], Zoo]) -> None:
    hashes = {kernels: zoo("llama").engine(kernels=kernels).weights_hash() for kernels in ("torch", "native")}
    assert hashes["torch"] == hashes["native"]


def overflowing(zoo: Zoo, module: str) -> Any:
    """An adapter of finite weights for one kind of module, so large that what it computes overflows."""
    from dataclasses import replace

    adapter = zoo.adapters["small"]
    pairs = {
        name: LoraPair(torch.full_like(pair.a, 1e30), torch.full_like(pair.b, 1e30), pair.scaling)
        for name, pair in adapter.weights.pairs.items()
        if name.endswith(module)
    }
    assert pairs
    return replace(adapter, digest="f" * 64, weights=replace(adapter.weights, pairs=pairs))


@pytest.mark.parametrize("module", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_an_adapter_that_overflows_anywhere_fails_alone(llama: Zoo, dtype: torch.dtype, module: str) -> None:
    engine = llama.engine(kernels="native", dtype=name_of(dtype))
    good = llama.adapters["wide"]
    want = drain(engine, generation("good", IDS, good))["good"].tokens
    bad = generation("bad", IDS, overflowing(llama, module))
    outcomes = drain(engine, bad, generation("good", IDS, good))
    assert outcomes["bad"].failed is not None
    assert outcomes["bad"].failed.code == "non_finite_logits"
    assert outcomes["good"].tokens == want
