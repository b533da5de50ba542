"""Whole runs on tiny bases: what comes out does not depend on how it was computed, and is what was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.adapter import load_adapter
from adapters.base import resolve_base
from adapters.config import HEAD_ONLY
from tests.support.tiny import peft_model
from tests.training.conftest import INSTRUCTIONS, THINGS, write_jsonl
from tests.training.running import WEIGHTS, config, encoded, quiet, run, said, weights
from tests.training.served import assert_served_as_trained, of_engine, published
from training import pipeline
from training import publish as publishing
from training.config import TrainConfig
from training.errors import DataError, PublishError, TrainingError
from training.run import train
from training.tasks.instruct import InstructTask

Tiny = Callable[[str], Path]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run/adapter" / WEIGHTS)


def prompts(task: str, folder: Path, **flags: Any) -> list[tuple[int, ...]]:
    return [example.ids for example in encoded(task, folder, **flags).examples.train[:5]]


# ── the same whatever the way ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", ["instruct", "classify", "text", "reward", "dpo"])
def test_two_batches_of_four_are_one_of_eight(tiny: Tiny, data_of: dict[str, Path], tmp_path: Path, task: str) -> None:
    if task == "dpo":
        pytest.importorskip("trl", reason="the dpo extra is not installed")
    data = data_of[task]
    settings: dict[str, Any] = {"data": data, "base": str(tiny("llama")), "epochs": 3, "lr": 0.005}
    settings |= {"classify": {"class_weights": "balanced"}, "text": {"max_length": 8}}.get(task, {})
    one = run(task, tmp_path / "one", batch_size=8, **settings)
    two = run(task, tmp_path / "two", batch_size=4, accumulate=2, **settings)
    assert len(one.steps) == len(two.steps) >= 6
    assert [step.loss for step in two.steps] == pytest.approx([step.loss for step in one.steps], abs=1e-5)
    expected = tensors(tmp_path / "one")
    for name, found in tensors(tmp_path / "two").items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-6)


def test_two_batches_of_four_in_bfloat16(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    """The same but for what rounding makes of another order of sums."""
    settings: dict[str, Any] = {
        "data": instructions, "base": str(tiny("llama")), "epochs": 3, "lr": 0.005, "dtype": "bfloat16",
    }  # fmt: skip
    one = run("instruct", tmp_path / "one", batch_size=8, **settings)
    two = run("instruct", tmp_path / "two", batch_size=4, accumulate=2, **settings)
    assert [step.loss for step in two.steps] == pytest.approx([step.loss for step in one.steps], rel=0.01)
    expected, found = (
        torch.cat([part.flatten() for part in tensors(tmp_path / way).values()]) for way in ("one", "two")
    )
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_the_same_seed_gives_the_same_adapter(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    settings = {"data": reviews, "base": str(tiny("gpt2")), "dropout": 0.1}
    made = []
    for number, seed in enumerate((1, 1, 2)):
        run("classify", tmp_path / str(number), seed=seed, **settings)
        made.append(weights(tmp_path / str(number)))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_bfloat16_ends_where_float32_ends(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    settings = {"data": instructions, "base": str(tiny("llama")), "epochs": 3, "publish": "acme/mine"}
    exact = run("instruct", tmp_path / "exact", dtype="float32", **settings)
    rounded = run("instruct", tmp_path / "rounded", dtype="bfloat16", **settings)
    assert rounded.precision.startswith("bfloat16")
    learned = exact.before.metrics["loss"] - exact.after.metrics["loss"]
    assert learned > 0.5
    assert abs(rounded.after.metrics["loss"] - exact.after.metrics["loss"]) < 0.1 * learned
    assert rounded.after.metrics["loss"] != exact.after.metrics["loss"]
    # Published, so it was found to answer as the model that was trained; its matrices stay exact.
    assert {tensor.dtype for tensor in load_file(published(tmp_path / "rounded").path / WEIGHTS).values()} == {
        torch.float32
    }


def test_bfloat16_reaches_a_base_that_is_trained_whole(tiny: Tiny, texts: Path, tmp_path: Path) -> None:
    losses = {
        dtype: run(
            "text", tmp_path / dtype, data=texts, base=str(tiny("llama")), update="full", lr=1e-3, epochs=1, dtype=dtype
        )
        .steps[0]
        .loss
        for dtype in ("float32", "bfloat16")
    }
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


# ── the best epoch ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_epoch_with_most_exact_answers_is_the_best(tiny: Tiny, tmp_path: Path) -> None:
    """The first of them, whatever its loss."""
    rows = [
        {"instruction": f"Is {thing} good?", "output": "Yes." if n % 2 else "No."} for n, thing in enumerate(THINGS)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings: dict[str, Any] = {"metric": "exact_match", "answers": 10, "answer_tokens": 6, "epochs": 4}
    settings |= {"lr": 0.003, "rank": 8, "batch_size": 2, "warmup": 0, "schedule": "constant", "validation": data}
    results = run("instruct", tmp_path, data=data, base=str(tiny("llama")), publish="acme/mine", **settings)
    found = [point.validation["exact_match"] for point in results.epochs]
    assert found[0] == 0 < max(found)
    best = found.index(max(found)) + 1
    assert (results.best.metric, results.best.epoch, results.best.value) == ("exact_match", best, max(found))
    chosen = (tmp_path / f"run/checkpoints/epoch-{best}" / WEIGHTS).read_bytes()
    assert (published(tmp_path).path / WEIGHTS).read_bytes() == chosen
    assert results.after.metrics["exact_match"] == max(found)
    # Not only the figure: so many of the answers that are shown are the expected ones.
    assert sum(bool(sample.right) for sample in results.after.samples) == round(10 * max(found))


def test_the_best_epoch_is_published_not_the_last(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    # A rate this high ruins what the first epochs have learned.
    settings: dict[str, Any] = {"lr": 0.3, "epochs": 4, "metric": "loss", "warmup": 0, "schedule": "constant"}
    results = run("classify", tmp_path, data=reviews, base=str(tiny("distilbert")), publish="acme/mine", **settings)
    losses = [point.validation["loss"] for point in results.epochs]
    assert results.best.value == min(losses)
    assert results.best.epoch == losses.index(min(losses)) + 1
    same = [
        (tmp_path / f"run/checkpoints/epoch-{epoch}" / WEIGHTS).read_bytes()
        == (published(tmp_path).path / WEIGHTS).read_bytes()
        for epoch in range(1, 5)
    ]
    assert same == [epoch == results.best.epoch for epoch in range(1, 5)]
    assert results.after.metrics["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_the_first_of_equal_epochs_is_the_best_and_patience_ends_the_run(
    tiny: Tiny, reviews: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"data": reviews, "base": str(tiny("distilbert")), "lr": 0.01, "epochs": 40}
    results = run("classify", tmp_path, metric="accuracy", patience=2, **settings)
    accuracies = [point.validation["accuracy"] for point in results.epochs]
    first = accuracies.index(max(accuracies)) + 1
    assert results.best.epoch == first
    assert results.best.metric == "accuracy"
    assert (results.stopped, len(accuracies)) == ("early", first + 2)
    assert len(results.steps) == 5 * len(accuracies)


def test_a_run_that_learns_by_heart_says_so(tiny: Tiny, tmp_path: Path) -> None:
    """Labels by chance cannot be known of new texts: the validation loss rises while these are learned."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (48,), generator=generator).tolist()
    rows = [{"text": f"{number * 7919 % 1000} the fox {number}", "label": label} for number, label in enumerate(labels)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings: dict[str, Any] = {"lr": 0.01, "epochs": 15, "rank": 8, "validation_split": 0.3}
    results = run("classify", tmp_path, data=data, base=str(tiny("gpt2")), **settings)
    assert any(note.startswith("The run overfits after epoch") for note in results.notes), results.notes
    assert "overfits" in (tmp_path / "run/adapter/README.md").read_text()


# ── what is published is what was trained ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("task", "kind"), [("classify", "roberta"), ("classify", "qwen3"), ("instruct", "gpt2")])
def test_what_is_published_is_what_was_trained(
    tiny: Tiny, instructions: Path, reviews: Path, tmp_path: Path, task: str, kind: str
) -> None:
    data, base = {"instruct": instructions, "classify": reviews}[task], tiny(kind)
    made, model = _train_and_keep(config(task, tmp_path, data=data, base=str(base), publish="acme/mine"))
    fresh = peft_model(base, task="generate" if task == "instruct" else "classify")
    fresh.config.pad_token_id = made.pad_id
    loaded = PeftModel.from_pretrained(fresh, published(tmp_path).path)
    expected = publishing.probe(made, model)
    torch.testing.assert_close(publishing.probe(made, loaded), expected, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    assert (expected - publishing.probe(made, made.load_model())).abs().max() > 1e-2


def _train_and_keep(settings: TrainConfig) -> tuple[Any, Any]:
    """Train; return the task and the model as it was when it was verified."""
    kept: list[tuple[Any, Any]] = []
    verify = publishing.verify

    def keep(task: Any, model: Any, folder: Path) -> float:
        kept.append((task, model))
        return verify(task, model, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "verify", keep)
        train(settings, quiet())
    return kept[0]


def test_patterns_and_rank_stabilised_scaling_are_saved_and_served(
    tiny: Tiny, instructions: Path, tmp_path: Path
) -> None:
    flags: dict[str, Any] = {
        "data": instructions, "base": str(tiny("gpt2")), "rank": 4, "alpha": 6, "rslora": True,
        "rank_pattern": "c_fc=7", "alpha_pattern": "c_attn=24,c_fc=2.5", "lora_plus": 4,
    }  # fmt: skip
    run("instruct", tmp_path, publish="acme/mine", **flags)
    version = published(tmp_path)
    lora = load_adapter(version.path, resolve_base(str(tiny("gpt2"))))
    scalings = {name.rpartition(".")[2]: (pair.a.shape[0], pair.scaling) for name, pair in lora.weights.pairs.items()}
    assert scalings == {
        "c_attn": (4, pytest.approx(24 / 2)),
        "c_fc": (7, pytest.approx(2.5 / 7**0.5)),
        "c_proj": (4, pytest.approx(6 / 2)),
    }
    saved = (version.path / "adapter_config.json").read_text()
    assert '"use_rslora": true' in saved
    assert_served_as_trained(tiny("gpt2"), version.path, prompts("instruct", tmp_path, **flags))


def test_a_head_alone_is_published_and_served(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": reviews, "base": str(tiny("bert")), "update": "head", "epochs": 3}
    results = run("classify", tmp_path, publish="acme/mine", **flags)
    assert results.update == "head"
    version = published(tmp_path)
    adapter = load_adapter(version.path, resolve_base(str(tiny("bert"))))
    assert adapter.weights.pairs == {}
    assert HEAD_ONLY in (version.path / "adapter_config.json").read_text()
    assert results.parameters.trained == sum(tensor.numel() for tensor in adapter.weights.head.values())
    assert_served_as_trained(tiny("bert"), version.path, prompts("classify", tmp_path, **flags), labels=2)


def test_all_weights_make_a_base_that_is_served(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": instructions, "base": str(tiny("llama")), "update": "full", "lr": 3e-3}
    console = quiet()
    results = train(config("instruct", tmp_path, **flags), console)
    assert results is not None
    assert f"{tmp_path / 'run/base'} is a base of its own, not an adapter" in said(console).replace("\n", "")
    assert results.adapter is None
    assert results.parameters.trained == results.parameters.all
    assert results.after.metrics["loss"] < results.before.metrics["loss"]
    folder = tmp_path / "run/base"
    assert resolve_base(str(folder)).fingerprint != resolve_base(str(tiny("llama"))).fingerprint
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = prompts("instruct", tmp_path, **flags)
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in rows])
    torch.testing.assert_close(of_engine(folder, None, rows), expected, rtol=0, atol=1e-4)
    held_out = encoded("instruct", tmp_path, **flags).examples.held_out
    loss = sum(_loss(model, example) for example in held_out) / sum(example.weight for example in held_out)
    assert loss == pytest.approx(results.after.metrics["loss"], rel=1e-4)


@torch.no_grad()
def _loss(model: Any, example: Any) -> float:
    logits = model(torch.tensor([example.ids])).logits[0, example.prompt_length - 1 : -1]
    return float(cross_entropy(logits, torch.tensor(example.ids[example.prompt_length :]), reduction="sum"))


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_head_is_not_published(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    verify = publishing.verify

    def spoil(task: Any, model: Any, folder: Path) -> float:
        held = load_file(folder / WEIGHTS)
        name = next(name for name in held if name.endswith("classifier.weight"))
        save_file({**held, name: torch.zeros_like(held[name])}, folder / WEIGHTS)
        return verify(task, model, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "verify", spoil)
        with pytest.raises(PublishError, match="answers otherwise than the trained model"):
            run("classify", tmp_path, data=reviews, base=str(tiny("distilbert")), publish="acme/mine")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("task", "batch_size"), [("instruct", 8), ("instruct", 64), ("classify", 64)])
def test_a_rate_too_high_ends_the_run_and_names_rows(
    tiny: Tiny, instructions: Path, reviews: Path, tmp_path: Path, task: str, batch_size: int
) -> None:
    """Found by the next step, or where an epoch is a single one by the measurement after it."""
    data = {"instruct": instructions, "classify": reviews}[task]
    wild: dict[str, Any] = {"lr": 1e30, "clip": 0, "warmup": 0, "batch_size": batch_size}
    words = rf"the loss of {data.name} line \d+.* is (nan|inf) at step \d+: lower --lr, or look at these rows"
    with pytest.raises(TrainingError, match=words):
        run(task, tmp_path, data=data, base=str(tiny("gpt2")), publish="acme/mine", **wild)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "run/adapter").exists()


@pytest.mark.parametrize("place", [4, 45])
def test_a_row_that_overflows_is_named_alone(tiny: Tiny, tmp_path: Path, place: int) -> None:
    """Among those that are measured before the first step, and beyond them."""
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": f"{number}"}]}
        for number in range(50)
    ]
    # More than a float32 holds; the row is long, for the short ones are what the levers are tried on.
    rows[place]["messages"][1] |= {"weight": 1e39, "content": "It is said at some length."}
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", INSTRUCTIONS[:2])
    with pytest.raises(TrainingError, match=rf"the loss of rows\.jsonl line {place + 1} is (nan|inf) at step"):
        run("instruct", tmp_path, data=data, validation=held_out, base=str(tiny("gpt2")), epochs=1)


