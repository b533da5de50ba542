"""With every lever alone, missing, and all together: the loss and the gradients of PEFT and transformers."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.native import library
from tests.training.fast.models import (
    DECODERS,
    ENCODERS,
    MIXED,
    Rows,
    adapted,
    all_of,
    away,
    base_model,
    computed,
    config_of,
    some_rows,
    tree_rows,
    ways,
    wrapped,
)
from training.fast.levers import Levers
from training.fast.model import FastModel

EXACT = 1e-5
CLASSIFIERS = ("gpt2", "llama", *ENCODERS)
ROWS = {
    "one own token": some_rows((1, 6, 9)),
    "only own tokens of one": some_rows((1, 1, 1)),
    "equal": some_rows((0,) * 3, shared=12),
    "one is another's beginning": [MIXED[3], MIXED[3][:20], MIXED[3][:30]],
    "a single one": some_rows((20,)),
    "nothing in common": some_rows((9, 3, 20), shared=0),
    "two tokens": some_rows((2, 2), shared=0),
}


@cache
def plain(kind: str, classify: bool) -> tuple[Tensor, dict[str, Tensor]]:
    return computed(adapted(kind, classify=classify), Levers.none())


def assert_same(model: Any, levers: Levers, rows: Rows, expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    output, gradients = computed(model, levers, rows)
    assert away(output, expected[0]) < EXACT
    assert gradients.keys() == expected[1].keys()
    whole = all_of(expected[1]).norm()
    assert whole > 0
    for name, gradient in expected[1].items():
        # Some are zero but for rounding: where a token sees itself alone, nothing is learned of where to look.
        assert (gradients[name] - gradient).norm() < EXACT * gradient.norm() + 1e-7 * whole, name


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("kind", DECODERS)
def test_language_models(kind: str, way: str) -> None:
    assert_same(adapted(kind), ways()[way], MIXED, plain(kind, False))


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers(kind: str, way: str) -> None:
    """LoRA on all linears of the backbone, BERT's pooler among them; the head through PEFT's modules_to_save."""
    model = adapted(kind, classify=True)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("modules_to_save" in name for name in names)
    assert kind != "bert" or any("pooler" in name for name in names)
    assert_same(model, ways()[way], MIXED, plain(kind, True))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["gpt2", "mistral", "distilbert"])
def test_rows(kind: str, rows: str) -> None:
    model = adapted(kind, classify=kind == "distilbert")
    for way in ("all", "no share_prefix", "no narrow"):
        assert_same(model, ways()[way], ROWS[rows], computed(model, Levers.none(), ROWS[rows]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_trees(kind: str, seed: int) -> None:
    """Rows that begin like some of the others, all at once and as the sum over batches."""
    model, rows = adapted(kind), tree_rows(12, seed)
    expected = computed(model, Levers.none(), rows)
    assert_same(model, Levers(), rows, expected)
    parts = [computed(model, Levers(), rows[start : start + 4]) for start in range(0, len(rows), 4)]
    assert away(sum(output for output, _ in parts), expected[0]) < EXACT
    assert away(sum(all_of(gradients) for _, gradients in parts), all_of(expected[1])) < EXACT


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_trees_of_texts_to_classify(kind: str) -> None:
    """A text that another one begins with, or that stands there twice, has its own logits."""
    model, rows = adapted(kind, classify=True), tree_rows(12, 0)
    rows.append(rows[3])
    assert_same(model, Levers(), rows, computed(model, Levers.none(), rows))


def test_trained_weights_of_the_base() -> None:
    """Nothing is frozen then: the embeddings and the output layer, which are one tensor, get their gradients too."""
    model = wrapped(base_model(config_of("gpt2")))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert_same(model, Levers(), MIXED, computed(model, Levers.none()))


def test_an_output_layer_with_lora() -> None:
    model = wrapped(base_model(config_of("llama")), target_modules=["q_proj", "lm_head"])
    assert_same(model, Levers(), MIXED, computed(model, Levers.none()))


def test_rank_stabilised_and_uneven_ranks() -> None:
    lora = {"use_rslora": True, "rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_fc": 3}}
    model = wrapped(base_model(config_of("gpt2")), **lora)
    assert_same(model, Levers(), MIXED, computed(model, Levers.none()))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "distilbert"])
def test_figures(kind: str) -> None:
    """What evaluation reads agrees with the plain way's."""
    model = adapted(kind, classify=kind == "distilbert")
    found = []
    for levers in ways().values():
        with FastModel(model, levers, torch.float32, 1) as fast, torch.no_grad():
            if kind == "distilbert":
                found.append(fast.label_logits(MIXED))
                continue
            from tests.training.fast.models import learned

            loss, right, tokens = fast.token_figures(MIXED, learned(MIXED))
            assert float(fast.token_loss(MIXED, learned(MIXED))) == pytest.approx(loss, rel=EXACT)
            found.append(torch.tensor([loss, right, tokens]))
    for other in found[1:]:
        assert torch.allclose(found[0], other, rtol=EXACT, atol=1e-6)


