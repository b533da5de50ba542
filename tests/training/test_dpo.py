"""Direct preference optimisation: TRL's loss over our ids, whole runs, and what is refused."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from adapters.base import resolve_base
from adapters.names import AdapterRef
from adapters.store import Store
from adapters.templates import PromptInput, PromptTemplate, completion_ids
from tests.training.conftest import THINGS, write_jsonl
from tests.training.served import assert_served_as_trained
from training.config import make_config
from training.dpo import DpoLoss
from training.dry_run import rendered
from training.errors import ConfigError, DataError, TrainingError
from training.fast.levers import Levers
from training.fast.model import FastModel
from training.prepared import prepare
from training.run import make_task, train
from training.tasks.dpo import DpoTask

pytest.importorskip("trl", reason="the dpo extra is not installed")

Tiny = Callable[[str], Path]
PAIRS = [
    {"prompt": f"Is {thing} good{mark}", "chosen": f"Yes, {thing} is.", "rejected": "No."}
    for thing in THINGS
    for mark in ("?", "!")
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", PAIRS)


def made(base: Path, data: Path, **flags: Any) -> DpoTask:
    task = make_task(
        make_config("dpo", {"data": data, "base": str(base), "rank": 4, "device": "cpu", "dtype": "float32", **flags})
    )
    assert isinstance(task, DpoTask)
    task.encode(resolve_base(str(base)))
    return task


def spread(model: Any) -> None:
    """Matrices of an adapter that was trained: it prefers something else than its base."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.3)