class _NoNumber(torch.autograd.Function):
    """A number whose gradient is none."""

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan


@pytest.mark.parametrize("clip", [0, 1])
def test_a_gradient_that_is_no_number_stops_the_run_before_its_step(
    tiny: Tiny, instructions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    """Though the loss is one: nothing that it would spoil is saved."""
    loss = InstructTask.loss

    def broken(self: InstructTask, fast: Any, examples: Any) -> torch.Tensor:
        found = loss(self, fast, examples)
        bad = any(example.place.number == 5 for example in examples)
        return _NoNumber.apply(found) if bad else found  # type: ignore[no-untyped-call, no-any-return]

    monkeypatch.setattr(InstructTask, "loss", broken)
    flags = {"data": instructions, "validation": instructions, "base": str(tiny("gpt2"))}
    with pytest.raises(
        TrainingError, match=r"the gradient of instructions\.jsonl line 5 is nan at step \d: lower --lr"
    ):
        run("instruct", tmp_path, clip=clip, save_every=1, **flags)
    for state in (tmp_path / "run/checkpoints").glob("step-*/weights"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(state / WEIGHTS).values())


def test_a_single_label_that_rows_have_or_not(tiny: Tiny, tmp_path: Path) -> None:
    """One label of several kinds of rows is no choice of two classes."""
    rows = [{"text": f"{'now' if n % 2 else 'later'} {n}", "labels": ["urgent"] * (n % 2)} for n in range(40)]
    flags: dict[str, Any] = {"data": write_jsonl(tmp_path / "rows.jsonl", rows), "base": str(tiny("gpt2")), "epochs": 4}
    results = run("classify", tmp_path, publish="acme/mine", **flags)
    report = results.after.classes
    assert report is not None
    (one,) = report.decisions
    rows_of = results.after.rows
    assert one.true_positives + one.false_negatives + one.false_positives + one.true_negatives == rows_of
    (score,) = report.labels
    assert (score.label, score.support) == ("urgent", one.true_positives + one.false_negatives)
    assert report.micro_f1 == report.macro_f1 == score.f1
    assert report.accuracy == pytest.approx((one.true_positives + one.true_negatives) / rows_of, abs=1e-6)
    version = published(tmp_path)
    assert version.manifest.labels == ("urgent",)
    rows_ids = prompts("classify", tmp_path, **flags)
    assert_served_as_trained(tiny("gpt2"), version.path, rows_ids, labels=1, means="sigmoid")


def test_without_publish_the_folder_is_ready_for_it(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    console = quiet()
    results = train(config("instruct", tmp_path, data=instructions, base=str(tiny("gpt2"))), console)
    assert results is not None
    assert results.published is None
    assert "next: tenora adapters publish" in said(console)
    load_adapter(tmp_path / "run/adapter", resolve_base(str(tiny("gpt2"))))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"publish": "No Name"}, "tenant/name"),
        ({"base": "no such base"}, "hub id"),
        ({"drop_last": True, "batch_size": 64}, "--drop-last leaves no step of 64 out of 18 rows"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    tiny: Tiny, instructions: Path, tmp_path: Path, flags: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        run("instruct", tmp_path, **{"data": instructions, "base": str(tiny("gpt2")), **flags})
    assert not (tmp_path / "run/checkpoints").exists()


def test_bad_rows_are_an_error_of_the_run(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 1.5}])
    with pytest.raises(DataError):
        run("classify", tmp_path, data=file)
