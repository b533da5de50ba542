"""What a dry run reckons is what a run does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.running import encoded, run
from training import estimate as reckoning
from training.estimate import estimate, measured_rows
from training.order import Order
from training.prepared import prepare
from training.tasks import language
from training.tasks.instruct import InstructTask

Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    "flags",
    [
        {"test_split": 0.2, "eval_every": 2, "train_curve": "batches", "eval_batches": 2},
        {"eval_every": 3, "batch_size": 4, "accumulate": 2, "eval_batches": 1},
        {"drop_last": True},
    ],
)
def test_rows_that_are_measured(
    tiny: Tiny, instructions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"data": instructions, "base": str(tiny("gpt2")), "epochs": 3, **flags}
    coarse, entire = [0], [0]
    mean_loss, measure = InstructTask.mean_loss, InstructTask.measure

    def counted(self: InstructTask, fast: Any, examples: Any) -> float:
        (coarse if fast.coarse_now else entire)[0] += len(examples)
        return mean_loss(self, fast, examples)

    def measured(self: InstructTask, fast: Any) -> Any:
        entire[0] += len(self.examples.held_out)
        return measure(self, fast)

    monkeypatch.setattr(InstructTask, "mean_loss", counted)
    monkeypatch.setattr(InstructTask, "measure", measured)
    mark_coarse(monkeypatch)
    run("instruct", tmp_path, **settings)
    task = encoded("instruct", tmp_path, **settings)
    steps = Order(task.examples.train, task.config.step_rows, task.config.drop_last, 0).steps_in_epoch
    assert measured_rows(task, steps) == (coarse[0], entire[0])
    assert (coarse[0] > 0) == bool(flags.get("eval_every"))


def mark_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the model say whether it is looked at coarsely."""
    from contextlib import contextmanager

    from training.fast.model import FastModel

    coarsely = FastModel.coarsely

    @contextmanager
    def marked(self: Any) -> Any:
        with coarsely(self):
            self.coarse_now = True
            yield
            self.coarse_now = False

    monkeypatch.setattr(FastModel, "coarse_now", False, raising=False)
    monkeypatch.setattr(FastModel, "coarsely", marked)


@pytest.mark.parametrize("metric", ["loss", "exact_match"])
def test_time_of_answers(
    tiny: Tiny, instructions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """Of batches before and after, of a sample an epoch, and of those that choose an epoch; by a clock of our own."""
    flags: dict[str, Any] = {"answers": 5, "answer_tokens": 10, "eval_batch_size": 2, "epochs": 3, "metric": metric}
    task = encoded("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")), test_split=0.5, **flags)
    clock = [0.0]

    def greedy(_model: Any, _tokenizer: Any, prompts: Any, *, most_tokens: int, **_: Any) -> list[str]:
        clock[0] += 4.0 + most_tokens  # four seconds for the prompts, one for each token
        return [""] * len(prompts)

    monkeypatch.setattr(reckoning, "greedy", greedy)
    monkeypatch.setattr(reckoning, "_now", lambda _: clock[0])
    found = estimate(prepare(task), Order(task.examples.train, 8, False, 0))
    assert (len(task.examples.test), len(task.examples.validation)) == (10, 2)
    batch = 4 + 10
    # Five rows in twos, twice; two validation rows before the first step and after each of three epochs.
    batches = 2 * 3 + (4 * 1 if metric == "exact_match" else 0)
    assert found.answering == batches * batch + 3 * (5 / 2 + 9)
    assert found.total == found.learning + found.measuring + found.answering


def test_nothing_is_answered_by_what_does_not_write(tiny: Tiny, reviews: Path, tmp_path: Path) -> None:
    task = encoded("classify", tmp_path, data=reviews, base=str(tiny("bert")))
    found = estimate(prepare(task), Order(task.examples.train, 8, False, 0))
    assert found.answering == 0
    assert found.step > 0
    assert found.learning == found.step * 5 * task.config.epochs
    assert found.measuring > 0
    assert found.memory > 1e8


def test_the_output_layer_gets_its_input_in_one_piece(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    """Else torch may copy the layer's weight once for each row."""
    task = encoded("instruct", tmp_path, data=instructions, base=str(tiny("gpt2")))
    model = task.load_model()
    inputs: list[bool] = []
    head = model.get_output_embeddings()
    seen = head.register_forward_hook(lambda _module, given, _output: inputs.append(given[0].is_contiguous()))
    prompts = [example.ids[: example.prompt_length] for example in task.examples.train[:3]]
    arguments: dict[str, Any] = {"pad_id": task.pad_id, "most_tokens": 2, "context": 256, "batch_size": 3}
    language.greedy(model, task.tokenizer, prompts, **arguments)
    seen.remove()
    assert inputs
    assert all(inputs)
    assert not head._forward_pre_hooks