@pytest.mark.parametrize(("kind", "classify"), [(k, False) for k in DECODERS] + [(k, True) for k in CLASSIFIERS])
def test_bfloat16(kind: str, classify: bool) -> None:
    """As near as 2%; or, where an architecture itself rounds worse, no further away than torch's autocast."""
    labels = {"num_labels": 3} if classify else {}
    model = wrapped(base_model(config_of(kind, **labels), classify=classify, spread=0.05), spread=0.05)
    output, gradients = computed(model, Levers.none())
    rounded_output, rounded = computed(model, Levers(), dtype=torch.bfloat16)
    assert rounded_output.dtype == torch.float32
    assert away(rounded_output, output) < 2e-2
    _, autocast = computed(model, Levers.none(), dtype=torch.bfloat16)
    bound = max(2e-2, 1.25 * away(all_of(autocast), all_of(gradients)))
    assert 1e-6 < away(all_of(rounded), all_of(gradients)) < bound


@pytest.mark.usefixtures("bf16_kernels")
@pytest.mark.parametrize("kind", [*DECODERS, "bert", "roberta"])
def test_compiled_kernels_in_bfloat16(kind: str) -> None:
    """As near to float32 as torch's products in bfloat16 are; what they compute is theirs and not torch's again.

    DistilBERT's head is left out: its ReLU has another gradient wherever rounding moves a value over zero.
    """
    model = adapted(kind, classify=kind in ENCODERS)
    exact, *others = (
        computed(model, levers, MIXED, dtype)
        for levers, dtype in (
            (Levers.none(), torch.float32), (Levers(), torch.bfloat16), (Levers().without("compiled"), torch.bfloat16),
        )
    )  # fmt: skip
    (own_loss, own), (torch_loss, torchs) = ((away(loss, exact[0]), all_of(found)) for loss, found in others)
    expected = all_of(exact[1])
    assert own_loss < 1.5 * torch_loss + 5e-3
    assert (own - expected).norm() < 1.3 * (torchs - expected).norm()
    assert not torch.equal(own, torchs)


@pytest.mark.usefixtures("bf16_kernels")
def test_who_calls_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 every kernel there is, forward and backward; in float32 not even the library is looked for."""
    called: list[str] = []
    function = library.function

    def noted(name: str, dtype: torch.dtype | None = None) -> Any:
        called.append(name)
        return function(name, dtype)

    monkeypatch.setattr(library, "function", noted)
    computed(adapted("gpt2"), Levers(), MIXED, torch.bfloat16)
    layers = config_of("gpt2").num_hidden_layers
    assert called.count("tenora_packed_attention") == called.count("tenora_packed_attention_back") == layers
    assert called.count("tenora_gelu") == 2 * layers
    assert called.count("tenora_lora") == 2 * 4 * layers - 1  # nobody asks for the gradient of the first one's input
    assert "tenora_cross_entropy" in called
    called.clear()
    computed(adapted("gpt2"), Levers().without("compiled"), MIXED, torch.bfloat16)
    monkeypatch.setattr(library, "load_library", lambda: called.append("load"))
    computed(adapted("gpt2"), Levers())
    assert not called
