"""Greedy answers: the same however they are put together, and never beyond the context."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import DECODERS
from tests.training.running import encoded
from training.tasks.answers import greedy
from training.tasks.task import Task
from training.updates import make_update

Tiny = Callable[[str], Path]


def adapted(task: Task[Any, Any]) -> Any:
    """The task's model with an adapter that changes something."""
    torch.manual_seed(0)
    model = make_update(task.base, task.config).prepare(task.load_model())
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_answers_do_not_depend_on_the_batch(tiny: Tiny, instructions: Path, tmp_path: Path, kind: str) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny(kind)), data=instructions)
    model = adapted(task)
    prompts = [example.ids[: example.prompt_length] for example in task.examples.train[:5]]
    prompts[1] = prompts[1][-9:]

    def answers(size: int) -> list[str]:
        return greedy(model, task.tokenizer, prompts, pad_id=task.pad_id, most_tokens=8, context=256, batch_size=size)

    assert answers(5) == answers(1)
    assert len(set(answers(5))) > 1


def test_answers_stop_at_the_context(tiny: Tiny, instructions: Path, tmp_path: Path) -> None:
    task = encoded("instruct", tmp_path, base=str(tiny("gpt2")), data=instructions)
    model, prompt = adapted(task), (task.examples.train[0].ids * 10)[:250]

    def answer(most_tokens: int) -> list[str]:
        return greedy(model, task.tokenizer, [prompt], pad_id=1, most_tokens=most_tokens, context=256, batch_size=1)

    assert answer(99) == answer(6)
    assert answer(6) != answer(5)