def own_log_probability(model: Any, ids: tuple[int, ...], prompt: int) -> torch.Tensor:
    """Σ log p of the ids after the prompt, by the model's plain forward on one row."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum((logits[place - 1, ids[place]] for place in range(prompt, len(ids))), torch.zeros(()))


@pytest.mark.parametrize("template", ["alpaca", "chat", "plain"])
def test_both_answers_stand_behind_the_served_prompt_with_one_eos(tiny: Tiny, pairs: Path, template: str) -> None:
    task = made(tiny("llama"), pairs, template=template)
    example = next(example for example in task.examples.train if example.place.number == 1)
    prompt = PromptTemplate.named(template).encode(task.tokenizer, PromptInput.from_instruction(PAIRS[0]["prompt"]))
    eos = task.tokenizer.eos_token_id
    assert list(example.ids) == [*prompt, *completion_ids(task.tokenizer, PAIRS[0]["chosen"]), eos]
    assert list(example.rejected) == [*prompt, *completion_ids(task.tokenizer, PAIRS[0]["rejected"]), eos]
    assert example.prompt_length == len(prompt)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
@pytest.mark.parametrize("packing", [True, False])
def test_trl_sees_our_ids_and_its_loss_is_ours(tiny: Tiny, pairs: Path, kind: str, packing: bool) -> None:
    beta = 0.3
    task = made(tiny(kind), pairs, beta=beta, packing=packing)
    prepared = prepare(task)
    examples = task.examples.train[:5]
    with prepared.fast() as fast:
        # The policy is the base as yet: the loss is that of a coin.
        assert float(task.loss(fast, examples).detach()) / 5 == pytest.approx(math.log(2), abs=1e-6)
        assert task.margins(fast, examples) == [0.0] * 5
        spread(fast.model)
        margins = task.margins(fast, examples)
        loss = task.loss(fast, examples)
        loss.backward()  # type: ignore[no-untyped-call]
    rewards = torch.tensor(margins) * beta
    expected = -torch.nn.functional.logsigmoid(rewards).sum()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-4)

    model = prepared.model.eval()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    plain = torch.zeros(())
    for example, margin in zip(examples, margins, strict=True):
        chosen, worse = (
            own_log_probability(model, ids, example.prompt_length) for ids in (example.ids, example.rejected)
        )
        with torch.no_grad(), model.disable_adapter():
            base = own_log_probability(model, example.ids, example.prompt_length)
            base = base - own_log_probability(model, example.rejected, example.prompt_length)
        assert float((chosen - worse - base).detach()) == pytest.approx(margin, abs=1e-3)
        plain = plain - torch.nn.functional.logsigmoid(beta * (chosen - worse - base))
    plain.backward()  # type: ignore[no-untyped-call]
    own = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert len(own) == len(found) > 0
    for ours, theirs in zip(own, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def test_trls_log_probabilities_are_ours(tiny: Tiny, pairs: Path) -> None:
    task = made(tiny("gpt2"), pairs)
    model = prepare(task).model
    objective = DpoLoss(model, task.tokenizer, beta=0.1, pad_id=task.pad_id)
    spread(model)
    model.eval()
    example = max(task.examples.train, key=lambda each: each.tokens)
    objective([(example.ids, example.rejected, example.prompt_length)], torch.float32)
    logged = objective._trainer._metrics["eval"]
    for name, ids in (("logps/chosen", example.ids), ("logps/rejected", example.rejected)):
        own = float(own_log_probability(model, ids, example.prompt_length).detach())
        assert logged[name][-1] == pytest.approx(own, abs=1e-3)
    # TRL's copy of the fresh adapter is gone: nothing of it is saved.
    assert list(model.peft_config) == ["default"]


def test_a_run_learns_the_preference_and_publishes_a_writer(tiny: Tiny, pairs: Path, tmp_path: Path) -> None:
    output, store = tmp_path / "run", tmp_path / "store"
    flags = {"data": pairs, "base": str(tiny("llama")), "output": output, "store": store, "publish": "acme/polite"}
    flags |= {"rank": 4, "epochs": 3, "batch_size": 4, "lr": 0.02, "device": "cpu", "dtype": "float32"}
    console = Console(file=io.StringIO(), width=120)
    results = train(make_config("dpo", {**flags, "validation_split": 0.2, "answers": 2, "answer_tokens": 4}), console)
    assert results is not None
    assert results.steps[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert results.before.metrics["pair_accuracy"] == 0.5
    assert results.before.metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert results.after.metrics["pair_accuracy"] == 1.0
    assert results.after.metrics["loss"] < 0.3
    assert len(results.epochs) == 3
    assert results.best.metric == "pair_accuracy"
    assert sorted(folder.name for folder in (output / "checkpoints").iterdir()) == ["epoch-1", "epoch-2", "epoch-3"]
    assert json.loads((output / "results.json").read_text())["task"] == "dpo"
    version = Store(store).resolve(AdapterRef.parse("acme/polite"))
    assert (version.manifest.task, version.manifest.recipe["beta"]) == ("generate", 0.1)
    assert sorted(path.name for path in version.path.glob("adapter_*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    examples = made(tiny("llama"), pairs).examples.train[:5]
    assert_served_as_trained(tiny("llama"), version.path, [row.ids[: row.prompt_length + 2] for row in examples])


def test_a_resumed_run_ends_as_an_undisturbed_one(tiny: Tiny, pairs: Path, tmp_path: Path) -> None:
    flags = {"data": pairs, "base": str(tiny("gpt2")), "rank": 2, "batch_size": 8, "lr": 0.01, "device": "cpu"}
    flags |= {"epochs": 2, "dropout": 0.2, "answers": 0, "dtype": "float32", "save_every": 1}
    whole = train(make_config("dpo", {**flags, "output": tmp_path / "whole"}), _quiet())
    assert whole is not None
    with pytest.MonkeyPatch.context() as patch:
        taken: list[int] = []

        def stop(self: Any, examples: Any, dtype: torch.dtype) -> torch.Tensor:
            if len(taken) == 4:
                raise KeyboardInterrupt
            taken.append(1)
            return call(self, examples, dtype)

        call = DpoLoss.__call__
        patch.setattr(DpoLoss, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("dpo", {**flags, "output": tmp_path / "cut"}), _quiet())
    resumed = train(make_config("dpo", {**flags, "output": tmp_path / "cut", "resume": True}), _quiet())
    assert resumed is not None
    assert [step.loss for step in resumed.steps] == [step.loss for step in whole.steps]
    one, other = (tmp_path / name / "checkpoints/epoch-2/adapter_model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


def test_bfloat16_steps_stay_near_float32(tiny: Tiny, pairs: Path) -> None:
    task = made(tiny("llama"), pairs)
    model = prepare(task).model
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        with FastModel(model, Levers(fused=False), dtype, task.pad_id) as fast:
            spread(model)
            losses.append(float(task.loss(fast, task.examples.train[:6]).detach()))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"update": "full"}, "dpo trains lora"),
        ({"fused": True}, "fused is not for dpo"),
        ({"beta": 0}, "--beta"),
        ({"metric": "accuracy"}, "--metric"),
    ],
)
def test_what_dpo_cannot_do_is_refused(pairs: Path, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config("dpo", {"data": pairs, **flags})


def test_without_trl_the_extra_is_named(pairs: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "trl", None)
        with pytest.raises(TrainingError, match=r"trl is not installed.* pip install 'tenora\[dpo\]'"):
            make_task(make_config("dpo", {"data": pairs}))


def test_several_processes_are_refused(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        make_task(make_config("dpo", {"data": pairs}))


def test_an_answer_that_holds_the_end_token_names_its_row(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*PAIRS[:8], {"prompt": "Stop?", "chosen": "Yes.", "rejected": "No<|endoftext|>"}]
    with pytest.raises(DataError, match="line 9: an answer holds"):
        made(tiny("gpt2"), write_jsonl(tmp_path / "rows.jsonl", rows))


def test_pairs_that_are_too_long_are_left_out(tiny: Tiny, tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Long?", "chosen": "No.", "rejected": "a b " * 90}]
    task = made(tiny("gpt2"), write_jsonl(tmp_path / "rows.jsonl", rows), max_length=128)
    (found,) = [finding for finding in task.findings if finding.kind == "over-long"]
    assert found.message == "1 row of more than 128 tokens is left out"
    assert [place.number for place in found.places] == [len(rows)]


def _quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_a_dry_run_marks_both_answers(tiny: Tiny, pairs: Path) -> None:
    task = made(tiny("gpt2"), pairs, template="plain")
    example = next(example for example in task.examples.train if example.place.number == 1)
    end = task.tokenizer.eos_token
    shown = rendered(task, example).plain
    better, worse = shown.split("\nworse: ")
    assert better.startswith("better: ")
    assert better.endswith(f"⟦{task.tokenizer.decode(example.ids[example.prompt_length :])}⟧")
    assert better.endswith(f"{end}⟧")
    assert worse.endswith(f"⟦{task.tokenizer.decode(example.rejected[example.prompt_length :])}⟧")
    assert PAIRS[0]["prompt"] in better.partition("⟦")[0]
