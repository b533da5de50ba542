"""In float32, by every kind of kernels: whatever a head means, a mixed batch gives what PEFT's own forward gives."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.adapter import Adapter, infer_manifest, load_adapter
from adapters.base import BaseSource, resolve_base
from adapters.config import HEAD_ONLY
from adapters.manifest import write_manifest
from adapters.native import library
from adapters.templates import PromptInput, PromptTemplate, scored_ids
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.events import ClassifiedEvent
from service.engine.sequence import Sequence
from tests.engine.driving import drain, generation
from tests.engine.oracle import Oracle
from tests.support.tiny import tiny_base, write_peft_adapter

TOLERANCE = 1e-4
TEXTS = ["the quick brown fox", "It was good.", "a", "Not a fan, don't recommend. 0123 é 🙂"]
ANSWERS = ["It left today.", "", "No.", "the lazy dog"]
HEAD_ALONE: dict[str, Any] = {"targets": HEAD_ONLY, "exclude_modules": None}
LINEARS = {
    "gpt2": ("c_attn", "c_fc"),
    "distilbert": ("q_lin", "lin1"),
    "bert": ("query", "intermediate.dense"),
    "roberta": ("query", "intermediate.dense"),
}
Meaning = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trained:
    """One adapter, what PEFT computes with it, and what its numbers mean."""

    adapter: Adapter
    oracle: Oracle
    meaning: Meaning

    @torch.no_grad()
    def expected(self, ids: list[int]) -> Tensor:
        model = self.oracle.model
        return self.meaning(model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0])


@dataclass(frozen=True)
class Kinds:
    """A base with an adapter of every kind that has a head."""

    source: BaseSource
    trained: dict[str, Trained]

    def ids(self, name: str, i: int) -> list[int]:
        tokenizer = self.source.tokenizer()
        if self.trained[name].adapter.manifest.task == "classify":
            return list(tokenizer(TEXTS[i])["input_ids"])
        template = self.trained[name].adapter.template
        assert template is not None
        return scored_ids(template, tokenizer, PromptInput.from_instruction(TEXTS[i]), ANSWERS[i])

    def sequence(self, name: str, i: int) -> Sequence:
        return Sequence(f"{name}/{i}", self.ids(name, i), adapter=self.trained[name].adapter)


def recipes(kind: str) -> dict[str, tuple[int, dict[str, Any], dict[str, Any], Meaning]]:
    attention, mlp = LINEARS.get(kind, ("q_proj", "down_proj"))
    patterns = {"rank_pattern": {mlp: 7}, "alpha_pattern": {attention: 24}}

    def softmax(logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    return {
        "pair": (2, {"r": 4, "alpha": 8, **patterns}, {}, softmax),
        "head": (3, HEAD_ALONE, {}, softmax),
        "tags": (4, {"r": 3, "alpha": 9, "use_rslora": True}, {"multi_label": True}, torch.sigmoid),
        "head tags": (3, HEAD_ALONE, {"multi_label": True}, torch.sigmoid),
        "reward": (1, {"r": 6, **patterns}, {"score": True, "template": PromptTemplate.named("alpaca")}, Tensor.clone),
        "head reward": (1, HEAD_ALONE, {"score": True, "template": PromptTemplate.named("plain")}, Tensor.clone),
    }


def make(kind: str, folder: Path) -> Kinds:
    source = resolve_base(str(tiny_base(kind, folder / "base")))
    trained = {}
    for seed, (name, (count, lora, stated, meaning)) in enumerate(recipes(kind).items()):
        written = write_peft_adapter(source.path, folder / name, task="classify", num_labels=count, seed=seed, **lora)
        write_manifest(written, infer_manifest(written, source, **stated))
        oracle = Oracle(source.path, written, task="classify", num_labels=count)
        trained[name] = Trained(load_adapter(written, source), oracle, meaning)
    return Kinds(source, trained)


@pytest.fixture(scope="module", params=["llama", "gpt2", "distilbert", "bert", "roberta"])
def kinds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=["torch", "native"])
def engine(request: pytest.FixtureRequest, kinds: Kinds) -> Engine:
    if request.param == "native" and library.load_library() is None:
        pytest.skip("the CPU kernels could not be compiled on this machine")
    config = EngineConfig(dtype="float32", device="cpu", kernels=request.param, max_step_tokens=1024, threads=1)
    made = Engine(kinds.source, config)
    assert made.kernels == request.param
    return made


def numbers(event: ClassifiedEvent | None) -> Tensor:
    assert event is not None
    return torch.tensor(event.values)


def test_a_mixed_batch_gives_what_peft_gives(kinds: Kinds, engine: Engine) -> None:
    wanted = [(name, i) for name in kinds.trained for i in range(len(TEXTS))]
    others = [generation("base", kinds.ids("pair", 0))] if kinds.source.kind == "decoder" else []
    outcomes = drain(engine, *others, *(kinds.sequence(name, i) for name, i in wanted))
    assert engine.stats().max_adapters_in_step == len(kinds.trained)
    for name, i in wanted:
        expected = kinds.trained[name].expected(kinds.ids(name, i))
        found = numbers(outcomes[f"{name}/{i}"].classified)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
        alone = drain(engine, kinds.sequence(name, i))[f"{name}/{i}"]
        torch.testing.assert_close(numbers(alone.classified), found, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_numbers_mean_what_the_manifest_says(kinds: Kinds, engine: Engine) -> None:
    """The oracle would prove nothing if a head gave the same for all texts, or if all meanings came out alike."""
    outcomes = drain(engine, *(kinds.sequence(name, i) for name in kinds.trained for i in range(len(TEXTS))))
    for name, trained in kinds.trained.items():
        rows = torch.stack([numbers(outcomes[f"{name}/{i}"].classified) for i in range(len(TEXTS))])
        assert (rows.amax(0) - rows.amin(0)).max() > 100 * TOLERANCE
        sums = rows.sum(-1)
        single = trained.meaning not in (torch.sigmoid, Tensor.clone)
        assert torch.allclose(sums, torch.ones(len(TEXTS)), atol=1e-5) == single
        if trained.adapter.manifest.multi_label:
            assert ((rows >= 0) & (rows <= 1)).all()


def test_slots_change_hands_between_heads_and_pairs(kinds: Kinds) -> None:
    """With one slot each adapter takes over what the one before has left: a head must not run under its pairs."""
    config = EngineConfig(dtype="float32", device="cpu", adapter_slots=1, threads=1)
    engine = Engine(kinds.source, config)
    for name in ("pair", "head", "reward", "head reward", "tags", "head tags", "pair"):
        (outcome,) = drain(engine, kinds.sequence(name, 1)).values()
        expected = kinds.trained[name].expected(kinds.ids(name, 1))
        torch.testing.assert_close(numbers(outcome.classified), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert engine.stats().adapter_evictions == 6


def test_a_score_that_is_not_finite_fails_alone(kinds: Kinds, engine: Engine) -> None:
    name = "head reward"
    adapter = kinds.trained[name].adapter
    heads = {key: torch.full_like(tensor, 3e38) for key, tensor in adapter.weights.head.items()}
    broken = replace_head(adapter, heads)
    outcomes = drain(engine, Sequence("bad", kinds.ids(name, 0), adapter=broken), kinds.sequence(name, 1))
    failed = outcomes["bad"].failed
    assert failed is not None
    assert failed.code == "non_finite_logits"
    expected = kinds.trained[name].expected(kinds.ids(name, 1))
    found = numbers(outcomes[f"{name}/1"].classified)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def replace_head(adapter: Adapter, head: dict[str, Tensor]) -> Adapter:
    import dataclasses

    weights = dataclasses.replace(adapter.weights, head=head)
    return dataclasses.replace(adapter, digest="0" * 64, weights=weights)


LAST_LINEARS = {"distilbert": "ffn.lin2", "bert": "output.dense", "roberta": "output.dense"}


@pytest.mark.parametrize("kinds", LAST_LINEARS, indirect=True)
def test_an_encoders_last_layer_ends_with_one_token_of_each_text(kinds: Kinds, engine: Engine) -> None:
    suffix = LAST_LINEARS[kinds.source.config().model_type]
    seen: dict[str, list[int]] = {}
    for name, linear in engine.base.linears.items():
        if name.endswith(f"layer.0.{suffix}") or name.endswith(f"layer.1.{suffix}"):
            rows = seen.setdefault(name, [])
            linear.register_forward_pre_hook(lambda _module, given, rows=rows: rows.append(given[0].shape[-2]))
    wanted = [(name, i) for name in ("pair", "head tags") for i in range(len(TEXTS))]
    drain(engine, *(kinds.sequence(name, i) for name, i in wanted))
    first, last = (seen[name] for name in sorted(seen))
    assert sum(last) == len(wanted)
    assert sum(first) == sum(len(kinds.ids(name, i)) for name, i in wanted)
