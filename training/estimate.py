"""How long a run would take here, and in how much memory, reckoned from two steps and two measurements."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from adapters.memory import keep_freed_memory
from training.config import AnsweringConfig
from training.loop import make_optimiser
from training.order import Order, looks_after, shares
from training.prepared import Prepared
from training.tasks.answers import greedy
from training.tasks.examples import AnswerExample, PreferenceExample
from training.tasks.task import Task
from training.updates import trained

_TURNS = 2
_TOKENS = 4
"""Of greedy answers, by which those of the right length are reckoned."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, and most bytes.

    Args:
        step: Of a step.
        learning: Of all steps.
        measuring: Of all losses, on the way and at the ends.
        answering: Of all greedy answers, if each is as long as it may be.
    """

    step: float
    learning: float
    measuring: float
    answering: float
    memory: int

    @property
    def total(self) -> float:
        """Seconds of it all."""
        return self.learning + self.measuring + self.answering


def estimate(prepared: Prepared, order: Order[Any]) -> Estimate:
    """Take steps and measurements of a model that is thrown away, the first step on the longest rows."""
    task, config = prepared.task, prepared.task.config
    optimiser = make_optimiser(dict(trained(prepared.model)), config)
    some = task.examples.validation[: config.eval_batch_size]
    longest = sorted(task.examples.train, key=lambda example: example.tokens)[-config.step_rows :]

    def step(turn: int) -> None:
        examples = order.step(0) if turn else longest
        for batch in shares(examples, config.batch_size, 0, 1):
            (task.loss(fast, batch) / task.weight(examples)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(dict(trained(prepared.model)).values(), config.clip or torch.inf)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    keep_freed_memory()
    with prepared.precision.active(), prepared.fast() as fast:
        fast.model.train()
        taken = _timed(step, fast.device)
        whole = _timed(lambda _: task.mean_loss(fast, some), fast.device) / len(some)
        with fast.coarsely():
            look = _timed(lambda _: task.mean_loss(fast, some), fast.device) / len(some)
        answering = _answering(task, fast.model, fast.device)
        if fast.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(fast.device)
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    on_the_way, entire = measured_rows(task, order.steps_in_epoch)
    steps = order.steps_in_epoch * config.epochs
    return Estimate(taken, taken * steps, look * on_the_way + whole * entire, answering, memory)


def measured_rows(task: Task[Any, Any], steps_in_epoch: int) -> tuple[int, int]:
    """How many rows a run's losses are taken of: (between epochs, before, after epochs and at the end)."""
    config, split = task.config, task.examples
    some = config.eval_batches * config.batch_size
    validation, train = min(some, len(split.validation)), min(some, len(split.train))
    anew = train if config.train_curve == "batches" else 0
    total = steps_in_epoch * config.epochs
    looks = sum(looks_after(step, config.eval_every) for step in range(1, total + 1) if step % steps_in_epoch)
    before = len(split.validation) * bool(split.test) + train
    epochs = config.epochs * (len(split.validation) + anew)
    return looks * (validation + anew), before + epochs + 2 * len(split.held_out)


def _answering(task: Task[Any, Any], model: Any, device: torch.device) -> float:
    """Seconds of the answers before and after, of those that choose an epoch, and of the sample after each epoch."""
    config = task.config
    if not isinstance(config, AnsweringConfig):
        return 0.0
    held_out = task.examples.held_out[: config.answers]
    per_epoch = task.examples.validation[: config.answers] if config.metric == "exact_match" else []
    rows = (held_out or task.examples.validation)[: config.eval_batch_size]
    prompts = [row.ids[: row.prompt_length] for row in rows if isinstance(row, AnswerExample | PreferenceExample)]

    def answered(tokens: int) -> float:
        began = _now(device)
        greedy(
            model, task.tokenizer, prompts, pad_id=task.pad_id, most_tokens=tokens, context=task.base.max_length,
            batch_size=len(prompts), least_tokens=tokens,
        )  # fmt: skip
        return _now(device) - began

    answered(1)  # the first one imports and allocates
    prompt = answered(1)
    token = max(0.0, answered(1 + _TOKENS) - prompt) / _TOKENS
    batch = prompt + (config.answer_tokens - 1) * token
    # Validation rows are answered before the first step too, unless they are the held-out ones.
    measurements = config.epochs + bool(task.examples.test)
    batches = 2 * -(-len(held_out) // config.eval_batch_size)
    batches += measurements * -(-len(per_epoch) // config.eval_batch_size)
    sample = prompt / len(prompts) + (config.answer_tokens - 1) * token
    return batches * batch + config.epochs * sample


def _timed(work: Callable[[int], object], device: torch.device) -> float:
    """Seconds of the last of a few turns: the first packs weights and asks for memory."""
    seconds = 0.0
    for turn in range(_TURNS):
        began = _now(device)
        work(turn)
        seconds = _now(device) - began
    return seconds


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
